"""Simulations for the user, and from the user."""
