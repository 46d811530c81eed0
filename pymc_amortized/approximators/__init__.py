"""What the ``fit_*`` functions return, and how it is trained; where the model's graph and the networks meet.

Whichever part is imported, the readers are too, so that every kind of object can be saved.
"""

import pymc_amortized.approximators.load  # noqa: F401
