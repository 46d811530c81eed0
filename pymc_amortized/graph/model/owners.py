"""The PyMC model that an object of another library holds."""

import logging
from collections.abc import Mapping
from operator import attrgetter
from typing import Any

import pymc as pm
from pymc.model.core import BaseModel

logger = logging.getLogger(__name__)

WHERE = {"HSSM": "pymc_model", "bambi": "backend.model", "pymc-marketing": "model"}
"""Where libraries keep the PyMC model."""


def model_of(model: Any) -> pm.Model:
    """Return a PyMC model: the object itself, what it holds, or by default the context's.

    Parameters
    ----------
    model : pymc.Model, or an object of bambi, HSSM or pymc-marketing, or None
        A bambi model is built if it is not yet.

    Raises
    ------
    TypeError
        It neither is nor holds a model, or there is no context.
    ValueError
        The intercept of the PyMC model is not that of the object's own predictions.
    """
    if model is None or isinstance(model, BaseModel):
        return pm.modelcontext(model)
    if getattr(model, "built", True) is False:
        model.build()
    _refuse_centered(model)
    for path in WHERE.values():
        try:
            held = attrgetter(path)(model)
        except AttributeError:
            continue
        if isinstance(held, BaseModel):
            logger.info("The PyMC model of this %s is used (its %r).", type(model).__name__, path)
            return held
    build = "; call its build_model first" if callable(getattr(model, "build_model", None)) else ""
    raise TypeError(
        f"model must be a pymc.Model, or a model of {', '.join(WHERE)} that holds one, got "
        f"{type(model).__name__}{build}"
    )


def _refuse_centered(model: Any) -> None:
    """Refuse a bambi model that centers its predictors: it moves back the intercept of draws that are its own alone."""
    components = getattr(model, "components", None)
    if not getattr(model, "center_predictors", False) or not isinstance(components, Mapping):
        return
    if any(getattr(c, "intercept_term", None) and getattr(c, "common_terms", None) for c in components.values()):
        raise ValueError(
            "model: this bambi model centers its predictors, so the intercept of its PyMC model is not the one "
            "that its predict reads: build it with center_predictors=False"
        )
