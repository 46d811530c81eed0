"""Differential equations of posteriordb."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt

Data = Mapping[str, np.ndarray]


def lotka_volterra(data: Data) -> pm.Model:
    """Return prey and predators of 21 years, measured with lognormal errors."""
    years, substeps = len(data["ts"]), 20
    observed = np.concatenate([data["y_init"][None], data["y"]]).astype(float)
    width = 1 / substeps

    def slope(state: pt.TensorVariable, theta: pt.TensorVariable) -> pt.TensorVariable:
        """Derivative of the logarithms of both populations."""
        size = pt.exp(state)
        return pt.stack([theta[0] - theta[1] * size[1], -theta[2] + theta[3] * size[0]])

    def step(state: pt.TensorVariable, theta: pt.TensorVariable) -> pt.TensorVariable:
        """Runge and Kutta's of fourth order."""
        first = slope(state, theta)
        second = slope(state + width / 2 * first, theta)
        third = slope(state + width / 2 * second, theta)
        fourth = slope(state + width * third, theta)
        return state + width / 6 * (first + 2 * second + 2 * third + fourth)

    with pm.Model() as model:
        theta = pm.TruncatedNormal("theta", [1, 0.05, 1, 0.05], [0.5, 0.05, 0.5, 0.05], lower=0)
        z_init = pm.LogNormal("z_init", np.log(10), 1, shape=2)
        sigma = pm.LogNormal("sigma", -1, 1, shape=2)
        start = pt.log(z_init)
        along = pytensor.scan(
            step, outputs_info=[start], non_sequences=[theta], n_steps=years * substeps, return_updates=False
        )
        log_size = pt.concatenate([start[None], along[substeps - 1 :: substeps]])
        pm.LogNormal("y", log_size, sigma, observed=observed)
    return model


def one_comp_mm_elim_abs(data: Data) -> pm.Model:
    """Return a concentration that is absorbed at a rate, and eliminated by a reaction that saturates.

    What is eliminated is found by an implicit rule of second order that damps whatever is fast (TR-BDF2; Bank et al.
    1985). Its equations are quadratic, because elimination is V c / (K + c); what is absorbed is known exactly.
    """
    times, dose, volume = data["times"], float(data["D"]), float(data["V"])
    width = 0.1
    steps = round(float(times[-1]) / width)
    part = 2 - np.sqrt(2)

    def solved(known: pt.TensorVariable, k_m: pt.TensorVariable, rate: pt.TensorVariable) -> pt.TensorVariable:
        """Return the c for which c and what is eliminated from it, at that rate, are what is known."""
        half = (known - k_m - rate) / 2
        return half + pt.sqrt(half**2 + known * k_m)

    def step(
        before: Any, between: Any, after: Any, lost: pt.TensorVariable, k_m: pt.TensorVariable, rate: pt.TensorVariable
    ) -> pt.TensorVariable:
        """Return minus what is eliminated after a step; `before` to `after` are what is absorbed."""
        c = lost + before
        middle = solved(c - rate * c / (k_m + c) + between - before, k_m, rate) - between
        known = (middle - (1 - part) ** 2 * lost) / (part * (2 - part))
        return solved(known + after, k_m, rate) - after

    with pm.Model() as model:
        k_a, k_m, v_m, sigma = (pm.HalfCauchy(name, 1) for name in ("k_a", "K_m", "V_m", "sigma"))
        grid = np.arange(steps)[:, None] + np.array([0, part, 1])
        absorbed = -dose / volume * pt.expm1(-k_a * width * grid)
        lost = pytensor.scan(
            step,
            sequences=[absorbed[:, 0], absorbed[:, 1], absorbed[:, 2]],
            outputs_info=[pt.zeros(())],
            non_sequences=[k_m, part / 2 * width * v_m / volume],
            return_updates=False,
        )
        at = np.round(times / width).astype(int) - 1
        concentration = pt.maximum((lost + absorbed[:, 2])[at], 1e-12)
        pm.LogNormal("C_hat", pt.log(concentration), sigma, observed=data["C_hat"])
    return model
