"""Which networks: the user's choice, its options, and the registry that saved files refer to."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from pymc_amortized.networks.density.coupling import CouplingSpline, Spline
from pymc_amortized.networks.encoding.encoder import DataEncoder
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.networks.summary import (
    Auto,
    EncodedArray,
    Flat,
    Grid,
    Grouped,
    Options,
    Sequence,
    Set,
    SetTransformer,
    SummaryNetwork,
    Transformer,
)
from pymc_amortized.networks.summary.branches import check_fit

__all__ = [
    "DENSITIES",
    "SUMMARIES",
    "DensityChoice",
    "SummaryChoice",
    "density_options",
    "describe",
    "dry_run",
    "dry_run_density",
    "from_registry",
    "make_density",
    "make_summary",
    "summary_options",
]

SummaryChoice = str | Options | nn.Module
DensityChoice = str | Spline | nn.Module | Callable[[int, int], nn.Module]

SUMMARIES: dict[str, type[Options]] = {
    "auto": Auto,
    "flat": Flat,
    "set": Set,
    "set_transformer": SetTransformer,
    "sequence": Sequence,
    "transformer": Transformer,
    "grid": Grid,
    "grouped": Grouped,
}
DENSITIES: dict[str, type[Spline]] = {"spline": Spline}


def summary_options(summary: SummaryChoice, layout: DataLayout | None, dim: int) -> Options | None:
    """Resolved options of a built-in summary network; None for a user's own."""
    if isinstance(summary, nn.Module):
        return None
    if isinstance(summary, str):
        if summary not in SUMMARIES:
            raise ValueError(f"summary is {summary!r}; allowed: {', '.join(map(repr, SUMMARIES))}")
        summary = SUMMARIES[summary]()
    _refuse_class("summary", summary)
    if type(summary) not in SUMMARIES.values():
        allowed = ", ".join(options.__name__ for options in SUMMARIES.values())
        raise TypeError(f"summary is a {type(summary).__name__}; expected a name, {allowed} or torch.nn.Module")
    if layout is not None:
        check_fit(layout, summary)
    return replace(summary, features=summary.features or max(32, 2 * dim))


def _refuse_class(what: str, choice: Any) -> None:
    """Options and networks are instances."""
    if isinstance(choice, type) and issubclass(choice, (Options, Spline, nn.Module)):
        raise TypeError(f"{what} is the class {choice.__name__}: give an instance, as in {choice.__name__}()")


def check_choices(summary: Any, density: Any) -> None:
    """Refuse what is no choice of networks, before anything is simulated for them."""
    summary_options(summary, None, 1)
    density_options(density, 1)
    if not isinstance(density, str | Spline | nn.Module) and not callable(density):
        raise TypeError(f"density is a {type(density).__name__}; expected a name, Spline, torch.nn.Module or factory")


def encoded_arrays(encoder: DataEncoder) -> list[EncodedArray]:
    """What summaries have to know of each array that the encoder gives them."""
    layout = encoder.layout
    return [
        EncodedArray(
            array.name,
            array.shape,
            encoder.channels(array.name) - array.missing,
            array.axes,
            array.missing,
            layout.groups_of(array.name),
            array.given,
            array.statistic,
        )
        for array in layout.arrays
        if not array.frame
    ]


def make_summary(options: Options, encoder: DataEncoder, dim: int) -> SummaryNetwork:
    """Build a built-in summary network for the encoder's arrays."""
    return SummaryNetwork(encoded_arrays(encoder), encoder.layout, options, options.features or 0, dim)


def density_options(density: Any, dim: int) -> Spline | None:
    """Resolved options of the built-in density; None for a user's own."""
    if density is Spline:
        _refuse_class("density", density)
    if isinstance(density, str):
        if density not in DENSITIES:
            raise ValueError(f"density is {density!r}; allowed: {', '.join(map(repr, DENSITIES))}")
        density = DENSITIES[density]()
    return density.resolve(dim) if isinstance(density, Spline) else None


def make_density(density: Any, dim: int, features: int, levels: tuple[int, ...] | None = None) -> nn.Module:
    """Build the density, or take the user's own, and check that it is one."""
    if isinstance(density, Spline):
        return CouplingSpline(dim, features, density, levels)
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
        try:
            out = summary({name: values[:2].to(device) for name, values in encoded.items()})
        except KeyError as error:
            raise KeyError(
                f"summary {type(summary).__name__} asks for {error}; the encoded data are {sorted(encoded)}"
            ) from error
    summary.train(training)
    batch = min(2, len(next(iter(encoded.values()))))
    if not isinstance(out, Tensor) or out.ndim != 2 or len(out) != batch:
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(f"summary gives {shape} for {batch} data sets; expected a tensor ({batch}, features)")
    return out.shape[1]


def dry_run_density(density: nn.Module, z: Tensor, features: int) -> None:
    """Refuse a user's density of which the densities or draws have another shape than they must."""
    batch, dim = z[:2].shape
    training = density.training
    density.eval()
    with torch.no_grad():
        device = next((p.device for p in density.parameters()), torch.device("cpu"))
        context = torch.zeros(batch, features, device=device)
        log_prob = density.log_prob(z[:2].to(device), context)  # type: ignore[operator]
        draws = density.sample(3, context, None)  # type: ignore[operator]
    density.train(training)
    name = type(density).__name__
    if not isinstance(log_prob, Tensor) or tuple(log_prob.shape) != (batch,):
        raise ValueError(
            f"density {name}: log_prob gives {_shape(log_prob)} for z ({batch}, {dim}); expected a tensor ({batch},)"
        )
    shapes = [_shape(part) for part in draws] if isinstance(draws, tuple | list) else _shape(draws)
    if shapes != [(3, batch, dim), (3, batch)]:
        raise ValueError(
            f"density {name}: sample gives {shapes} for 3 draws; expected z (3, {batch}, {dim}) and their log "
            f"densities (3, {batch})"
        )


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def describe(options: Any, registry: Mapping[str, type]) -> dict[str, Any]:
    """Name and options of a built-in network as JSON; None is a user's own."""
    if options is None:
        return {"kind": "user"}
    kind = next(name for name, options_type in registry.items() if type(options) is options_type)
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
