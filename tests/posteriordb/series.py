"""Series of posteriordb: autoregressions and hidden Markov models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pymc as pm
import pytensor
import pytensor.tensor as pt
from pymc.distributions.transforms import Ordered

Data = Mapping[str, np.ndarray]


def ar(data: Data) -> pm.Model:
    """Return an autoregression of which the first values are given."""
    y, order = data["y"], int(data["K"])
    lags = np.column_stack([y[order - k : len(y) - k] for k in range(1, order + 1)])
    with pm.Model() as model:
        alpha = pm.Normal("alpha", 0, 10)
        beta = pm.Normal("beta", 0, 10, shape=order)
        sigma = pm.HalfCauchy("sigma", 2.5)
        pm.Normal("y", alpha + pt.dot(lags, beta), sigma, observed=y[order:])
    return model


def arma(data: Data) -> pm.Model:
    """Return an autoregressive moving average that comes from its mean, without an error."""
    y = data["y"]

    def logp(
        value: pt.TensorVariable, mu: pt.TensorVariable, phi: pt.TensorVariable, theta: pt.TensorVariable, sigma: Any
    ) -> pt.TensorVariable:
        before = pt.concatenate([mu[None], value[:-1]])
        explained = value - mu - phi * before
        errors = pytensor.scan(
            lambda now, last, theta: now - theta * last,
            sequences=[explained],
            outputs_info=[pt.zeros(())],
            non_sequences=[theta],
            return_updates=False,
        )
        return pt.sum(pm.logp(pm.Normal.dist(0, sigma), errors))

    def random(
        mu: np.ndarray,
        phi: np.ndarray,
        theta: np.ndarray,
        sigma: np.ndarray,
        rng: np.random.Generator,
        size: Any = None,
    ) -> np.ndarray:
        errors = rng.normal(0, sigma, size=len(y))
        series, before, last = np.empty(len(y)), mu, 0.0
        for t, error in enumerate(errors):
            series[t] = before = mu + phi * before + theta * last + error
            last = error
        return series

    with pm.Model() as model:
        mu = pm.Normal("mu", 0, 10)
        phi = pm.Normal("phi", 0, 2)
        theta = pm.Normal("theta", 0, 2)
        sigma = pm.HalfCauchy("sigma", 2.5)
        pm.CustomDist(
            "y", mu, phi, theta, sigma, logp=logp, random=random, signature=f"(),(),(),()->({len(y)})", observed=y
        )
    return model


def forward(emission: pt.TensorVariable, moves: pt.TensorVariable) -> pt.TensorVariable:
    """Return the log density of a series, given its log densities (n, states) in each state.

    All states are as probable as each other at the first value.
    """

    def step(now: pt.TensorVariable, before: pt.TensorVariable, log_moves: pt.TensorVariable) -> pt.TensorVariable:
        return pt.logsumexp(before[:, None] + log_moves, axis=0) + now

    states = emission.shape[1]
    along = pytensor.scan(
        step,
        sequences=[emission[1:]],
        outputs_info=[emission[0] - pt.log(states)],
        non_sequences=[pt.log(moves)],
        return_updates=False,
    )
    return pt.logsumexp(along[-1])


def wander(moves: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """Return states of a Markov chain, which begins in any."""
    first, *draws = rng.uniform(size=length)
    states = [int(first * len(moves))]
    reached = np.cumsum(moves, axis=1)
    for u in draws:
        states.append(min(int(np.searchsorted(reached[states[-1]], u)), len(moves) - 1))
    return np.array(states)


def hmm_example(data: Data) -> pm.Model:
    """Return two hidden states with normal observations."""
    y = data["y"]

    def logp(
        value: pt.TensorVariable, theta1: pt.TensorVariable, theta2: pt.TensorVariable, mu: pt.TensorVariable
    ) -> pt.TensorVariable:
        emission = pm.logp(pm.Normal.dist(mu[None], 1.0), value[:, None])
        return forward(emission, pt.stack([theta1, theta2]))

    def random(
        theta1: np.ndarray, theta2: np.ndarray, mu: np.ndarray, rng: np.random.Generator, size: Any = None
    ) -> np.ndarray:
        return rng.normal(mu[wander(np.stack([theta1, theta2]), len(y), rng)], 1.0)

    with pm.Model() as model:
        theta1 = pm.Dirichlet("theta1", np.ones(2))
        theta2 = pm.Dirichlet("theta2", np.ones(2))
        mu = pm.Normal("mu", [3, 10], 1, transform=Ordered(positive=True), initval=[3.0, 10.0])
        signature = f"(k),(k),(k)->({len(y)})"
        pm.CustomDist("y", theta1, theta2, mu, logp=logp, random=random, signature=signature, observed=y)
    return model


def hmm_drive_exponential(data: Data) -> pm.Model:
    """Return two hidden states with pairs of exponential observations."""
    observed = np.column_stack([data["u"], data["v"]])

    def logp(value: pt.TensorVariable, *parameters: pt.TensorVariable) -> pt.TensorVariable:
        theta1, theta2, phi, rate = parameters
        emission = pt.log(phi) - phi * value[:, :1] + pt.log(rate) - rate * value[:, 1:]
        return forward(emission, pt.stack([theta1, theta2]))

    def random(*parameters: np.ndarray, rng: np.random.Generator, size: Any = None) -> np.ndarray:
        theta1, theta2, phi, rate = parameters
        states = wander(np.stack([theta1, theta2]), len(observed), rng)
        return rng.exponential(1 / np.stack([phi, rate], axis=1)[states])

    return _drive(data, observed, logp, random, Ordered(positive=True))


def hmm_drive_normal(data: Data) -> pm.Model:
    """Return two hidden states with pairs of normal observations."""
    observed = np.column_stack([data["u"], data["v"]])
    sds = np.array([float(data["tau"]), float(data["rho"])])

    def logp(value: pt.TensorVariable, *parameters: pt.TensorVariable) -> pt.TensorVariable:
        theta1, theta2, phi, place = parameters
        emission = pm.logp(pm.Normal.dist(phi, sds[0]), value[:, :1]) + pm.logp(
            pm.Normal.dist(place, sds[1]), value[:, 1:]
        )
        return forward(emission, pt.stack([theta1, theta2]))

    def random(*parameters: np.ndarray, rng: np.random.Generator, size: Any = None) -> np.ndarray:
        theta1, theta2, phi, place = parameters
        states = wander(np.stack([theta1, theta2]), len(observed), rng)
        return rng.normal(np.stack([phi, place], axis=1)[states], sds)

    return _drive(data, observed, logp, random, Ordered())


def _drive(data: Data, observed: np.ndarray, logp: Any, random: Any, order: Ordered) -> pm.Model:
    with pm.Model() as model:
        theta1 = pm.Dirichlet("theta1", data["alpha"][0].astype(float))
        theta2 = pm.Dirichlet("theta2", data["alpha"][1].astype(float))
        phi, rate = (pm.Normal(name, [0, 3], 1, transform=order, initval=[1.0, 3.0]) for name in ("phi", "lambda"))
        parameters = theta1, theta2, phi, rate
        signature = f"(k),(k),(k),(k)->({len(observed)},2)"
        pm.CustomDist("y", *parameters, logp=logp, random=random, signature=signature, observed=observed)
    return model
