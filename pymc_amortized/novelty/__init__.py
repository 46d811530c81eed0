"""How unlike the simulations a data set is: its features, their scores, and p-values against a reference."""
