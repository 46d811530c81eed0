"""Is this data like anything the model simulates? One data set at a time, and several together."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from pymc_amortized.approximators.fitting.arguments import check_integer
from pymc_amortized.approximators.fitting.seeds import RandomState, seed_sequence
from pymc_amortized.approximators.posterior.posterior import AmortizedPosterior
from pymc_amortized.correction.doubt import Doubt, labels_of, say_how_many, say_where, tell
from pymc_amortized.diagnostics.verdict import LEVEL
from pymc_amortized.graph.data.datasets import DATASET_DIM, DataSets
from pymc_amortized.graph.data.reading import read_given
from pymc_amortized.graph.model.indices import index_limits
from pymc_amortized.novelty.features import NoveltyFeatures
from pymc_amortized.novelty.scores import Discrepancy, Whitening, pvalue, robust, squashed
from pymc_amortized.numerics.uniformity import holm


def check_misspecification(
    posterior: AmortizedPosterior,
    observed: Mapping[str, Any] | xr.Dataset | None = None,
    *,
    batched: bool = False,
    num_simulations: int | None = None,
    random_seed: RandomState = None,
) -> xr.Dataset:
    """Test whether data are like anything that the model simulates.

    Each data set is compared with simulations of its own size, with its own covariates and gaps. What is compared
    is the posterior's learned summary, and the shape of residuals (outliers, tails, curvature, dependence between
    rows of a series). In which order exchangeable rows or groups come changes nothing. No density is needed.

    Parameters
    ----------
    posterior : AmortizedPosterior
        Trained or loaded; it needs no sources of context.
    observed : mapping of name to array_like, or xarray.Dataset, optional
        As in :meth:`AmortizedPosterior.sample`; by default, what the model held.
    batched : bool
        Whether `observed` holds many data sets. These are then tested together as well.
    num_simulations : int, optional
        Simulations for each data set, at least 100: one half sets the scale, the other is ranked. By default 2,000, and
        fewer (at least 400) for more than 50 data sets.
    random_seed : int, sequence of int, numpy.random.Generator, optional
        Of everything random; a generator is advanced.

    Returns
    -------
    xarray.Dataset
        For each data set ``score``, ``pvalue``, the ``reference_score`` of simulations, and ``deviation``: each
        statistic of shape in units of its spread over simulations. For several data sets together ``mmd``, the
        squared maximum mean discrepancy from simulations, ``mmd_pvalue``, and ``mmd_null``: that of collections that
        the model simulates. :func:`plot_novelty` draws it. Its attribute ``doubts`` holds what is logged, as that of
        :meth:`AmortizedPosterior.sample` does.

    Raises
    ------
    ValueError, TypeError, KeyError
        When an argument or the data do not fit the model; the message names it.

    Notes
    -----
    If the model is right p-values are uniform: below 0.05 for 5 % of data sets. A small one says that the model (its
    prior included) does not simulate such data, not that inference failed; a large one, that nothing unusual was seen
    in these statistics. The idea is that of Schmitt et al. (2021, arXiv 2112.08866); unlike there the null
    distribution comes from collections of the same number, sizes and contexts, and residuals are looked at too.

    Whether the *posterior* reproduces the data is another question, which ArviZ answers::

        with posterior.to_model(observed):
            pm.sample_posterior_predictive(dt, extend_inferencedata=True)
        az.plot_ppc_tstat(dt, t_stat="max")

    See Also
    --------
    AmortizedPosterior.sample : ``sample_stats["ood_pvalue"]``, at no cost, from simulations made in training.

    Examples
    --------
    With the posterior of :func:`fit_posterior`'s example:

    >>> found = pma.check_misspecification(posterior, {"y": [0.0, 0.3, 90.0, 0.1]}, num_simulations=400, random_seed=1)
    >>> float(found["pvalue"]) < 0.05
    True
    """
    spec = posterior.spec
    datasets = read_given(spec, index_limits(spec), observed, batched=batched)
    if num_simulations is None:
        # In all some seconds of an ordinary simulator. Of 200 that are ranked a p-value of 5 % has 1.5 % of error.
        num_simulations = int(np.clip(100_000 // len(datasets), 400, 2000))
    num_simulations = check_integer("num_simulations", num_simulations, smallest=100)
    simulating, choosing = seed_sequence(random_seed).spawn(2)
    compared = _compare(posterior, datasets, num_simulations, simulating)
    found = _summarized(compared, datasets)
    if datasets.batched and len(datasets) > 1:
        found = found.merge(_together(compared, np.random.default_rng(choosing)))
    return found.assign_attrs(tell(_doubts(found, datasets.labels), spec))


@dataclass(frozen=True, eq=False)
class _Compared:
    """Standardized features of data sets beside those of simulations at their size and context.

    Attributes
    ----------
    observed : ndarray (n, components)
    learned, ranked : ndarray (n, simulations / 2, components)
        Simulations by which components were scaled, and others.
    deviations : ndarray (n, statistics)
        Statistics of shape of the data sets, in units of their spread.
    names : list of str
        Of these.
    """

    observed: np.ndarray
    learned: np.ndarray
    ranked: np.ndarray
    deviations: np.ndarray
    names: list[str]


def _compare(
    posterior: AmortizedPosterior, datasets: DataSets, num_simulations: int, seed: np.random.SeedSequence
) -> _Compared:
    inputs, network = posterior.inputs.summarized_by(posterior.network)
    compared = NoveltyFeatures(network)
    given = compared.of(inputs, datasets)
    half = num_simulations // 2
    observed, simulated = [], []
    made = posterior.compiled.replicas(datasets, 2 * half, seed)
    for own, some in zip(given, made, strict=True):
        features = compared.of(inputs, some)
        center, scale = robust(features[:half])
        # where simulations do not differ at all, any other value is as far as can be
        scale = np.where(np.isinf(scale), 1e-6 * (1 + np.abs(center)), scale)
        observed.append(squashed((own - center) / scale))
        simulated.append(squashed((features - center) / scale).astype(np.float32))
    units, reference = np.stack(observed), np.stack(simulated)
    whitening = Whitening.fit(reference[:, :half].reshape(-1, units.shape[1]), compared.blocks)
    learned, ranked = whitening(reference[:, :half]), whitening(reference[:, half:])
    return _Compared(whitening(units), learned, ranked, units[:, compared.blocks[0] :], compared.names)


def _summarized(compared: _Compared, datasets: DataSets) -> xr.Dataset:
    """Scores, p-values and deviations, after a dim of data sets if batched."""
    score, reference = (np.square(part).sum(-1) for part in (compared.observed, compared.ranked))
    pvalues = np.array([pvalue(s, np.sort(r)) for s, r in zip(score, reference, strict=True)])
    found = xr.Dataset(
        {
            "score": (DATASET_DIM, score),
            "pvalue": (DATASET_DIM, pvalues),
            "reference_score": ((DATASET_DIM, "simulation"), reference),
            "deviation": ((DATASET_DIM, "statistic"), compared.deviations),
        },
        coords={DATASET_DIM: datasets.labels, "statistic": compared.names},
    )
    return found if datasets.batched else found.isel({DATASET_DIM: 0}, drop=True)


def _together(compared: _Compared, rng: np.random.Generator) -> xr.Dataset:
    """Discrepancy of the whole collection, beside that of collections the model simulates."""
    discrepancy = Discrepancy.fit(compared.learned.reshape(-1, compared.learned.shape[-1]), rng)
    some = np.sort(rng.permutation(len(compared.observed))[:500])  # the cost grows with the square; power is ample
    mmd = discrepancy(compared.observed[some])
    null = np.array([discrepancy(compared.ranked[some, i]) for i in range(compared.ranked.shape[1])])
    return xr.Dataset(
        {"mmd": mmd, "mmd_pvalue": pvalue(mmd, np.sort(null)), "mmd_null": ("collection", null)},
    )


def _doubts(found: xr.Dataset, labels: np.ndarray) -> list[Doubt]:
    """Find data sets that are unlike simulations, or that are so all together."""
    pvalues = np.atleast_1d(found["pvalue"].values)
    novel = holm(pvalues) < LEVEL
    if novel.any():
        smallest = int(np.argmin(pvalues))
        one = found.isel({DATASET_DIM: smallest}) if DATASET_DIM in found.dims else found
        subject = say_how_many(int(novel.sum()), len(pvalues), "The data set is", "{} are")
        unlike = "unlike anything the model simulates" if pvalues[smallest] < 1e-3 else "unusual for the model"
        finding = (
            f"{subject} {unlike} at that size and context (p = {pvalues[smallest]:.1g}{say_where(labels, smallest)})"
        )
        advice = (
            f"{_unusual(one['deviation'])}Look for errors in the data, parameters far out in their prior, another "
            "family of noise, or another link."
        )
        return [Doubt("novelty", finding, advice, float(pvalues[smallest]), labels_of(labels, novel))]
    if "mmd_pvalue" in found and found["mmd_pvalue"] < LEVEL:
        together = found["mmd_pvalue"].item()
        finding = (
            f"Together the {len(pvalues)} data sets are not like what the model simulates (p = {together:.1g}), though "
            "none stands out by itself"
        )
        unusual = _unusual(found["deviation"].mean(DATASET_DIM) * np.sqrt(len(pvalues)))
        advice = f"{unusual}The prior, the family of noise or the link may be off a little for all of them."
        return [Doubt("novelty", finding, advice, together, labels_of(labels, np.arange(len(labels))))]
    return []


def _unusual(deviation: xr.DataArray) -> str:
    """Name the statistics of shape that are furthest off, in units of their spread."""
    order = np.argsort(-np.abs(deviation.values))[:3]
    named = [f"{deviation['statistic'].values[i]} ({deviation.values[i]:+.1f})" for i in order]
    far = [name for name, i in zip(named, order, strict=True) if abs(deviation.values[i]) > 3]  # three sigma
    return f"Most unusual, in units of their spread: {', '.join(far)}. " if far else ""
