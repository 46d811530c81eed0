"""From the network's draws to an answer with a stage: weights by the exact density, more proposals, NUTS."""
