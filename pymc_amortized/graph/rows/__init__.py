"""The rows of an observed variable: what draws them, and their exact or learned density in the model's graph."""
