"""What the user brings to a file, which holds no code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymc as pm
from torch import nn

from pymc_amortized.graph.model.owners import model_of
from pymc_amortized.graph.model.tensors import CompileKwargs


@dataclass(frozen=True)
class Brought:
    """The arguments of :func:`pymc_amortized.load`.

    Attributes
    ----------
    path : Path
        Of the file, to be named in messages.
    model : pymc.Model, mapping of name to pymc.Model, or None
    summary, density : torch.nn.Module or None
        Networks of the user's own.
    compile_kwargs : mapping or None
        Passed to ``pymc.compile``.
    """

    path: Path
    model: Any = None
    summary: nn.Module | None = None
    density: Any = None
    compile_kwargs: CompileKwargs | None = None

    def one_model(self) -> pm.Model:
        """Return the model, by default the context's."""
        try:
            return model_of(self.model)
        except TypeError:
            raise TypeError(
                "model: a file holds no model; pass the one the posterior was trained for, or load it inside "
                "`with model:`"
            ) from None

    def check_network(self, what: str, own: bool) -> None:
        """Refuse a network that the file does not need, and name one that it needs.

        Parameters
        ----------
        what : str
            "summary" or "density".
        own : bool
            Whether it was trained with a network of the user's own.
        """
        given = getattr(self, what) is not None
        if own and not given:
            raise ValueError(f"{self.path.name!r} was trained with a {what} network of your own: pass it as {what}=")
        if given and not own:
            raise ValueError(f"{what} was given, but {self.path.name!r} has a built-in {what} network")

    @contextmanager
    def checking(self) -> Iterator[None]:
        """Say of a description that cannot be followed that the file is damaged."""
        try:
            yield
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ValueError(f"{self.path.name!r} is damaged: its description lacks or garbles {error}") from error
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{self.path.name!r} is damaged: {error}") from error
