"""A posterior and a likelihood that are trained together."""
