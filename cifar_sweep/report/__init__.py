"""A study's report."""
