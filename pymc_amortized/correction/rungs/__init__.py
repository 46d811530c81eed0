"""Rungs of the ladder from the network's draws to corrected ones."""
