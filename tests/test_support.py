"""Values that no parameters can produce are refused at the door; possible ones never are."""

import numpy as np
import pymc as pm
import pymc.dims as pmd
import pytest
from models import MODELS
from pytensor.xtensor import as_xtensor

import pymc_amortized as pma
from pymc_amortized.approximators.fitting.models import read_model
from pymc_amortized.graph.data.reading import read_given
from pymc_amortized.graph.data.support import refuse_impossible_held
from pymc_amortized.graph.model.tensors import INTERPRETED, plain

ONES, HALVES = {"observed": [1, 1, 1]}, {"observed": [0.5, 0.5, 0.5]}


def positive(a):
    return pm.Gamma.dist(a, 1)


def cuts():
    return pm.Normal("c", 0, 1, shape=2, transform=pm.distributions.transforms.ordered, initval=[0.0, 1.0])


def dims(values):
    return as_xtensor(np.asarray(values), dims=("i",))


# what is impossible first, with the words of the message; then what is possible
CASES = {
    "Poisson": (
        lambda a: pm.Poisson("y", a, **ONES),
        [0, -1, 2],
        r"whole .* from 0 \(Poisson\); got -1",
        [0, 5, 2],
    ),
    "NegativeBinomial": (lambda a: pm.NegativeBinomial("y", a, 1, **ONES), [0, 1, -7], r"got -7 at \(2,\)", [0, 1, 9]),
    "Geometric": (lambda a: pm.Geometric("y", pm.math.invlogit(a), **ONES), [1, 0, 2], "from 1", [1, 2, 9]),
    "Binomial": (lambda a: pm.Binomial("y", [1, 2, 3], 0.1 * a, **ONES), [1, 3, 3], "from 0 up to 2", [1, 2, 3]),
    "BetaBinomial": (lambda a: pm.BetaBinomial("y", a, 1, n=4, **ONES), [5, 0, 0], "up to 4", [4, 0, 0]),
    "Categorical": (lambda a: pm.Categorical("y", np.full(3, 1 / 3), **ONES), [0, 3, 1], "up to 2", [0, 2, 1]),
    "OrderedLogistic": (lambda a: pm.OrderedLogistic("y", a, cuts(), **ONES), [0, 3, 1], "up to 2", [0, 2, 1]),
    "Multinomial": (
        lambda a: pm.Multinomial("y", [3, 9], np.full(3, 1 / 3), observed=[[1, 1, 1], [3, 3, 3]]),
        [[1, 1, 4], [9, 0, 0]],
        r"up to 3 .*got 4 at \(0, 2\)",
        [[1, 1, 1], [9, 0, 0]],
    ),
    "DiscreteUniform": (lambda a: pm.DiscreteUniform("y", -2, 5, **ONES), [-3, 0, 0], "from -2 up to 5", [-2, 5, 0]),
    "Gamma": (lambda a: pm.Gamma("y", a, 1, **ONES), [1, 1, -0.5], r"numbers from 0 \(Gamma\)", [0.1, 1, 1e9]),
    "Gamma at 0": (lambda a: pm.Gamma("y", a, 1, **ONES), [1, 1, 0.0], r"numbers above 0 \(Gamma\)", [0.1, 1, 1e9]),
    "Gamma of 1": (lambda a: pm.Gamma("y", 1, a, **ONES), [-1.0, 0, 0], "from 0", [0.0, 1, 1]),
    "Exponential": (lambda a: pm.Exponential("y", a, **ONES), [-1.0, 0, 0], "from 0", [0.0, 1, 1]),
    "LogNormal": (lambda a: pm.LogNormal("y", a, **ONES), [1.0, 0, 2], "above 0", [1.0, 1e-9, 2]),
    "Weibull": (lambda a: pm.Weibull("y", a, 1, **ONES), [-1.0, 1, 1], "from 0", [1.0, 1, 1]),
    "HalfNormal": (lambda a: pm.HalfNormal("y", a, **ONES), [-1.0, 0, 0], "from 0", [0.0, 1, 1]),
    "InverseGamma": (lambda a: pm.InverseGamma("y", a, 1, **ONES), [0.0, 1, 1], "above 0", [0.1, 1, 1]),
    "Beta": (lambda a: pm.Beta("y", a, a, **HALVES), [0.5, 1.2, 0.5], "from 0 up to 1", [0.5, 0.1, 0.9]),
    "Beta at 1": (lambda a: pm.Beta("y", a, a, **HALVES), [0.5, 1.0, 0.5], "from 0 below 1", [0.5, 0.1, 0.9]),
    "Uniform": (lambda a: pm.Uniform("y", 0, a, **HALVES), [-1.0, 1, 1], "from 0", [100.0, 1, 1]),
    "ZeroInflatedBinomial": (
        lambda a: pm.ZeroInflatedBinomial("y", 0.5, [1, 2, 3], 0.1 * a, **ONES),
        [1, 3, 3],
        "up to 2",
        [0, 2, 3],
    ),
    "HurdlePoisson": (lambda a: pm.HurdlePoisson("y", 0.5, a, **ONES), [-1, 0, 0], "from 0", [0, 0, 3]),
    "HurdleGamma": (lambda a: pm.HurdleGamma("y", 0.5, a, 1, **ONES), [-1.0, 0, 0], "from 0", [0.0, 0, 3]),
    "Mixture": (
        lambda a: pm.Mixture("y", [0.5, 0.5], [positive(a), pm.LogNormal.dist(a)], **ONES),
        [-1.0, 1, 1],
        "from 0",
        [0.1, 1, 1],
    ),
    "Mixture of one": (
        lambda a: pm.Mixture("y", [0.5, 0.5], pm.Poisson.dist(pm.math.stack([a, 1.0])), **ONES),
        [-1, 1, 1],
        "from 0",
        [0, 1, 1],
    ),
    "Censored": (
        lambda a: pm.Censored("y", pm.Exponential.dist(a), lower=None, upper=[1, 2, 3], **ONES),
        [1.0, 2.5, 3],
        "up to 2",
        [1.0, 2, 3],
    ),
    "Censored counts": (
        lambda a: pm.Censored("y", pm.Poisson.dist(a), lower=None, upper=3, **ONES),
        [-1, 2, 3],
        "from 0 up to 3",
        [0, 2, 3],
    ),
    "Truncated": (
        lambda a: pm.Truncated("y", positive(a), upper=5, **ONES),
        [-1.0, 2.5, 3],
        r"from 0 up to 5 \(TruncatedGamma\)",
        [0.1, 2, 5],
    ),
    "with dims": (
        lambda a: pmd.Binomial("y", dims([1, 2, 3]), 0.1 * a, dims="i", observed=dims([1, 1, 1])),
        [1, 3, 3],
        "up to 2",
        [1, 2, 3],
    ),
    "with dims, in an interval": (
        lambda a: pmd.Uniform("y", 0, dims([1.0, 2, 3]), dims="i", observed=dims([0.5, 1, 1])),
        [1.0, 3, 3],
        "up to 2",
        [1.0, 2, 3],
    ),
}


def spec_of(make):
    with pm.Model(coords={"i": range(3)}) as model:
        make(pm.Gamma("a", 2, 1))
    return read_model(model, None, None, {}, None)[0]


@pytest.mark.parametrize("case", CASES)
def test_what_no_parameters_can_produce_is_refused(case):
    make, impossible, message, possible = CASES[case]
    spec = spec_of(make)
    with pytest.raises(ValueError, match=f"^'y' must hold .*{message}"):
        read_given(spec, {}, {"y": impossible})
    assert (read_given(spec, {}, {"y": possible}).values["y"] == possible).all()
    with pytest.raises(ValueError, match=f"^data set 1: 'y' must hold .*{message}"):
        read_given(spec, {}, {"y": [possible, impossible]}, batched=True)


UNKNOWN = {
    "bounds are parameters": lambda a: pm.Uniform("y", -a, a, **HALVES),
    "random count": lambda a: pm.Binomial("y", pm.Poisson.dist(9), 0.5, **ONES),
    "random censoring": lambda a: pm.Censored("y", pm.Normal.dist(0), lower=a, upper=None, **HALVES),
    "components of all numbers": lambda a: pm.Mixture("y", [0.5, 0.5], [positive(a), pm.Normal.dist()], **HALVES),
    "CustomDist": lambda a: pm.CustomDist("y", a, dist=lambda a, size: pm.Gamma.dist(a, 1, size=size), **HALVES),
    "Simulator": lambda a: pm.Simulator("y", lambda rng, a, size: rng.gamma(a, size=size), a, **HALVES),
    "angles": lambda a: pm.VonMises("y", a, 1, **HALVES),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # by pm.Simulator
@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_known_refuses_nothing(case):
    spec = spec_of(UNKNOWN[case])
    whole = spec.observed[0].dtype.startswith("int")
    assert len(read_given(spec, {}, {"y": np.full(3, 1000 if whole else -1000.0)})) == 1


def test_an_end_of_the_range_is_possible_where_a_parameter_may_be_what_it_takes():
    spec = spec_of(lambda a: pm.Beta("y", pm.math.maximum(a, 1), 2, **HALVES))
    assert len(read_given(spec, {}, {"y": [0.0, 0.5, 0.5]})) == 1
    with pytest.raises(ValueError, match="below 1"):
        read_given(spec, {}, {"y": [0.0, 0.5, 1.0]})


def test_numbers_of_trials_may_differ_between_data_sets():
    with pm.Model() as model:
        p = pm.Beta("p", 1, 1)
        pm.Binomial("y", pm.Data("n", [3, 4]), p, observed=[1, 2])
    spec = read_model(model, None, None, {"n": pm.DiscreteUniform.dist(1, 9)}, None)[0]
    data = {"y": [[5, 5], [5, 5]], "n": [[5, 9], [9, 4]]}
    with pytest.raises(ValueError, match=r"data set 1: 'y' must hold .* 0 up to 4 \(Binomial\); got 5 at \(1,\)"):
        read_given(spec, {}, data, batched=True)
    assert len(read_given(spec, {}, data | {"y": [[5, 5], [5, 4]]}, batched=True)) == 2


def test_lengths_and_gaps_are_no_values():
    with pm.Model(coords={"obs": range(3)}) as model:
        pm.Geometric("y", pm.Beta("p", 1, 1), dims="obs", observed=[1, 1, 1])
    spec = read_model(model, None, None, {"obs": (1, 5)}, {"y": 0.2})[0]
    sets = [{"y": [1, 2]}, {"y": [1, np.nan, 4, 9]}]
    assert len(read_given(spec, {}, sets, batched=True)) == 2
    with pytest.raises(ValueError, match=r"data set 1: 'y' must hold .* got 0 at \(3,\)"):
        read_given(spec, {}, [sets[0], {"y": [1, np.nan, 4, 0]}], batched=True)


def poisson(observed):
    with pm.Model() as model:
        pm.Poisson("y", pm.Gamma("a", 2, 1), observed=observed)
    return model


def test_a_model_that_holds_impossible_data_is_refused_before_training():
    message = r"the data in the model: 'y' must hold whole numbers from 0 \(Poisson\); got -3 at \(1,\)"
    with pytest.raises(ValueError, match=message):
        pma.fit_posterior(poisson([2, -3]))
    with pytest.raises(ValueError, match=message):
        pma.fit_joint(poisson([2, -3]))
    with pytest.raises(ValueError, match=message):
        pma.fit_comparison({"one": poisson([2, -3]), "two": poisson([2, -3])})


def test_a_comparison_refuses_what_none_of_its_models_can_produce():
    wide = spec_of(lambda a: pm.DiscreteUniform("y", -9, 9, **ONES))
    counts = spec_of(lambda a: pm.Poisson("y", a, **ONES))
    assert len(read_given(wide, {}, {"y": [-3, 1, 1]}, models=[counts, wide])) == 1
    with pytest.raises(ValueError, match=r"\(Poisson\)"):
        read_given(wide, {}, {"y": [-30, 1, 1]}, models=[counts, wide])


def test_fractions_of_a_container_are_refused_that_pymc_would_cut_off():
    with pm.Model() as model:
        pm.Poisson("y", pm.Gamma("a", 2, 1), observed=pm.Data("counts", [1.0, 2.5]))
    with pytest.raises(ValueError, match=r"'counts': 'y' must hold whole numbers; got 2.5 at \(1,\)"):
        pma.fit_posterior(model)


PLACEHOLDERS = {
    "zeros": lambda p: pm.Geometric("y", p, observed=np.zeros(3, int)),
    "ones": lambda p: pm.Beta("y", 9 * p, 9, observed=np.ones(3)),
}


@pytest.mark.parametrize("name", PLACEHOLDERS)
def test_placeholders_are_no_data_until_they_are_sampled(name):
    with pm.Model() as model:
        PLACEHOLDERS[name](pm.Beta("p", 1, 1))
    spec = read_model(model, None, None, {}, None)[0]
    refuse_impossible_held([spec])
    with pytest.raises(ValueError, match="'y' must hold"):
        read_given(spec, {}, None)


@pytest.mark.filterwarnings("ignore")  # by pm.Simulator, and by PyTensor without BLAS
@pytest.mark.parametrize("name", MODELS)
def test_what_a_model_simulates_is_never_refused(name):
    model = MODELS[name].build()
    spec = read_model(model, None, None, {}, None)[0]
    refuse_impossible_held([spec])
    names = [rv.name for rv in model.observed_RVs]
    drawn = pm.draw([plain(model[name]) for name in names], draws=20, random_seed=1, **INTERPRETED)
    usable = np.all([np.isfinite(values).reshape(20, -1).all(axis=1) for values in drawn], axis=0)
    data = {name: values[usable] for name, values in zip(names, drawn, strict=True)}
    assert len(read_given(spec, {}, data, batched=True)) == usable.sum() > 0


def test_an_end_of_the_range_is_possible_where_covariates_or_other_elements_say_so():
    """At a shape of 1, which another data set may have, a Gamma is finite at 0; so is a Dirichlet of which one is 0."""
    with pm.Model() as model:
        a = pm.HalfNormal("a")
        pm.Gamma("y", pm.Data("shape", [2.0, 2.0]), a, observed=[1.0, 1.0])
    spec = read_model(model, None, None, {"shape": lambda rng: rng.choice([1.0, 2.0], size=2)}, None)[0]
    assert len(read_given(spec, {}, {"y": [0.0, 1.0], "shape": [1.0, 2.0]})) == 1
    with pm.Model() as model:
        pm.Dirichlet("y", pm.math.stack([1.0, pm.HalfNormal("a") + 2]), observed=[0.5, 0.5])
    spec = read_model(model, None, None, {}, None)[0]
    assert len(read_given(spec, {}, {"y": [0.0, 1.0]})) == 1
