"""Importance weights, adaptive and tempered sampling: methods that draw from a density, or weigh draws by it."""
