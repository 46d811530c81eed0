"""Data sets of a model: read from what users give, checked, and held as named arrays."""
