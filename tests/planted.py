"""A posterior in closed form that stands in for a trained network, and ways to spoil it."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pymc as pm
import torch
from small_models import brief_fit

import pymc_amortized as pma
from pymc_amortized.networks.encoding.standardizer import ParameterStandardizer
from pymc_amortized.networks.posterior_network import Context

PRIOR_SD, ROWS = 2.0, 5
Moments = tuple[torch.Tensor, torch.Tensor]
"""Posterior means and sds, (data sets, 2)."""
Plant = Callable[[Moments, torch.Tensor], Moments]
"""Of the right moments and the data's means (data sets, 2), what the network believes."""


def two_means() -> pm.Model:
    with pm.Model(coords={"group": ["a", "b"], "obs": range(ROWS)}) as model:
        mu = pm.Normal("mu", 0, PRIOR_SD, dims="group")
        pm.Deterministic("total", mu.sum())
        pm.Normal("y", mu[:, None], 1, observed=np.zeros((2, ROWS)), dims=("group", "obs"))
    return model


PRECISION = ROWS + PRIOR_SD**-2


def exact(y: torch.Tensor) -> Moments:
    return y.sum(-1) / PRECISION, torch.full(y.shape[:2], PRECISION**-0.5, dtype=torch.float64)


class Everywhere:
    """An encoder that has seen it all."""

    def outside(self, data: Any, sizes: Any) -> dict[str, np.ndarray]:
        return {}


class Known:
    """Gives the draws of independent normals where a network would give its own."""

    device = torch.device("cpu")
    encoder = Everywhere()

    def __init__(self, plant: Plant, correlation: float = 0.0) -> None:
        self.plant, self.correlation = plant, correlation
        self.standardizer = ParameterStandardizer(2)

    def context(self, data: dict[str, np.ndarray], *, sizes: Any = None) -> Context:
        return Context(torch.as_tensor(data["y"]).mean(-1), None)

    def sample(self, draws: int, data: Any, generator: torch.Generator, *, sizes: Any = None) -> Any:
        y = torch.as_tensor(data["y"], dtype=torch.float64)
        mean, sd = self.plant(exact(y), y.mean(-1))
        z = torch.randn(draws, *mean.shape, generator=generator, dtype=torch.float64)
        log_q = (-0.5 * z**2 - torch.log(sd)).sum(-1) - np.log(2 * np.pi)
        z[..., 1] = self.correlation * z[..., 0] + (1 - self.correlation**2) ** 0.5 * z[..., 1]
        return mean + sd * z, log_q - np.log(1 - self.correlation**2) / 2

    sample_within = sample

    def log_prob(self, theta: Any, data: Any, *, sizes: Any = None) -> torch.Tensor:
        y = torch.as_tensor(data["y"], dtype=torch.float64)
        mean, sd = self.plant(exact(y), y.mean(-1))
        z = (torch.as_tensor(theta) - mean) / sd
        root = (1 - self.correlation**2) ** 0.5
        z[..., 1] = (z[..., 1] - self.correlation * z[..., 0]) / root
        return (-0.5 * z**2 - torch.log(sd)).sum(-1) - np.log(2 * np.pi * root)


def right(moments: Moments, means: torch.Tensor) -> Moments:
    return moments


def over_confident(moments: Moments, means: torch.Tensor) -> Moments:
    return moments[0], 0.7 * moments[1]


def under_confident(moments: Moments, means: torch.Tensor) -> Moments:
    return moments[0], 1.4 * moments[1]


def biased_in_b(moments: Moments, means: torch.Tensor) -> Moments:
    return moments[0] + torch.tensor([0.0, 0.4]) * moments[1], moments[1]


def untrained(moments: Moments, means: torch.Tensor) -> Moments:
    return torch.sin(7 * means), torch.ones_like(means)


def swapped(moments: Moments, means: torch.Tensor) -> Moments:
    return moments[0].flip(-1), moments[1]


def ignoring(moments: Moments, means: torch.Tensor) -> Moments:
    return torch.zeros_like(means), torch.full_like(means, PRIOR_SD)


def wrong_where_high(moments: Moments, means: torch.Tensor) -> Moments:
    """Over-confident where the data are high, under-confident where they are low: right on average, nearly."""
    return moments[0], torch.where(means > 0, 0.75, 1.5) * moments[1]


@cache
def base() -> pma.AmortizedPosterior:
    """Return a briefly trained posterior of `two_means`."""
    return brief_fit(two_means(), sketch=False)


def standing_in(plant: Plant = right, correlation: float = 0.0) -> pma.AmortizedPosterior:
    """Return a posterior of `two_means` that believes what was planted."""
    posterior = replace(base(), network=Known(plant, correlation), reference=None)
    for name in ("simulator", "compiled"):  # compiled once for all of them
        posterior.__dict__[name] = getattr(base(), name)
    return posterior
