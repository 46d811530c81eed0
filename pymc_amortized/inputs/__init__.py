"""The configurator of the BayesFlow paper (arXiv 2306.16015): from a model's data to what the networks see.

:class:`~pymc_amortized.inputs.inputs.Inputs` lays named arrays out for the encoder, and adds what the model's density
tells of each posterior (:mod:`pymc_amortized.inputs.sketch`).
"""
