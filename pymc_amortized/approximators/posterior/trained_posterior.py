"""What training a posterior leaves behind, and what it can say about arrays."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Self

import numpy as np
import xarray as xr

from pymc_amortized.approximators.fitting.models import sources_again, training_simulator
from pymc_amortized.approximators.fitting.provenance import Provenance
from pymc_amortized.approximators.posterior.compiled import Compiled
from pymc_amortized.correction.approximation import Approximation
from pymc_amortized.correction.draws import Draws, Request
from pymc_amortized.correction.evidence import Evidence, estimate
from pymc_amortized.correction.ladder import FIRST, LADDERS, WEIGHED, draw_proposals
from pymc_amortized.correction.search import ModeSearch
from pymc_amortized.correction.target import PosteriorTarget
from pymc_amortized.graph.data.datasets import DataSets
from pymc_amortized.graph.data.reading import read_given
from pymc_amortized.graph.density.missing import Rule
from pymc_amortized.graph.model.axes import Structure
from pymc_amortized.graph.model.spec import DataVariable, ModelSpec
from pymc_amortized.graph.model.tensors import CompileKwargs
from pymc_amortized.graph.simulation.sending import Sendable
from pymc_amortized.graph.simulation.simulator import Simulator
from pymc_amortized.graph.structure.levels import may_be_funnel
from pymc_amortized.inputs.group_network import GroupNetwork
from pymc_amortized.inputs.inputs import Inputs
from pymc_amortized.inputs.sketch import Sketch
from pymc_amortized.networks.posterior_network import PosteriorNetwork
from pymc_amortized.novelty.reference import extents, features_of
from pymc_amortized.novelty.scores import Reference
from pymc_amortized.numerics.sampling.importance import Weights
from pymc_amortized.numerics.thresholds import THRESHOLDS
from pymc_amortized.results.cards import Card
from pymc_amortized.training import History, TrainingState


@dataclass(frozen=True, eq=False, repr=False)
class TrainedPosterior(Card, Sendable):
    """A trained posterior, as the parts of the library that train, refine, check and compare see it.

    Users hold an :class:`AmortizedPosterior`, which is this record with the methods that read data and write results.

    Attributes
    ----------
    spec : ModelSpec
        Snapshot of the model.
    network : PosteriorNetwork
        The trained network.
    structure : Structure
        What was found about every axis of the data, and why.
    history : History
        Losses during training.
    provenance : Provenance
        How it was trained.
    state : TrainingState
        What training goes on from.
    context : mapping or None
        Sources of the context variables; None after :func:`load`, as files hold none.
    missing : mapping or None
        Rates of missing values, or callables that draw which values are missing.
    gaps : mapping
        How missing values of each variable that may have them are integrated out of the model's density; None where
        they cannot be.
    reference : Reference or None
        Scores of simulations, by which the novelty of data is judged.
    sketch : Sketch or None
        What the model's density tells the network of each posterior.
    compile_kwargs : mapping or None
        Passed to :func:`pymc.compile`.
    local_to : DataSets or None
        The one data set that it was refined for; None for an amortized posterior.
    learned : ModelSpec or None
        The model with a learned likelihood, by whose density draws are corrected.
    groups : tuple of GroupNetwork
        What draws values of groups where the model has no density.
    """

    INSIDE: ClassVar[bool] = True
    NEXT: ClassVar[str] = (
        "dt = posterior.sample(data)\nposterior.table(many)\npma.check_calibration(posterior)\nposterior.save(path)"
    )

    spec: ModelSpec
    network: PosteriorNetwork
    structure: Structure
    history: History
    provenance: Provenance
    state: TrainingState
    context: Mapping[str, Any] | None
    missing: Mapping[str, Any] | None
    gaps: Mapping[str, Rule | None]
    reference: Reference | None = None
    sketch: Sketch | None = None
    compile_kwargs: CompileKwargs | None = None
    local_to: DataSets | None = None
    learned: ModelSpec | None = None
    groups: tuple[GroupNetwork, ...] = ()

    @property
    def weighed_by(self) -> ModelSpec:
        """The model whose density corrects draws: its own, or one with a learned likelihood."""
        return self.learned or self.spec

    @property
    def marks(self) -> dict[str, str]:
        """Attributes of results that rest on a learned density."""
        return {"density": "learned"} if self.learned is not None else {}

    @cached_property
    def inputs(self) -> Inputs:
        """What the network is given of data sets: arguments ``data`` and ``sizes``."""
        return Inputs(self.spec, self.structure, self.sketch)

    @cached_property
    def compiled(self) -> Compiled:
        """What is compiled from the model."""
        return Compiled(self.spec, self.gaps, self.compile_kwargs, self.learned, self.groups)

    @cached_property
    def simulator(self) -> Simulator:
        """Makes data sets like those of training, and their parameters."""
        return self.simulator_of(None, None)

    def simulator_of(self, context: Mapping[str, Any] | None, missing: Mapping[str, Any] | None) -> Simulator:
        """Make a simulator of data sets.

        Parameters
        ----------
        context, missing : mapping, optional
            Sources of context variables and gaps, as in :func:`fit_posterior`; by default those of training.

        Raises
        ------
        ValueError
            When a source is needed that a file does not hold.
        """
        context = self.context if context is None else context
        missing = self.missing if missing is None else missing
        return training_simulator(self.spec, *sources_again(self.spec, context, missing), self.compile_kwargs)

    def read(self, observed: Mapping[str, Any] | xr.Dataset | DataSets | None, batched: bool = False) -> DataSets:
        """Read data sets; a refined posterior knows its own only."""
        if self.local_to is not None and observed is None and not batched:
            return self.local_to
        datasets = read_given(self.spec, self.compiled.limits, observed, batched=batched)
        if self.local_to is not None and (len(datasets) > 1 or not datasets.equals(self.local_to)):
            raise ValueError(
                "this posterior was refined for one data set and is no longer amortized: for other data, sample the "
                "posterior it was refined from, or refine that anew"
            )
        return datasets

    def target(self, datasets: DataSets) -> PosteriorTarget:
        """Posteriors of several data sets, with what it takes to draw from them."""
        datasets, sketch, spec = self.inputs.sketched(datasets), self.sketch, self.weighed_by
        standardizer = self.network.standardizer if sketch is None else sketch.start.standardizer
        search = ModeSearch(
            datasets,
            lambda theta, index: self.compiled.log_density(theta, datasets.one(spec, index)),
            standardizer,
            sketch,
            self.structure.symmetries,
            self.structure.rows,
        )
        return PosteriorTarget(
            spec,
            datasets,
            lambda some, defended: Approximation(self.network, self.inputs, some, defended=defended),
            self.compiled.log_density,
            self.compiled.obstacles(datasets),
            self.compiled.samplers,
            self.network.device,
            standardizer,
            search,
            sketch is not None,
            self.compile_kwargs,
            self.structure.symmetries,
            may_be_funnel(spec, () if sketch is None else sketch.drawn.places.tolist()),
        )

    def approximation(self, datasets: DataSets) -> Approximation:
        """What the network says of the posteriors of several data sets."""
        return Approximation(self.network, self.inputs, datasets)

    def weights_of(self, datasets: DataSets, seed: np.random.SeedSequence) -> list[Weights]:
        """Importance weights of the network's draws for several data sets; only for those that have a density."""
        results = draw_proposals(self.target(datasets), WEIGHED, Request(THRESHOLDS.fewest_proposals, 1), seed)
        return [r.weights for r in results if r.weights is not None]

    def corrected_draws(self, datasets: DataSets, seed: np.random.SeedSequence) -> np.ndarray:
        """Corrected unconstrained draws (n, dim) of one data set that has a density."""
        request = Request(THRESHOLDS.fewest_proposals, 1)
        (result,) = draw_proposals(self.target(datasets), LADDERS["auto"], request, seed)
        return result.theta[0]

    def corrected(self, datasets: DataSets, seed: np.random.SeedSequence) -> list[Draws]:
        """Draws for several data sets, corrected as far as the first proposals do."""
        return draw_proposals(self.target(datasets), FIRST, Request(THRESHOLDS.fewest_proposals // 4, 4), seed)

    def evidence_of(self, datasets: DataSets, proposals: int, seed: np.random.SeedSequence) -> list[Evidence]:
        """Estimate the marginal likelihood of several data sets, by so many proposals for each."""
        return estimate(self.target(datasets), proposals, seed)

    def ood_pvalues(self, datasets: DataSets) -> np.ndarray:
        """How often the model simulates what is as unusual as each data set: (n,); NaN without a reference."""
        if self.reference is None:
            return np.full(len(datasets), np.nan)
        return self.reference.pvalues(self.features_of(datasets), extents(self.spec, datasets))

    def features_of(self, datasets: DataSets) -> np.ndarray:
        """What data sets are compared with simulations by: (n, width)."""
        return features_of(*self.inputs.summarized_by(self.network), datasets)

    def replaced(self, **changes: Any) -> Self:
        """Return the same with other fields; what is compiled from the model is shared."""
        new = replace(self, **changes)
        new.__dict__["compiled"] = self.compiled
        return new

    def __repr__(self) -> str:
        p = self.provenance
        shapes = ", ".join(f"{v.name}{list(v.shape) or ''}" for v in self.spec.parameters)
        data = ", ".join(f"{v.name}{_extent(v)}" for v in self.spec.data)
        structure = str(self.structure).replace("\n", "\n    ")
        return (
            f"{type(self).__name__}({shapes} | {data})\n"
            f"  structure: {structure}\n"
            f"  trained on {p.simulations:,} simulations, held-out loss {p.held_out_loss:.3f}, "
            f"{'settled' if p.settled else 'not settled'}"
            + ("\n  refined for one data set; not amortized" if self.local_to is not None else "")
            + ("\n  draws are corrected by the learned likelihood" if self.learned is not None else "")
        )


def _extent(variable: DataVariable) -> str:
    """Shape, with the names of dimensions whose length varies."""
    names = [d if n is None else str(n) for n, d in zip(variable.shape, variable.dims or variable.shape, strict=True)]
    return f"[{', '.join(map(str, names))}]" if names else ""
