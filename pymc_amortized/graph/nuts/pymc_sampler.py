"""NUTS on a whitened model: compiled once, run for one data set after the other.

By nutpie where it is installed, as ``pm.sample`` does; else by PyMC's own step method.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from typing import Any, Protocol

import numpy as np
import pymc as pm

from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.numerics.threads import TURN

Values = Mapping[str, np.ndarray]


class OutOfTimeError(Exception):
    """A run was stopped at its deadline."""


@dataclass(frozen=True)
class Settings:
    """How long and how carefully to sample."""

    chains: int
    draws: int
    tune: int
    target_accept: float


@dataclass(frozen=True, eq=False)
class Chains:
    """What a run returns.

    Attributes
    ----------
    z : ndarray (chains, draws, size)
    divergences : int
        After tuning.
    per_draw : mapping of str to ndarray
        ``energy`` and ``tree_depth`` (chains, draws), by PyMC's names.
    """

    z: np.ndarray
    divergences: int
    per_draw: Mapping[str, np.ndarray] = field(default_factory=dict)


class Sampler(Protocol):
    """Draws from the posterior of a whitened model."""

    def __call__(
        self, values: Values, starts: np.ndarray, settings: Settings, seed: np.random.SeedSequence, deadline: float
    ) -> Chains:
        """Run NUTS for one data set.

        Parameters
        ----------
        values : mapping of name to ndarray
            From :meth:`WhitenedModel.values`.
        starts : ndarray (n, size)
            Points at which chains may start.
        settings : Settings
        seed : numpy.random.SeedSequence
        deadline : float
            By ``time.monotonic``.

        Raises
        ------
        OutOfTimeError
            At the deadline.
        """
        ...


def nuts_sampler(model: pm.Model, shared: Mapping[str, Any], compile_kwargs: CompileKwargs | None = None) -> Sampler:
    """Compile a sampler: nutpie's, if it is installed and `compile_kwargs` do not choose a mode that it has not.

    Parameters
    ----------
    model : pymc.Model
        Of one vector, unconstrained.
    shared : mapping of name to shared variable
        What differs between data sets.
    compile_kwargs : mapping, optional
    """
    if find_spec("nutpie") is not None and not (compile_kwargs or {}).get("mode"):
        return NutpieSampler(model)
    return PyMCSampler(model, shared, compile_kwargs)


class NutpieSampler:
    """NUTS of nutpie, which runs all chains at once in threads of its own."""

    def __init__(self, model: pm.Model) -> None:
        import nutpie

        self._sample = nutpie.sample
        self._compiled = nutpie.compile_pymc_model(model)
        (self._name,) = (rv.name for rv in model.free_RVs)
        self._read = {shared.name for shared in self._compiled.shared_var_keys}

    def __call__(
        self, values: Values, starts: np.ndarray, settings: Settings, seed: np.random.SeedSequence, deadline: float
    ) -> Chains:
        """Run NUTS for one data set."""

        def start(chain_seed: Any) -> np.ndarray:
            # by the chain's seed, not in turn: threads ask in any order
            return starts[np.random.default_rng(chain_seed).integers(len(starts))]

        read = {name: value for name, value in values.items() if name in self._read}
        run = self._sample(
            replace(self._compiled.with_data(**read), initial_point_func=start),
            chains=settings.chains,
            draws=settings.draws,
            tune=settings.tune,
            target_accept=settings.target_accept,
            seed=int(seed.generate_state(1)[0]),
            save_warmup=False,
            progress_bar=False,
            blocking=False,
        )
        try:
            tree = run.wait(timeout=None if deadline == np.inf else max(deadline - time.monotonic(), 0.0))
        except TimeoutError:
            run.cancel()
            raise OutOfTimeError from None
        except BaseException:  # an interrupt as well: threads must not go on
            run.cancel()
            raise
        stats = tree.sample_stats
        per_draw = {"energy": stats["energy"].to_numpy(), "tree_depth": stats["depth"].to_numpy()}
        return Chains(tree.posterior[self._name].to_numpy(), int(stats["diverging"].sum()), per_draw)


class PyMCSampler:
    """NUTS of PyMC, one chain after the other."""

    def __init__(self, model: pm.Model, shared: Mapping[str, Any], compile_kwargs: CompileKwargs | None = None) -> None:
        self._model, self._shared = model, shared
        (vector,) = model.free_RVs
        self._name, self._origin = vector.name, {vector.name: np.zeros(vector.type.shape)}
        self._log_density = self._model.logp_dlogp_function(
            ravel_inputs=True, initial_point=self._origin, **(compile_kwargs or {})
        )

    def __call__(
        self, values: Values, starts: np.ndarray, settings: Settings, seed: np.random.SeedSequence, deadline: float
    ) -> Chains:
        """Run NUTS for one data set."""
        runs = []
        with TURN:
            for name, value in values.items():
                self._shared[name].set_value(value)
            for rng in np.random.default_rng(seed).spawn(settings.chains):
                runs.append(self._chain(starts[rng.integers(len(starts))], settings, rng, deadline))
        z, divergences, energy, depth = zip(*runs, strict=True)
        return Chains(np.stack(z), sum(divergences), {"energy": np.stack(energy), "tree_depth": np.stack(depth)})

    def _chain(
        self, start: np.ndarray, settings: Settings, rng: np.random.Generator, deadline: float
    ) -> tuple[np.ndarray, int, np.ndarray, np.ndarray]:
        step = pm.NUTS(
            model=self._model,
            logp_dlogp_func=self._log_density,
            initial_point=self._origin,
            target_accept=settings.target_accept,
            rng=rng,
        )
        step.setup_chain(rng, settings.tune, settings.draws)
        point, draws, stats = {self._name: start}, [], []
        for i in range(settings.tune + settings.draws):
            if time.monotonic() > deadline:
                raise OutOfTimeError
            if i == settings.tune:
                step.stop_tuning()
            point, found = step.step(point)
            if i >= settings.tune:
                draws.append(point[self._name])
                stats.append((found[0]["energy"], found[0]["depth"]))
        energy, depth = np.array(stats).T
        return np.stack(draws), step.divergences, energy, depth
