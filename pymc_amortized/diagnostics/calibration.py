"""Calibration over everything that a model can simulate."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import xarray as xr
from arviz_base import make_attrs

from pymc_amortized.approximators.fitting.arguments import (
    Correction,
    check_correction,
    check_integer,
    read_mapping,
    read_names,
)
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.diagnostics.around import Around
from pymc_amortized.diagnostics.coordinates import (
    compute_coverage,
    compute_scores,
    label_elements,
    lay_out,
    lay_out_along,
    lay_out_findings,
)
from pymc_amortized.diagnostics.simulated import sample_known, simulate_known
from pymc_amortized.diagnostics.statistics import (
    Quantity,
    count_effective_draws,
    evaluate_quantity,
    flatten_draws,
    rank_distance,
    rank_truth,
    standardize,
    summarize_draws,
)
from pymc_amortized.diagnostics.verdict import (
    LEVEL,
    Finding,
    judge_quantities,
    log_verdict,
    select_wrong,
)
from pymc_amortized.graph.data.datasets import DATASET_DIM, DISTANCE, LOG_JOINT, DataSets, of_simulations
from pymc_amortized.graph.data.simulations import Simulations
from pymc_amortized.graph.model.tensors import evaluated_shapes
from pymc_amortized.logs import logger
from pymc_amortized.numerics.blocks import blocks
from pymc_amortized.results.version import MADE_BY
from pymc_amortized.training.progress import CountBar

FEWEST_DRAWS, FEWEST_JUDGED = 20, 10
"""Below this, ranks say little."""


def check_calibration(
    posterior: AmortizedPosterior,
    observed: Mapping[str, Any] | xr.Dataset | None = None,
    *,
    num_datasets: int = 500,
    draws: int = 1000,
    correction: Correction = None,
    max_time: float | Literal["auto"] | None = "auto",
    var_names: Sequence[str] | None = None,
    lengths: Mapping[str, int] | None = None,
    quantities: Mapping[str, Quantity] | None = None,
    simulations: xr.DataTree | None = None,
    context: Mapping[str, Any] | None = None,
    missing: Mapping[str, Any] | None = None,
    random_seed: RandomState = None,
    progressbar: bool = True,
) -> xr.DataTree:
    """Check a posterior on data sets of which the true parameters are known, and warn of what is off.

    Parameters
    ----------
    posterior : AmortizedPosterior
        From :func:`fit_posterior` or :func:`load`.
    observed : mapping of name to array_like, or xarray.Dataset, optional
        One data set, as in ``posterior.sample``. The check is then around it: data are replicated from its posterior,
        with its size, covariates and gaps, and each is inferred anew together with it (posterior SBC). That tells
        whether results for these data can be trusted, and not how they are on average over the prior.
    num_datasets : int
        Data sets to simulate.
    draws : int
        Posterior draws for each.
    correction : {None, "psis", "nuts", "auto"}
        Which draws are judged: the network's own, or those that ``posterior.sample`` corrects.
    max_time : float, "auto" or None
        As in ``posterior.sample``, for each batch of at most 64 data sets. Those that are marked "failed" or "not
        reached" are left out of what is judged, and that is logged. Which they are depends on the data alone: ranks
        of the others stay uniform.
    var_names : sequence of str, optional
        Free variables and deterministics to check; all free variables by default.
    lengths : mapping of dim to int, optional
        Check data sets of this size alone; of all sizes, as in training, by default.
    quantities : mapping of name to callable, optional
        Further test quantities ``(draws, data) -> xarray.DataArray``: functions of one data set's draws, an
        ``xarray.Dataset`` of all free variables and deterministics with dims ``chain`` and ``draw``, and of its data,
        a dataset of observed variables, context and constants. They return one number for each draw.
    simulations : xarray.DataTree, optional
        Simulations of yours, as in :func:`fit_posterior`, where the model cannot simulate; at most `num_datasets` are
        used. They must not have served for training.
    context, missing : mapping, optional
        As in :func:`fit_posterior`; needed for posteriors that were read from a file.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random; a generator is advanced.
    progressbar : bool
        Whether to show how far it is.

    Returns
    -------
    xarray.DataTree
        Variables keep their dims. Beside the parameters, ``log_joint`` is the joint log density of parameters and data
        (``lp`` in ``sample_stats``), and ``tarp`` tests expected coverage with random points. Where a variable or dim
        of the model has the name of a dim below, the dim ends with an underscore (``level_``).

        - ``prior_sbc``: PIT values, for ``az.plot_ecdf_pit`` and :func:`plot_calibration`. Uniform if calibrated.
        - ``calibration``: for each quantity, along ``metric``, ``p_value`` of three tests together (``p_uniform``: the
          simultaneous ECDF band; ``p_bias``, ``p_spread``: mean and variance of the normal scores), ``p_adjusted``
          for the number of quantities, ``bias`` in posterior sds, ``sd_ratio`` (below 1: over-confident) and the
          largest ``deviation`` of the ECDF. The attribute ``calibrated`` is 1 where no quantity is off.
        - ``coverage``: share of true values within central intervals of each nominal ``level``, and of ``tarp``;
          ``band_lower`` and ``band_upper`` hold a calibrated curve with 95 % probability.
        - ``recovery``: along ``estimate``, the ``true`` value and the posterior ``mean``, ``median`` and ``sd``, for
          each data set.
        - ``contraction``: along ``score``, ``contraction`` (one minus posterior over prior variance) and ``z_score``
          (posterior mean minus true value, in posterior sds), for each data set.
        - ``sample_stats``: ``effective_draws`` and ``stage`` of each data set and, where there are weights,
          ``pareto_k``.

    Raises
    ------
    ValueError, TypeError, KeyError
        When an argument does not fit the model; the message names it.

    Notes
    -----
    Simulation-based calibration (Talts et al. 2018, arXiv 1804.06788) with the joint density as a test
    quantity, because a posterior that ignores the data passes without one (Modrák et al. 2023, arXiv 2211.02383);
    simultaneous ECDF bands (Säilynoja et al. 2022); expected coverage by random points (Lemos et al. 2023, arXiv
    2302.03026); around a data set in hand, posterior SBC (Säilynoja et al. 2025, arXiv 2502.03279), by weights with the
    likelihood of these data; contraction and z-scores (Betancourt 2018; Schad et al. 2021). Ties, as in discrete
    quantities, are broken at random. Corrected draws repeat each other: their ranks are spread as those of as many
    draws as their effective number.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> check = pma.check_calibration(posterior, num_datasets=50, draws=100, random_seed=1, progressbar=False)
    >>> float(check["recovery"]["mu"].sel(estimate="true").size)
    50.0
    """
    spec = posterior.spec
    num_datasets = check_integer("num_datasets", num_datasets, smallest=FEWEST_JUDGED)
    draws = check_integer("draws", draws, smallest=FEWEST_DRAWS)
    check_correction(posterior.weighed_by, correction)
    free = [p.name for p in spec.drawn]
    names = free if var_names is None else read_names(var_names, free + list(spec.deterministics))
    asked = _read_quantities(quantities, names, {"chain", "draw", DATASET_DIM, *spec.model.dim_lengths})
    simulate_seed, sample_seed, own_seed = seed_sequence(random_seed).spawn(3)
    around = None
    if observed is not None:
        given = {"lengths": lengths, "simulations": simulations, "context": context, "missing": missing}
        if others := [name for name, value in given.items() if value is not None]:
            raise ValueError(
                f"observed and {', '.join(others)} exclude each other: replicated data are like those in hand"
            )
        around = Around(posterior, posterior.read(observed))
        around.check()
        known = around.simulate(num_datasets, simulate_seed)
    else:
        known = simulate_known(
            posterior,
            num_datasets,
            simulate_seed,
            lengths=lengths,
            simulations=simulations,
            context=context,
            missing=missing,
        )
    check = Check(posterior, names, asked, draws, correction, np.random.default_rng(own_seed), around, max_time)
    check.run(known, sample_seed, progressbar=progressbar)
    tree, findings = check.tree()
    log_verdict(
        findings,
        f"Calibration on {len(known)} {'simulated' if around is None else 'replicated'} data sets",
        check.advice(),
    )
    return tree


def _read_quantities(quantities: Any, names: Sequence[str], dims: set[str]) -> dict[str, Quantity]:
    asked = read_mapping("quantities", quantities)
    for name, quantity in asked.items():
        if not callable(quantity):
            raise TypeError(f"quantities[{name!r}] must be callable as (draws, data), got {type(quantity).__name__}")
    own = sorted({LOG_JOINT, DISTANCE} & set(names))
    if own:
        raise ValueError(f"var_names: {own} are names of the check's own quantities: leave these variables out")
    taken = sorted({*names, *dims, LOG_JOINT, DISTANCE} & set(asked))
    if taken:
        raise ValueError(f"quantities: the names {taken} are taken")
    return asked


def _split_batches(number: int, values_per_dataset: int) -> list[slice]:
    """Split data sets: 32 MiB of draws at once, of which copies are made; few enough for a progress bar to move."""
    size = int(np.clip(2**22 // values_per_dataset, 1, 64))
    return list(blocks(number, size))


@dataclass
class Check:
    """Collects statistics of batches, and lays them out."""

    posterior: AmortizedPosterior
    names: list[str]
    quantities: dict[str, Quantity]
    draws: int
    correction: Correction
    rng: np.random.Generator
    around: Around | None = None
    max_time: float | Literal["auto"] | None = "auto"
    pits: list[dict[str, np.ndarray]] = field(default_factory=list)
    recovered: list[dict[str, np.ndarray]] = field(default_factory=list)
    stats: list[dict[str, np.ndarray]] = field(default_factory=list)
    pairs: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)
    """True values and one draw, standardized, (data sets, columns)."""
    template: xr.Dataset | None = None
    """Variables of the first data set's first draw: dims and coordinates."""

    @property
    def _drawn(self) -> list[str]:
        """Variables to draw; a user's quantity may read any."""
        spec = self.posterior.spec
        every = [p.name for p in spec.drawn]
        if self.quantities:
            return every + list(spec.deterministics)
        return self.names if self.around is None else list(dict.fromkeys([*every, *self.names]))

    @property
    def values_per_dataset(self) -> int:
        """Values of draws for each data set, about."""
        model = self.posterior.spec.model
        shapes = evaluated_shapes(model, [model[name] for name in self._drawn])
        return self.draws * (sum(int(np.prod(shape, dtype=int)) for shape in shapes.values()) + 1)

    def run(self, known: Simulations, seed: np.random.SeedSequence, *, progressbar: bool) -> None:
        """Go through simulated data sets in batches of bounded memory."""
        batches = _split_batches(len(known), self.values_per_dataset)
        with CountBar("Checking", len(known), shown=progressbar) as progress:
            for batch, child in zip(batches, seed.spawn(len(batches)), strict=True):
                self.add(known.take(batch), child)
                progress.advance(batch.stop - batch.start)

    def add(self, known: Simulations, seed: np.random.SeedSequence) -> None:
        """Draw for a batch of simulated data sets, and keep what is said of the true values."""
        datasets = of_simulations(known)
        tree = sample_known(self.posterior, datasets, self.draws, self.correction, self._drawn, seed, self.max_time)
        truth = self._truth(known)
        effective = count_effective_draws(tree, self.names)
        if self.around is not None:
            tree, share = self.around.reweighed(tree, self.rng)
            effective = np.maximum(effective * share, 1.0)
        posterior, stats = (tree[group].to_dataset() for group in ("posterior", "sample_stats"))
        drawn = {name: flatten_draws(posterior[name]) for name in self.names}
        every = truth
        drawn, truth = self._of_one_group(drawn, truth, datasets)
        pits = {name: rank_truth(values, truth[name], self.rng, effective) for name, values in drawn.items()}
        if "lp" in stats:
            log_joint = self.posterior.compiled.log_joint(known.unconstrained, datasets)
            pits[LOG_JOINT] = rank_truth(flatten_draws(stats["lp"]), log_joint, self.rng, effective)
        near, near_truth = standardize(drawn, truth)
        pits[DISTANCE] = rank_distance(near, near_truth, self.rng, effective)
        self.pairs.append((near_truth, near[self.rng.integers(len(near), size=len(known)), np.arange(len(known))]))
        for name, quantity in self.quantities.items():
            pits[name] = rank_truth(*evaluate_quantity(name, quantity, tree, every), self.rng, effective)
        self.pits.append(pits)
        recovered = {name: {"true": truth[name]} | summarize_draws(values) for name, values in drawn.items()}
        self.recovered.append({name: np.stack([*r.values()]) for name, r in recovered.items()})
        k = stats["pareto_k"].to_numpy() if "pareto_k" in stats else np.full(len(known), np.nan)
        self.stats.append({"effective_draws": effective, "pareto_k": k, "stage": stats["stage"].to_numpy()})
        if self.template is None:
            first = dict.fromkeys([DATASET_DIM, "chain", "draw", *self.posterior.spec.largest], 0)
            self.template = posterior[self.names].isel(first, drop=True, missing_dims="ignore")

    def _of_one_group(
        self, drawn: dict[str, np.ndarray], truth: dict[str, np.ndarray], datasets: DataSets
    ) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Along dims whose length differs, take one entry of each data set at random: their ranks are pooled."""
        chosen = {dim: self.rng.integers(n) for dim, n in datasets.lengths.items()}
        drawn, truth, sets = dict(drawn), dict(truth), np.arange(len(datasets))
        for name in self.names:
            dims = self.posterior.spec.model.named_vars_to_dims.get(name) or ()
            for axis in reversed([i for i, dim in enumerate(dims) if dim in chosen]):
                own = chosen[dims[axis]]
                drawn[name] = np.moveaxis(drawn[name], 2 + axis, 2)[:, sets, own]
                truth[name] = np.moveaxis(truth[name], 1 + axis, 1)[sets, own]
        return drawn, truth

    def _truth(self, known: Simulations) -> dict[str, np.ndarray]:
        derived = [name for name in self._drawn if name not in known.variables]
        if not derived:
            return known.variables
        compiled, datasets = self.posterior.compiled, of_simulations(known)
        if self.posterior.spec.locals:
            return known.variables | compiled.derived(known.variables, datasets, derived)
        return known.variables | compiled.variables_at(known.unconstrained, datasets, derived)

    def tree(self) -> tuple[xr.DataTree, list[Finding]]:
        """Lay out everything, with what was found."""
        assert self.template is not None
        template = self.template
        pits = _concatenate(self.pits)
        stats = _concatenate(self.stats)
        recovered = {name: np.concatenate([r[name] for r in self.recovered], axis=1) for name in self.names}
        for name in pits.keys() - set(self.names):
            template = template.assign({name: ((), 0.0)})
        template = template[list(pits)]
        settled = ~np.isin(stats["stage"], ["failed", "not reached"])
        number, judged = len(settled), int(settled.sum())
        if judged < number:
            logger.warning(
                "%d of %d data sets were not settled, and are left out: only answers that are not marked are judged "
                "(max_time=None gives them all the time they need).",
                number - judged,
                number,
            )
        if judged >= FEWEST_JUDGED:
            pits = {name: values[settled] for name, values in pits.items()}
        findings = judge_quantities(
            pits, {str(name): label_elements(values) for name, values in template.data_vars.items()}
        )
        wrong = select_wrong(findings)
        attrs = {"num_datasets": number, "draws": self.draws, "correction": self.correction or "none"}
        verdict = {"calibrated": int(not wrong), "level": LEVEL, "off": "; ".join(f.label for f in wrong)}
        parameters = template[self.names]
        groups = {
            "prior_sbc": lay_out(template, ["chain", "draw"], {name: values[None] for name, values in pits.items()}),
            "calibration": lay_out_findings(findings, template).assign_attrs(verdict),
            "coverage": compute_coverage(template, pits, len(pits[DISTANCE])),
            "recovery": lay_out_along("estimate", ["true", "mean", "median", "sd"], parameters, recovered),
            "contraction": lay_out_along("score", ["contraction", "z_score"], parameters, compute_scores(recovered)),
            "sample_stats": xr.Dataset(
                {name: (DATASET_DIM, values) for name, values in stats.items()}, {DATASET_DIM: np.arange(number)}
            ),
        }
        made = make_attrs(MADE_BY | attrs)
        tree = xr.DataTree.from_dict({name: group.assign_attrs(made | group.attrs) for name, group in groups.items()})
        return tree, findings

    def advice(self) -> str:
        """What to do where something is off."""
        spec = self.posterior.weighed_by
        train = "Train longer (posterior = posterior.continue_training())"
        if self.correction is not None and self.posterior.learned is not None:
            return (
                "These draws are corrected by the learned likelihood: check_calibration(correction=None) tells whether "
                "the network's own are better. Train both longer."
            )
        if self.correction is not None:
            return f"{train}, or look at data sets of large pareto_k alone: these are the corrected draws."
        if spec.density_obstacle is None:
            return (
                "These are the network's own draws. posterior.sample corrects them by the model's density; "
                f"check_calibration(correction='psis') tells whether that is enough. {train} for a better network."
            )
        return (
            f"There is no density to correct these draws by ({spec.density_obstacle}): {train[0].lower()}{train[1:]}."
        )


def _concatenate(parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
