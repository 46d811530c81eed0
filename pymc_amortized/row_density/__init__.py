"""The learned density of one row of data, written once for NumPy, torch and PyTensor.

What is trained in torch has to be the same function that NUTS differentiates in PyTensor and that NumPy draws from.
So the mathematics takes the array library as an argument (:mod:`pymc_amortized.row_density.namespaces`); this package
imports neither torch nor PyTensor.
"""
