"""Doubts are values: what they say, what of them is logged, and how a result keeps them."""

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from pymc_amortized.correction.check_results import check_corrected, check_novelty, check_range, check_unlike
from pymc_amortized.correction.doubt import Doubt, say_how_many, say_where, tell
from pymc_amortized.networks.encoding.outside import Outside
from pymc_amortized.numerics.thresholds import THRESHOLDS

NAN, ROOT = float("nan"), Path(__file__).parents[1]


class Model:
    """Stands for a model."""


def test_a_single_data_set_is_not_counted():
    (doubt,) = check_novelty(np.array([0.001]), np.array([0]))
    assert str(doubt).startswith("The data set is unlike what the model simulates (ood_pvalue 0.001):")
    assert doubt.kind == "novelty" and doubt.number == 0.001 and doubt.datasets == (0,)


def test_of_many_the_worst_is_named_and_all_are_kept():
    pvalues, labels = np.array([0.5, 1e-6, 1e-5, 0.2]), np.array(list("abcd"))
    (doubt,) = check_novelty(pvalues, labels)
    assert "2 of 4 data sets are" in doubt.finding and "at data set b" in doubt.finding
    assert doubt.datasets == ("b", "c") and "check_misspecification" in doubt.advice
    (compared,) = check_novelty(pvalues, labels, ["one", "two"])
    assert "any of the models ['one', 'two'] simulates" in str(compared)


@pytest.mark.parametrize("pvalues", [np.array([0.4, 0.02]), np.array([NAN, NAN])])
def test_usual_data_are_not_doubted(pvalues):
    assert check_novelty(pvalues, np.arange(2)) == []


@pytest.mark.parametrize(("context", "advice"), [((), "widen the priors"), (("x",), "its source in context['x']")])
def test_extrapolation_says_where_and_what_to_widen(context, advice):
    simulated = {"x": np.array([[0.0, 1.0], [0.0, 3.0], [1.5, 1.0]]), "y": np.zeros(3)}
    far = {
        name: Outside.of(values, np.zeros(values.shape), np.ones(values.shape), None)
        for name, values in simulated.items()
    }
    (doubt,) = check_range(far, np.arange(3), context)
    assert "simulated (0 to 1 for x[1], which is 3), by" in doubt.finding
    assert doubt.number == 2.0 and doubt.datasets == (1, 2) and advice in doubt.advice
    assert "by 2 times that range in 2 of 3 data sets, most in 1" in doubt.finding


def test_obstacles_of_some_or_of_all():
    (some,) = check_corrected([None, "no density", None], np.arange(3))
    assert str(some) == "Draws of 1 of 3 data sets are the network's own, uncorrected: no density." and not some.once
    (every,) = check_corrected(["no density"], np.arange(1))
    assert str(every) == "Draws are the network's own, uncorrected: no density." and every.once
    assert not check_corrected([None], np.arange(1))


def test_words_for_one_and_for_several():
    assert say_how_many(1, 1, "The data set is", "{} are") == "The data set is" and say_where(np.arange(1), 0) == ""
    assert say_how_many(2, 9, "The data set is", "{} are") == "2 of 9 data sets are"
    assert say_where(np.array(["a", "b"]), 1) == " at data set b"


def test_each_is_logged_and_those_about_the_model_once(caplog):
    doubts = [Doubt("failed", "Something failed", "Look at it."), Doubt("uncorrected", "Nothing corrects", once=True)]
    model = Model()
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        first, second = tell(doubts, model), tell(doubts, model)
    messages = [r.getMessage() for r in caplog.records]
    failed = "Something failed. Look at it. [failed]"
    assert messages == [failed, "Nothing corrects. [uncorrected]", failed]
    assert first == second and len(json.loads(first["doubts"])) == 2


@pytest.mark.parametrize("doubts", [[], [Doubt("weights", "k is large", "Go on.", np.inf, ("a", "b"))]])
def test_a_file_keeps_them(doubts, tmp_path):
    attrs = tell(doubts, Model())
    xr.Dataset({"x": 1.0}, attrs=attrs).to_netcdf(tmp_path / "result.nc", engine="scipy")
    with xr.open_dataset(tmp_path / "result.nc", engine="scipy") as found:
        kept = json.loads(found.attrs["doubts"])
    assert [(k["kind"], k["number"], k["datasets"]) for k in kept] == [("weights", None, ["a", "b"])] * len(doubts)


def test_the_guide_tells_the_thresholds_of_the_table():
    row = next(line for line in (ROOT / "docs/trust.md").read_text().splitlines() if line.startswith('| `"psis"`'))
    t = THRESHOLDS
    for said in (
        f"one makes more than {100 * t.influence:g} % of a variance",
        f"min(1 - 1/log10(S), {t.pareto_k:g})",
        f"a weight above {100 * t.harmless_share:g} % of all (or five times the mean)",
        f"k above {t.finite_variance:g} while",
    ):
        assert said in row
    assert t.harmless_if_defended == 5.0 and t.wanted_efficiency == 0.5


def test_what_was_said_before_is_kept_and_not_said_again(caplog):
    before, after = Doubt("extrapolation", "Far outside"), Doubt("weights", "Poor weights")
    model = Model()
    with caplog.at_level(logging.WARNING, "pymc_amortized"):
        tell([before], model)
        kept = json.loads(tell([after], model, [before])["doubts"])
    assert [r.message for r in caplog.records] == ["Far outside. [extrapolation]", "Poor weights. [weights]"]
    assert [doubt["finding"] for doubt in kept] == ["Far outside", "Poor weights"]


def test_what_is_out_of_range_and_novel_is_one_doubt():
    far = Doubt("extrapolation", "Some values are far out: the network extrapolates", "Check units.", 2.0, (1, 2))
    pvalues = np.array([0.5, 1e-6, 0.3, 1e-4])
    joined, other = check_unlike([far], pvalues, np.arange(4))
    assert joined.kind == "extrapolation" and joined.datasets == (1, 2) and joined.advice == "Check units."
    assert joined.finding.endswith("extrapolates, and such data are unlike what the model simulates (ood_pvalue 1e-06)")
    assert (
        other.datasets == (3,) and "1 of 4 data sets are" in other.finding and "0.0001 at data set 3" in other.finding
    )
    assert check_unlike([far], np.array([0.5, 0.2, 0.3, 0.4]), np.arange(4)) == [far]
