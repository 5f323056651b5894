"""The version of the package, in one place that every room can read."""

__version__ = "0.2.0"
