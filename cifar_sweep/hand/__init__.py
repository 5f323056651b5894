"""The runs of the reports: claimed beside measured."""
