"""Figures: plotly, by name, and pages of them."""
