"""Whether a posterior, and its model, can be trusted."""
