"""The simulator of a model: the prior predictive distribution, at sizes, covariates and gaps from their sources."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pymc_amortized.graph.data.simulations import SimulationError, Simulations, concatenate, too_few
from pymc_amortized.graph.model.operations import core_op, is_drawn_by_user
from pymc_amortized.graph.model.sizes import group_sizes, parts_of
from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.attempts import SMALLEST_ACCEPTANCE, Attempts, fresh
from pymc_amortized.graph.simulation.context import ContextSampler, ContextSource
from pymc_amortized.graph.simulation.parallel import Maker, Workers, in_chunks
from pymc_amortized.logs import logger


class Simulator(Maker):
    """Compiled simulator of a model's prior predictive distribution.

    Parameters
    ----------
    spec : ModelSpec
    context : ContextSource, optional
        Draws the context variables; only needed when the spec has some.
    deterministics : bool or sequence of str
        Whether to compute the model's deterministics too; or the names of those to compute.
    compile_kwargs : mapping, optional
        Passed to :func:`pymc.compile`.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        context: ContextSource | None = None,
        deterministics: bool | Sequence[str] = True,
        compile_kwargs: CompileKwargs | None = None,
    ) -> None:
        self.spec = spec
        self.context = context or ContextSampler(spec, {})
        if isinstance(deterministics, bool):
            deterministics = spec.deterministics if deterministics else ()
        self.attempts = Attempts(spec, deterministics, compile_kwargs=compile_kwargs)
        self._ends_checked = False

    def __call__(
        self,
        n: int,
        seed: int | np.random.SeedSequence,
        *,
        cores: int = 1,
        mixed: bool = True,
        workers: Workers | None = None,
    ) -> Simulations:
        """Simulate until `n` usable draws are there.

        Where sizes differ they are made in groups of one size, and then mixed unless that is not wanted. The result is
        a pure function of `n` and `seed`: it does not depend on `cores`, or on whether `workers` make them.

        Raises
        ------
        SimulationError
            When fewer than one in a hundred simulations can be used.
        """
        seed = fresh(seed)
        self.check_ends()
        parts: list[Simulations] = []
        usable = tried = 0
        while usable < n:
            rate = max(usable / tried, SMALLEST_ACCEPTANCE) if tried else 1.0
            sizes = self._chunk_sizes(int(np.ceil((n - usable) / rate)))
            tasks = list(zip(sizes, seed.spawn(len(sizes)), strict=True))
            parts += in_chunks(self, tasks, cores=cores, workers=workers)
            tried += sum(sizes)  # what was out of order by itself was not simulated
            usable = sum(len(p) for p in parts)
            if tried >= 1000 and usable < SMALLEST_ACCEPTANCE * tried:
                raise SimulationError(too_few(concatenate(parts)))
        simulations = concatenate(parts)
        if not self.spec.sizes or not mixed:
            return simulations if len(simulations) == n else simulations.take(slice(n))
        (mixing,) = seed.spawn(1)  # sizes come in groups, and are wanted in any order
        return simulations.take(np.random.default_rng(mixing).permutation(len(simulations))[:n])

    def of_lengths(self, n: int, seed: int | np.random.SeedSequence, lengths: dict[str, int]) -> Simulations:
        """Simulate until `n` usable draws of one size are there; the lengths are among their data."""
        return self.attempts.of_lengths(n, seed, lengths, self.context)

    def _attempted(self, n: int, seed: np.random.SeedSequence) -> Simulations:
        """Attempt `n` simulations of one size in one call of the compiled function."""
        context_seed, seed = seed.spawn(2)
        if not self.spec.sizes and not any(v.missing for v in self.spec.observed):
            return self.attempts(n, seed, {}, self.context(n, context_seed, {}))
        lengths_seed, context_seed, gaps_seed = context_seed.spawn(3)
        lengths = self.context.lengths(lengths_seed)
        made = self.attempts(n, seed, lengths, self.context(n, context_seed, lengths))
        gaps = self.context.gaps(len(made), gaps_seed, lengths)
        return self.attempts.padded(replace(made, missing=gaps), lengths)

    def check_ends(self) -> None:
        """Refuse, once, a model that cannot be simulated at all, or at the smallest or largest lengths."""
        if self._ends_checked:
            return
        before = _numpy_state()
        for lengths in self.context.ends:
            # of one size, 32 draws tell a model of which each one raises: thousands would take minutes to say so
            number = 4 if lengths else 32
            context_seed, seed = np.random.SeedSequence(0).spawn(2)
            made = self.attempts(number, seed, lengths, self.context(number, context_seed, lengths))
            if lengths:
                self._check_end(made, lengths)
            elif not len(made) and all(reason.startswith("raised") for reason in made.dropped):
                raise SimulationError(too_few(made))
        self._warn_unrepeatable(before)
        self._ends_checked = True

    def _warn_unrepeatable(self, before: tuple[bytes, int]) -> None:
        """Warn of functions that draw without the generator they are given: same seeds give other numbers then.

        NumPy's global state is compared with what it was before the first draws.
        """
        if not self.context.ends:  # like a data set in hand: the training has looked
            return
        lengths = self.context.ends[0]
        context_seed, seed = np.random.SeedSequence(0).spawn(2)
        one, two = (
            self.attempts(2, fresh(seed), lengths, self.context(2, fresh(context_seed), lengths)) for _ in range(2)
        )
        drawn = [one.variables | one.data, two.variables | two.data]
        differ = [name for name in drawn[0] if not np.array_equal(drawn[0][name], drawn[1][name], equal_nan=True)]
        shared = _numpy_state() != before
        if not (differ or shared):
            return
        own = [rv.name for rv in self.spec.model.basic_RVs if is_drawn_by_user(core_op(rv))]
        source = "NumPy's global random numbers (np.random)" if shared else "random numbers of its own"
        logger.warning(
            "The function that draws %s uses %s instead of the generator that it is given: runs with the same "
            "random_seed differ, or draws repeat each other. Draw by that generator: rng.normal(...), or "
            "random_state=rng in SciPy.",
            " or ".join(repr(name) for name in differ[:1] or own) or "the model's values",
            source,
        )

    def _check_end(self, made: Simulations, lengths: dict[str, int]) -> None:
        raised = next((reason for reason in made.dropped if reason.startswith("raised")), None)
        shapes = {v.name: (made.data[v.name].shape[1:], v.shape_at(lengths)) for v in self.spec.data}
        wrong = next((f"{name!r} has shape {a}" for name, (a, b) in shapes.items() if a != b), None)
        if wrong or (len(made) == 0 and raised):
            at_lengths = " and ".join(f"{dim} is {n}" for dim, n in lengths.items())
            raise ValueError(
                f"the model cannot be simulated where {at_lengths} ({wrong or raised}): arrays that have the "
                "dimension must be pm.Data with dims=..., not constants of the length they have now"
            )

    def _chunk_sizes(self, n: int) -> list[int]:
        return group_sizes(n) if self.spec.sizes else parts_of(n, self.attempts.largest_chunk)


def _numpy_state() -> tuple[bytes, int]:
    """State of NumPy's global random numbers."""
    _, key, position, *_ = np.random.get_state()  # noqa: NPY002
    return np.asarray(key).tobytes(), int(position)
