"""What all tests share."""

import os

# Before anything imports matplotlib, and inherited by processes that tests start: no windows.
os.environ["MPLBACKEND"] = "Agg"
