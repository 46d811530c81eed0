"""Which networks: the built-in ones, registered here by name, and what is made of a user's choice.

A line in :data:`SUMMARIES` or :data:`DENSITIES` makes a network one that users and files can call by its name. What
``__all__`` lists is public in the package, too.
"""

import copy
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor, nn

from pymc_amortized.networks.density.coupling import Spline
from pymc_amortized.networks.density.flows import ZukoDensity
from pymc_amortized.networks.density.protocols import ConditionalDensity, DensityOptions, has_loss
from pymc_amortized.networks.encoding.encoder import DataEncoder
from pymc_amortized.networks.encoding.layout import DataLayout
from pymc_amortized.networks.summary.branch import Arrangement, Options
from pymc_amortized.networks.summary.branches import Auto, check_fit, make_branches
from pymc_amortized.networks.summary.flat import Flat
from pymc_amortized.networks.summary.grid import Grid
from pymc_amortized.networks.summary.grouped import Grouped
from pymc_amortized.networks.summary.sequences import Sequence, Transformer
from pymc_amortized.networks.summary.sets import Set, SetTransformer
from pymc_amortized.networks.summary.summary_network import SummaryNetwork, encoded_arrays

__all__ = [
    "Flat",
    "Grid",
    "Grouped",
    "Sequence",
    "Set",
    "SetTransformer",
    "Spline",
    "Transformer",
    "ZukoDensity",
]

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
DENSITIES: dict[str, type[DensityOptions]] = {"spline": Spline}

SummaryChoice = str | Options | nn.Module
DensityChoice = str | DensityOptions | nn.Module | Callable[[int, int], nn.Module]


def _options(what: str, choice: Any, registry: Mapping[str, type], *classes: type) -> Any:
    """Read the options of a built-in network from its name; anything else stays, but for a class."""
    if isinstance(choice, str):
        if choice not in registry:
            raise ValueError(f"{what} is {choice!r}; allowed: {', '.join(map(repr, registry))}")
        return registry[choice]()
    if isinstance(choice, type) and issubclass(choice, classes):
        raise TypeError(f"{what} is the class {choice.__name__}: give an instance, as in {choice.__name__}()")
    return choice


def _names(registry: Mapping[str, type]) -> str:
    return ", ".join(options.__name__ for options in registry.values())


def summary_options(summary: SummaryChoice, layout: DataLayout | None, dim: int) -> Options | None:
    """Resolved options of a built-in summary network; None for a user's own."""
    if isinstance(summary, nn.Module):
        return None
    options = _options("summary", summary, SUMMARIES, Options, nn.Module)
    if type(options) not in SUMMARIES.values():
        names = _names(SUMMARIES)
        raise TypeError(f"summary is a {type(options).__name__}; expected a name, {names} or torch.nn.Module")
    if layout is not None:
        check_fit(layout, options)
    return replace(options, features=options.features or max(32, 2 * dim))


def density_options(density: DensityChoice, dim: int) -> DensityOptions | None:
    """Resolved options of a built-in density; None for a user's own."""
    options = _options("density", density, DENSITIES, DensityOptions)
    return options.resolve(dim) if type(options) in DENSITIES.values() else None


def check_choices(summary: Any, density: Any) -> None:
    """Refuse what is no choice of networks, before anything is simulated for them."""
    summary_options(summary, None, 1)
    if density_options(density, 1) is None and not callable(density):  # as modules are
        names = _names(DENSITIES)
        raise TypeError(f"density is a {type(density).__name__}; expected a name, {names}, torch.nn.Module or factory")


def make_summary(options: Options, encoder: DataEncoder, dim: int) -> SummaryNetwork:
    """Build a built-in summary network for the encoder's arrays."""
    arrays = [array for array in encoded_arrays(encoder) if not array.statistic]
    first: dict[Arrangement, Options] = {}
    for network in SUMMARIES.values():
        if network.made_for is not None:
            first.setdefault(network.made_for, network())
    branches, whole = make_branches(arrays, encoder.layout, options, first, dim)
    return SummaryNetwork(encoder, branches, whole, options)


def choose_summary(
    summary: SummaryChoice, encoder: DataEncoder, dim: int, encoded: dict[str, Tensor], features: int | None = None
) -> tuple[nn.Module, int, Options | None]:
    """Build what was chosen, or copy the user's own: the network, its features, and options of a built-in one.

    Parameters
    ----------
    encoded : dict of str to Tensor
        Data that the user's own is tried with.
    features : int, optional
        That a built-in one is to have, whatever its options say.
    """
    options = summary_options(summary, encoder.layout, dim)
    if options is None:
        module: nn.Module = copy.deepcopy(summary)  # type: ignore[assignment]  # the user's stays as it is
        return module, dry_run(module, encoded), None
    if features is not None:
        options = replace(options, features=features)
    return make_summary(options, encoder, dim), options.features or 0, options


def choose_density(
    density: DensityChoice, z: Tensor, features: int, levels: tuple[int, ...]
) -> tuple[nn.Module, DensityOptions | None]:
    """Build what was chosen, or take the user's own: the density, and options of a built-in one.

    Parameters
    ----------
    z : Tensor
        (n, dim), parameters that the user's own is tried with.
    """
    dim = z.shape[1]
    options = density_options(density, dim)
    if options is not None:
        return options.make_density(dim, features, levels), options
    module = own_density(density, dim, features).float()
    dry_run_density(module, z.float(), features)
    return module, None


def own_density(density: Any, dim: int, features: int) -> nn.Module:
    """Copy the user's own density, or have it made, and check that it is one."""
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
    """Refuse a user's density of which densities, draws or losses have another shape than they must."""
    batch, dim = z[:2].shape
    training = density.training
    density.eval()
    assert isinstance(density, ConditionalDensity)
    with torch.no_grad():
        device = next((p.device for p in density.parameters()), torch.device("cpu"))
        context = torch.zeros(batch, features, device=device)
        found = {"log_prob": density.log_prob(z[:2].to(device), context)}
        draws = density.sample(3, context, None)
        if has_loss(own := density):
            found["loss"] = own.loss(z[:2].to(device), context)
    density.train(training)
    name = type(density).__name__
    for method, values in found.items():
        if not isinstance(values, Tensor) or tuple(values.shape) != (batch,):
            shape = _shape(values)
            raise ValueError(
                f"density {name}: {method} gives {shape} for z ({batch}, {dim}); expected a tensor ({batch},)"
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


def read_summary(
    entry: Mapping[str, Any], encoder: DataEncoder, dim: int, own: nn.Module | None
) -> tuple[nn.Module, Options | None]:
    """Build the summary network that was described, or copy the user's own; with options of a built-in one."""
    options = _read(entry, SUMMARIES, "summary", own)
    if options is None:
        assert own is not None
        return copy.deepcopy(own), None
    return make_summary(options, encoder, dim), options


def read_density(
    entry: Mapping[str, Any], dim: int, features: int, levels: tuple[int, ...], own: Any
) -> tuple[nn.Module, DensityOptions | None]:
    """Build the density that was described, or take the user's own; with options of a built-in one."""
    options = _read(entry, DENSITIES, "density", own)
    if options is None:
        return own_density(own, dim, features), None
    return options.make_density(dim, features, levels), options


def _read(entry: Mapping[str, Any], registry: Mapping[str, type], what: str, own: Any) -> Any:
    """Options of a built-in network by name; None for a user's own, which has to be given."""
    kind = entry["kind"]
    if kind == "user":
        if own is None:
            raise ValueError(f"this network has a {what} of the user's own: pass it as {what}=")
        return None
    if own is not None:
        raise ValueError(f"{what} was given, but this network has the built-in {kind!r}")
    if kind not in registry:
        raise ValueError(f"{what} is {kind!r}; known: {', '.join(map(repr, registry))}")
    return registry[kind](**entry["options"])


def rank_levels(levels: Collection[int]) -> tuple[int, ...]:
    """Levels counted anew, where some are no longer there."""
    there = sorted(set(levels))
    return tuple(there.index(level) for level in levels)


def read_places(given: Any, dim: int) -> list[int] | None:
    """Read the places of a description, which may be anything."""
    if given is None:
        return None
    if len(given) != dim or not all(isinstance(place, int) and place >= 0 for place in given) or len(set(given)) < dim:
        raise ValueError(f"places are {given!r}; expected {dim} different ones")
    return list(given)


def read_levels(given: Any, dim: int) -> tuple[int, ...]:
    """Read the levels of a description, which may be anything."""
    if len(given) != dim or not all(isinstance(level, int) and 0 <= level < max(dim, 1) for level in given):
        raise ValueError(f"levels are {given!r}; expected {dim} numbers from 0 to {dim - 1}")
    return tuple(given)
