"""The gallery: every entry builds and stands on its page; answers agree with NUTS, or say that they may not."""

import sys
from pathlib import Path

import numpy as np
import pymc as pm
import pytest
import xarray as xr

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "examples" / "gallery"))

from entries import CALLS, ENTRIES  # noqa: E402
from run import Row, compare, measure  # noqa: E402


@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_builds(name):
    entry = ENTRIES[name]
    if entry.needs:
        pytest.importorskip(entry.needs)
    model = (entry.reference or entry.build)()
    assert isinstance(model, pm.Model)
    assert model.free_RVs
    assert model.observed_RVs
    assert entry.build.__doc__
    assert entry.lines > CALLS


def test_the_page_names_every_entry():
    page = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip().strip("`") for line in page.splitlines() if line.startswith("| `")}
    assert rows == set(ENTRIES)
    for entry in ENTRIES.values():
        file = Path(sys.modules[entry.build.__module__].__file__).name
        assert f"**{entry.name}**" in page, entry.name
        assert file in page


def trees(shift=0.0, scale=1.0):
    """Draws of two parameters of two runs; the second parameter of the second run is moved and stretched."""
    rng = np.random.default_rng(1)
    first, second = (rng.normal(size=(4, 1000, 2)) for _ in range(2))
    second[..., 1] = second[..., 1] * scale + shift
    dims = ("chain", "draw", "at")
    return tuple(xr.DataTree.from_dict({"posterior": xr.Dataset({"a": (dims, draws)})}) for draws in (first, second))


@pytest.mark.parametrize(("shift", "scale", "beyond"), [(0.0, 1.0, 0), (0.1, 1.1, 0), (0.6, 1.0, 1), (0.0, 1.6, 1)])
def test_what_is_beyond_what_is_allowed(shift, scale, beyond):
    mean, sd, found = compare(*trees(shift, scale), ["a"])
    assert len(found) == beyond
    assert mean == pytest.approx(shift, abs=0.08)
    assert sd == pytest.approx(1 - 1 / scale, abs=0.05)


@pytest.mark.parametrize(
    ("stage", "doubts", "beyond", "verdict"),
    [
        ("psis", [], [], "agrees"),
        ("psis", [], ["a[0]"], "DIFFERS"),
        ("psis", ["novelty"], ["a[0]"], "DIFFERS"),
        ("not reached", [], ["a[0]"], "marked"),
        ("psis", ["calibration"], ["a[0]"], "marked"),
    ],
)
def test_verdicts(stage, doubts, beyond, verdict):
    seconds = dict.fromkeys(("fit", "first", "more", "nuts", "nuts_more"), 1.0)
    row = Row("a", 1, 9, **seconds, r_hat=1.0, stage=stage, rung="weights", doubts=doubts, mean=0, sd=0, beyond=beyond)
    assert row.verdict == verdict


@pytest.mark.parametrize(
    ("fit", "more", "nuts", "nuts_more", "even"),
    [
        (19.0, 0.5, 10.0, 1.5, "11"),
        (19.0, 0.5, 10.0, 0.4, "never"),
        (8.0, 0.5, 10.0, 0.4, "1"),
        (8.0, 0.1, 10.0, 1, "1"),
    ],
)
def test_from_how_many_data_sets_on(fit, more, nuts, nuts_more, even):
    """Of the first case: 19 + 1 and then half a second each, beside 10 and then one and a half."""
    row = Row("a", 1, 9, fit, 1.0, more, nuts, nuts_more, 1.0, "psis", "weights", [], 0, 0, [])
    assert row.even == even


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRIES)
def test_answers_agree_with_nuts_or_are_marked(name):
    if ENTRIES[name].needs:
        pytest.importorskip(ENTRIES[name].needs)
    row = measure(ENTRIES[name])
    assert row.verdict in ("agrees", "marked"), row.beyond
