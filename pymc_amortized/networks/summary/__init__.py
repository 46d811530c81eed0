"""Summary networks: one file for each structure of data, with its options, and the network that joins them."""
