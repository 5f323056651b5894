"""Compiled kernels that train members in the lanes of vector registers."""
