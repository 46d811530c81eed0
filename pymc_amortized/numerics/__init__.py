"""Numerical methods on NumPy arrays alone. Nothing here imports anything of this package."""
