"""What the ``fit_*`` functions return; the only place where the model's graph and the networks meet."""
