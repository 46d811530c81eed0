"""Which networks: the user's choice, its options, and the registry that saved files refer to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from pymc_amortized.networks.density import CouplingSpline, Spline
from pymc_amortized.networks.encoding import ArrayLayout, DataEncoder
from pymc_amortized.networks.summary import EncodedArray, Flat, FlatSummary, Set, SetSummary

__all__ = [
    "DENSITIES",
    "SUMMARIES",
    "DensityChoice",
    "SummaryChoice",
    "density_options",
    "describe",
    "dry_run",
    "from_registry",
    "make_density",
    "make_summary",
    "summary_options",
]

SummaryChoice = str | Flat | Set | nn.Module
DensityChoice = str | Spline | nn.Module | Callable[[int, int], nn.Module]

SUMMARIES: dict[str, type[Flat] | type[Set]] = {"flat": Flat, "set": Set}
DENSITIES: dict[str, type[Spline]] = {"spline": Spline}


def summary_options(summary: SummaryChoice, layouts: Sequence[ArrayLayout], dim: int) -> Flat | Set | None:
    """Resolved options of a built-in summary network; None for a user's own."""
    if isinstance(summary, nn.Module):
        return None
    if isinstance(summary, str):
        if summary != "auto" and summary not in SUMMARIES:
            raise ValueError(f"summary is {summary!r}; allowed: 'auto', {', '.join(map(repr, SUMMARIES))}")
        rows = any(layout.rows for layout in layouts)
        summary = SUMMARIES[("set" if rows else "flat") if summary == "auto" else summary]()
    if not isinstance(summary, Flat | Set):
        raise TypeError(f"summary is a {type(summary).__name__}; expected a name, Flat, Set or torch.nn.Module")
    if isinstance(summary, Set):
        summary = summary.resolve(max((x.shape[0] for x in layouts if x.rows), default=0))
    return replace(summary, features=summary.features or max(32, 2 * dim))


def check_choices(summary: Any, density: Any) -> None:
    """Refuse what is no choice of networks, before anything is simulated for them."""
    summary_options(summary, (), 1)
    density_options(density, 1)
    if not isinstance(density, str | Spline | nn.Module) and not callable(density):
        raise TypeError(f"density is a {type(density).__name__}; expected a name, Spline, torch.nn.Module or factory")


def make_summary(options: Flat | Set, encoder: DataEncoder, dim: int) -> nn.Module:
    """Build a built-in summary network for the encoder's arrays."""
    arrays = [
        EncodedArray(layout.name, layout.shape, encoder.channels(layout.name), layout.rows)
        for layout in encoder.layouts
    ]
    if isinstance(options, Set):
        return SetSummary(arrays, options, options.features or 0)
    return FlatSummary(arrays, options, options.features or 0, dim)


def density_options(density: Any, dim: int) -> Spline | None:
    """Resolved options of the built-in density; None for a user's own."""
    if isinstance(density, str):
        if density not in DENSITIES:
            raise ValueError(f"density is {density!r}; allowed: {', '.join(map(repr, DENSITIES))}")
        density = DENSITIES[density]()
    return density.resolve(dim) if isinstance(density, Spline) else None


def make_density(density: Any, dim: int, features: int) -> nn.Module:
    """Build the density, or take the user's own, and check that it is one."""
    if isinstance(density, Spline):
        return CouplingSpline(dim, features, density)
    if isinstance(density, nn.Module):
        module = copy.deepcopy(density)  # the user's stays as it is
    else:
        module = density(dim, features) if callable(density) else density
    if not isinstance(module, nn.Module):
        raise TypeError(f"density gives a {type(module).__name__}; expected a torch.nn.Module")
    if missing := [name for name in ("log_prob", "sample") if not callable(getattr(module, name, None))]:
        raise TypeError(f"density {type(module).__name__} has no method {' and no '.join(missing)}")
    return module


def dry_run(summary: nn.Module, encoded: dict[str, Tensor]) -> int:
    """Width of a user's summary, found by running it on two data sets."""
    training = summary.training
    summary.eval()  # no running averages may change
    with torch.no_grad():
        device = next((p.device for p in summary.parameters()), torch.device("cpu"))
        out = summary({name: values[:2].to(device) for name, values in encoded.items()})
    summary.train(training)
    batch = min(2, len(next(iter(encoded.values()))))
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != batch:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"summary gives {shape} for {batch} data sets; expected a tensor ({batch}, features)")
    return out.shape[1]


def describe(options: Any, registry: Mapping[str, type]) -> dict[str, Any]:
    """Name and options of a built-in network as JSON; None is a user's own."""
    if options is None:
        return {"kind": "user"}
    kind = next(name for name, options_type in registry.items() if isinstance(options, options_type))
    return {"kind": kind, "options": asdict(options)}


def from_registry(entry: Mapping[str, Any], registry: Mapping[str, type], what: str, given: Any) -> Any:
    """Options of a built-in network by name; None for a user's own, which has to be given."""
    kind = entry["kind"]
    if kind == "user":
        if given is None:
            raise ValueError(f"this network has a {what} of the user's own: pass it as {what}=")
        return None
    if given is not None:
        raise ValueError(f"{what} was given, but this network has the built-in {kind!r}")
    if kind not in registry:
        raise ValueError(f"{what} is {kind!r}; known: {', '.join(map(repr, registry))}")
    return registry[kind](**entry["options"])
