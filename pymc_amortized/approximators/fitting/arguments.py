"""Checks of arguments, at the door."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Literal

import numpy as np
import torch

from pymc_amortized.graph.model.spec import ModelSpec
from pymc_amortized.graph.model.suitability import check_names
from pymc_amortized.results.storing import STATISTICS
from pymc_amortized.training import Efficiency, Training

Correction = Literal["auto", "psis", "nuts"] | None


INSTEAD = {
    "tune": "nothing is tuned, and all draws are good ones: leave it out",
    "init": "draws start from the network: leave it out",
    "initvals": "draws start from the network: leave it out",
    "step": "correction= says how draws are made",
    "nuts_sampler": "correction='nuts' runs NUTS for every data set, by the fastest sampler that is installed",
    "nuts": "correction='nuts' runs NUTS for every data set",
    "target_accept": "NUTS runs where weights do not settle a data set, by its own settings",
    "cores": "fit_posterior(cores=) says how many processes simulate; draws are made in this one",
    "return_inferencedata": "the result is always a DataTree",
    "compute_convergence_checks": "results are always checked",
    "discard_tuned_samples": "nothing is tuned",
}
"""What to do instead of arguments that ``pm.sample`` takes."""


def explain_sampler_arguments[**P, R](function: Callable[P, R]) -> Callable[P, R]:
    """Let a function that stands in the place of ``pm.sample`` say what it has instead of that one's arguments."""
    own = inspect.signature(function).parameters

    @functools.wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        if unknown := [name for name in kwargs if name in INSTEAD and name not in own]:
            raise TypeError("; ".join(f"{name}= is an argument of pm.sample: {INSTEAD[name]}" for name in unknown))
        return function(*args, **kwargs)

    return called


def check_integer(name: str, value: Any, *, smallest: int = 1) -> int:
    """Check that an argument is an integer of at least `smallest`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer of at least {smallest}, got {value!r}")
    if value < smallest:
        raise ValueError(f"{name} must be an integer of at least {smallest}, got {value}")
    return int(value)


def check_seconds(name: str, value: Any, *, or_else: str = "") -> float:
    """Check that an argument is a number of seconds; `or_else` says what else is allowed."""
    allowed = f"{name} must be a number of seconds > 0{or_else}; got {value!r}"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(allowed)
    if not 0 < float(value) < math.inf:
        raise ValueError(allowed)
    return float(value)


def read_target(value: Any, options: Training) -> float | None:
    """Check `target_efficiency` against how training is told to go."""
    if value is None:
        return None
    allowed = "target_efficiency must be a number in (0, 1), such as 0.5: draws are then worth half as many exact ones"
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{allowed}; got {value!r}")
    if not 0 < float(value) < 1:
        raise ValueError(f"{allowed}; got {value!r}")
    if not options.open_ended:
        raise ValueError(
            f"target_efficiency and num_steps={options.num_steps} exclude each other: the one ends training when it is "
            "good enough, the other after so many steps. Leave one of them out; max_time= bounds a training that has a "
            "target"
        )
    return float(value)


def target_of(spec: ModelSpec, wanted: float | None, default: float | None) -> Efficiency | None:
    """Return the efficiency at which training ends; None where it goes on as long as that brings something.

    Raises
    ------
    ValueError
        Where an efficiency is wanted of a model without a density.
    """
    if spec.density_obstacle is not None:
        if wanted is not None:
            raise ValueError(
                f"target_efficiency={wanted} needs the model's density: {spec.density_obstacle}. Leave it out: then "
                "training ends when the held-out loss no longer falls, or after max_time="
            )
        return None
    typical = default if wanted is None else wanted
    return None if typical is None else Efficiency.wanted(typical)


def read_count(name: str, value: Any, *, smallest: int = 1) -> int | None:
    """Check that an argument is None, or an integer of at least `smallest`."""
    return None if value is None else check_integer(name, value, smallest=smallest)


def read_mapping(name: str, value: Any) -> dict[str, Any]:
    """Check that an argument is a mapping; None is an empty one."""
    if value is not None and not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping of names, got {value!r}")
    return dict(value or {})


def check_correction(spec: ModelSpec, correction: Any) -> bool:
    """Check `correction` against the model, and return whether draws are corrected."""
    check_correction_name(correction)
    obstacle = spec.density_obstacle
    if correction in ("psis", "nuts") and obstacle:
        raise ValueError(f"correction={correction!r} needs the model's density: {obstacle}")
    if spec.potentials and (correction is None or obstacle):
        raise ValueError(
            f"uncorrected draws are refused: the model's potentials {list(spec.potentials)} are no part of the "
            f"simulations, only importance weights bring them in{f', and {obstacle}' if obstacle else ''}"
        )
    return correction is not None and obstacle is None


ESCALATION_SECONDS = 60.0
"""That a call may take by default for the data sets which weights do not settle at once."""


def check_correction_name(correction: Any) -> None:
    """Check that `correction` is one of those there are."""
    if correction is not None and correction not in ("auto", "psis", "nuts"):
        raise ValueError(f"correction must be 'auto', 'psis', 'nuts' or None, got {correction!r}")


def read_nuts_budget(max_nuts: Any, max_time: Any, correction: Correction) -> tuple[int | None, float | None]:
    """Check how many data sets may go to NUTS, and how many seconds all may take that weights do not settle."""
    if isinstance(max_time, str) and max_time == "auto":
        max_time = ESCALATION_SECONDS if correction == "auto" else None
    elif max_time is not None:
        max_time = check_seconds("max_time", max_time, or_else=", 'auto', or None for no limit")
    return read_count("max_nuts", max_nuts, smallest=0), max_time


def read_names(var_names: Sequence[str] | None, allowed: list[str]) -> list[str]:
    """Check the names of variables to return."""
    if var_names is None:
        return allowed
    var_names = check_names("var_names", var_names)
    unknown = [name for name in var_names if name not in allowed]
    if unknown or not var_names:
        raise KeyError(f"var_names: {unknown or 'no names'} given; available are {allowed}")
    return [name for name in allowed if name in var_names]


@dataclass(frozen=True)
class ResultOptions:
    """What a result holds beside draws and statistics.

    Attributes
    ----------
    log_likelihood, log_prior : bool
        Whether these groups are there.
    proposal_log_weight : bool or None
        Whether ``sample_stats`` holds the weights of all proposals; None stands for: of one data set.
    """

    log_likelihood: bool = False
    log_prior: bool = False
    proposal_log_weight: bool | None = None

    @property
    def groups(self) -> list[str]:
        """Names of the groups to add."""
        return [name for name in ("log_likelihood", "log_prior") if getattr(self, name)]


def read_result_options(idata_kwargs: Mapping[str, Any] | None) -> ResultOptions:
    """Check ``idata_kwargs``."""
    kwargs = read_mapping("idata_kwargs", idata_kwargs)
    allowed = [field.name for field in fields(ResultOptions)]
    if unknown := sorted(set(kwargs) - set(allowed)):
        raise ValueError(f"idata_kwargs: {unknown} given; allowed are {allowed}")
    return ResultOptions(**{name: bool(value) for name, value in kwargs.items()})


def check_dtype(dtype: Any) -> str:
    """Check the type of real-valued draws."""
    if str(dtype) not in ("float64", "float32"):
        raise ValueError(f"dtype must be 'float64' or 'float32', got {dtype!r}")
    return str(dtype)


def refuse_store_arguments(**given: tuple[Any, Any]) -> None:
    """Refuse arguments, each with its default, that mean nothing without a store."""
    if named := [name for name, (value, default) in given.items() if value is not default and value != default]:
        raise ValueError(f"{'=, '.join(named)}= needs store=, a folder that results are written to")


def read_statistics(reduce: Any) -> tuple[str, ...]:
    """Read what draws are to be reduced to: words, as in "mean sd quantiles"; nothing where draws are kept."""
    if reduce is None:
        return ()
    words = reduce.split() if isinstance(reduce, str) else []
    if not words or [word for word in words if word not in STATISTICS]:
        raise ValueError(f"reduce must name some of {', '.join(STATISTICS)}, as in 'mean sd quantiles'; got {reduce!r}")
    return tuple(label for word in dict.fromkeys(words) for label in STATISTICS[word])


def read_point(spec: ModelSpec, point: Mapping[str, Any]) -> tuple[np.ndarray, tuple[int, ...]]:
    """Flatten a point of value variables.

    Returns
    -------
    theta : ndarray (n, dim)
    lead : tuple of int
        The leading shape that `n` stands for.
    """
    expected = {p.value_name: p for p in spec.parameters}
    point = read_mapping("point", point)
    if set(point) != set(expected):
        raise KeyError(f"point holds {sorted(point)}; the value variables are {sorted(expected)}")
    parts, leads = [], {}
    for name, parameter in expected.items():
        try:
            value = np.asarray(point[name], dtype=float)
        except (TypeError, ValueError):
            raise TypeError(f"point[{name!r}] must be numbers, got {point[name]!r}") from None
        split = value.ndim - len(parameter.unconstrained_shape)
        if split < 0 or value.shape[split:] != parameter.unconstrained_shape:
            shape = ", ".join(["...", *map(str, parameter.unconstrained_shape)])
            raise ValueError(f"point[{name!r}] has shape {value.shape}; expected ({shape})")
        leads[name] = value.shape[:split]
        parts.append(value.reshape(int(np.prod(leads[name], dtype=int)), parameter.size))
    if len(set(leads.values())) != 1:
        raise ValueError(f"point: the value variables have different leading shapes: {leads}")
    return np.concatenate(parts, axis=1), next(iter(leads.values()))


def read_sketch_option(sketch: bool | None, summary: object) -> bool | None:
    """Check whether sketches are wanted."""
    if sketch is not None and not isinstance(sketch, bool | np.bool_):
        raise TypeError(f"sketch must be True, False or None, got {sketch!r}")
    if sketch and isinstance(summary, torch.nn.Module):
        raise ValueError("sketch=True: a summary network of your own is given the data alone")
    return None if sketch is None else bool(sketch)
