"""The examples in docstrings of everything public: there are some, and they say what is printed."""

import doctest
import inspect

import matplotlib.pyplot as plt
import numpy as np
import pymc as pm
import pytest

import pymc_amortized as pma

PUBLIC = [name for name in pma.__all__ if callable(getattr(pma, name))]
# The examples that train. Others go on with what these leave behind.
TRAINED = ["fit_posterior", "fit_likelihood", "fit_comparison", "fit_joint"]


def run_examples(name: str, docstring: str, names: dict) -> str:
    """Run the examples of a docstring; return what they printed otherwise than they say."""
    wrong: list[str] = []
    examples = doctest.DocTestParser().get_doctest(docstring, names, name, None, 0)
    doctest.DocTestRunner(verbose=False).run(examples, out=wrong.append, clear_globs=False)
    names.update(examples.globs)
    return "".join(wrong)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Return the names that are left by the examples that train, and what went wrong in each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("examples"))
        names = {"np": np, "pm": pm, "pma": pma}
        wrong = {name: run_examples(name, inspect.getdoc(getattr(pma, name)), names) for name in TRAINED}
        yield names, wrong


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_has_an_example_that_runs(name, trained):
    docstring = inspect.getdoc(getattr(pma, name))
    assert "\nExamples\n--------\n" in docstring and ">>> " in docstring
    names, wrong = trained
    assert not (wrong[name] if name in TRAINED else run_examples(name, docstring, dict(names)))
    plt.close("all")


def test_a_wrong_example_is_seen():
    assert "Got:\n    2" in run_examples("wrong", ">>> 1 + 1\n3\n", {})
