"""From raw named arrays to the numbers that a summary network takes, and back for parameters."""
