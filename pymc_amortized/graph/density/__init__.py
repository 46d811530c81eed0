"""The model's log density, for one data set or for many, with values that are missing integrated out."""
