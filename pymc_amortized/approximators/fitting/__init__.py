"""What the four ``fit_*`` functions share: arguments, seeds, simulations, plans, provenance."""
