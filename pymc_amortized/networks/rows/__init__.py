"""The learned density of one row of data as torch modules: what is trained of a likelihood."""
