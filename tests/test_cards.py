"""How trained objects show themselves."""

import pytest

import pymc_amortized as pma
from pymc_amortized.graph.model.axes import Axis, Structure
from pymc_amortized.results.cards import WIDTH, Card


class Thing(Card):
    NEXT = "thing.sample(data)"

    def __repr__(self):
        return "Thing(mu | y)\n  structure: " + "rows that are exchangeable, " * 6 + "<all>\n  settled"


def test_print_fits_a_terminal():
    first, *lines = str(Thing()).splitlines()
    assert first == "Thing(mu | y)" and lines[-1] == "  settled"
    assert all(len(line) <= WIDTH for line in lines)
    assert [line for line in lines[1:-1] if not line.startswith("      ")] == []
    assert " ".join(" ".join(lines).split()) == " ".join(repr(Thing()).split()[3:])


def test_notebooks_show_what_comes_next():
    page = Thing()._repr_html_()
    assert "<b>Thing(mu | y)</b>" in page and "<li>settled</li>" in page
    assert "&lt;all&gt;" in page and "<all>" not in page
    assert "<pre>thing.sample(data)</pre>" in page


def test_completion_offers_what_users_call():
    class Record(Card):
        INSIDE = True
        __dataclass_fields__ = {"history": None}
        history = None

        def weights_of(self):
            """For other rooms."""

    class Face(Record):
        def sample(self):
            """For users."""

    offered = dir(Face())
    assert {"sample", "history"} <= set(offered) and not {"weights_of", "NEXT", "INSIDE"} & set(offered)


@pytest.mark.parametrize(
    "kind", [pma.AmortizedPosterior, pma.AmortizedLikelihood, pma.AmortizedJoint, pma.AmortizedComparison]
)
def test_every_trained_object_says_what_it_can_do(kind):
    for line in kind.NEXT.splitlines():
        called = line.removeprefix("with ").strip().partition("(")[0].split(".")
        owner = {"pma": pma, "pm": __import__("pymc")}.get(called[0], kind)
        if owner is kind and len(called) == 3:  # of a part: joint.posterior.sample
            owner, called = pma.AmortizedPosterior, called[1:]
        assert callable(getattr(owner, called[1])), line


def test_a_structure_is_a_list_in_notebooks():
    structure = Structure((Axis("a<b", 8, "exchangeable", (("y", 0),), "proved"),), {"y": (8,)})
    page = structure._repr_html_()
    assert page.startswith("<ul><li>a&lt;b: 8, exchangeable") and "proved" in page
