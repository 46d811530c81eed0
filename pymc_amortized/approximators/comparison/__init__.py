"""Comparison of several models of the same data: a classifier, and evidence by the exact densities."""
