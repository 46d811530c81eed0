"""What threads do one after another: PyTensor's functions hold their arguments, torch's global generator its state."""

from threading import RLock

TURN = RLock()
"""Held while what is not safe in several threads is compiled or runs; such code holds Python's lock anyway."""
