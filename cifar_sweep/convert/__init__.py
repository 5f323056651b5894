"""Sweeps of other programs as sweep files."""
