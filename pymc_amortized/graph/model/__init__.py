"""What a PyMC model is made of: variables, axes, sizes; and what is refused by name."""
