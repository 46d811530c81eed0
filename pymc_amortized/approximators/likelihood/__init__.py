"""Learned likelihoods: trained on rows, used in any PyMC model, saved."""
