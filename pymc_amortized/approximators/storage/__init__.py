"""Files: weights and a description, never code."""
