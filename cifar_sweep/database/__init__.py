"""Databases, whatever is in them: addresses, locks, outages."""
