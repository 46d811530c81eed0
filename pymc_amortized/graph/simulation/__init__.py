"""The simulator: a PyMC model compiled into one function that draws many data sets, and who calls it."""
