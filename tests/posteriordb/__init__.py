"""Models of posteriordb in PyMC, their data, and summaries of their reference draws."""
