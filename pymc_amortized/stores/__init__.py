"""Simulations and results on disk, in chunks: larger than memory, made by any process, finished by another call."""
