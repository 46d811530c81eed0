"""From arrays to an ArviZ DataTree, and back."""
