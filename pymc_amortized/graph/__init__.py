"""Reads a PyMC model: its roles, its simulator, its density and its structure. Never imports torch."""
