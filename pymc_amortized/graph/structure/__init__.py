"""What the axes of the data are (exchangeable, sequence, groups), found in the density and the graph."""
