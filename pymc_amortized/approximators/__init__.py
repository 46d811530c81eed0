"""What the ``fit_*`` functions return, and how it is trained; where the model's graph and the networks meet."""
