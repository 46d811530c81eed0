"""The standard multivariate Student t distribution, which is the normal one at infinite degrees of freedom."""

import math

import numpy as np


def log_student_t(squared: np.ndarray, dim: int, freedom: float) -> np.ndarray:
    """Log density (...) in `dim` dimensions, given squared distances (...) from the middle."""
    if math.isinf(freedom):
        return -0.5 * squared - 0.5 * dim * math.log(2 * math.pi)
    constant = math.lgamma((freedom + dim) / 2) - math.lgamma(freedom / 2) - 0.5 * dim * math.log(freedom * math.pi)
    return constant - 0.5 * (freedom + dim) * np.log1p(squared / freedom)


def draw_student_t(number: int, dim: int, freedom: float, rng: np.random.Generator) -> np.ndarray:
    """Draw (number, dim)."""
    scale = rng.chisquare(freedom, number) / freedom
    return rng.standard_normal((number, dim)) / np.sqrt(scale)[:, None]
