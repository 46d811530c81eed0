"""Predictions, pointwise log densities and imputations for the data sets of results."""
