"""NUTS for many data sets of one model, compiled once."""
