"""Figures of trials and hand runs, drawn by plotly."""
