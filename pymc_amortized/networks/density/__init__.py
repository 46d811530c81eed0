"""Inference networks: conditional densities of parameters, given a summary of the data."""
