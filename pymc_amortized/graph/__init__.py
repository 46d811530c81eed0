"""The PyMC model: read, simulated, and its density evaluated. Nothing here imports torch."""
