"""Claiming: which trials a worker takes, and what becomes of those that others left behind."""

MAX_DEATHS = 3
