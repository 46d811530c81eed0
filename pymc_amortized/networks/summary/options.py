"""Options of the built-in summary networks: frozen, checked, JSON."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Auto", "Flat", "Grid", "Grouped", "Options", "Sequence", "Set", "SetTransformer", "Transformer"]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What all summary networks have: sizes of the network that joins what the branches give.

    Parameters
    ----------
    width : int
        Width of its hidden layers.
    depth : int
        Number of its residual blocks.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """

    width: int = 128
    depth: int = 2
    features: int | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            size, least = getattr(self, field.name), 0 if "depth" in field.name else 1
            if size is None and field.default is None:
                continue
            if not isinstance(size, int) or isinstance(size, bool):
                raise TypeError(f"{field.name} is {size!r}; it must be an integer")
            if size < least:
                raise ValueError(f"{field.name} is {size}; it must be at least {least}")


@dataclass(frozen=True, kw_only=True)
class Auto(Options):
    """Options of summary networks that are chosen by the structure of the data."""


@dataclass(frozen=True, kw_only=True)
class Flat(Options):
    """Options of the summary network for data of fixed size, in which every value has a meaning of its own.

    Parameters
    ----------
    width : int
        Width of the hidden layers.
    depth : int
        Number of residual blocks.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """


@dataclass(frozen=True, kw_only=True)
class Set(Options):
    """Options of the summary network for data with exchangeable rows: a deep set (Zaheer et al. 2017).

    Parameters
    ----------
    width : int
        Width of the hidden layers after pooling.
    depth : int
        Number of residual blocks after pooling.
    row_width : int
        Width of the network that sees single rows.
    row_depth : int, optional
        Number of its residual blocks; by default 1 for up to 64 rows and none for more, where they
        cost more than they tell.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """

    row_width: int = 32
    row_depth: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Attention(Options):
    row_width: int = 32
    row_depth: int = 2
    heads: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.row_width % self.heads:
            raise ValueError(f"row_width is {self.row_width}; it must be a multiple of heads, {self.heads}")


@dataclass(frozen=True, kw_only=True)
class SetTransformer(_Attention):
    """Options of the summary network that lets exchangeable rows attend to each other (Lee et al. 2019).

    Parameters
    ----------
    width : int
        Width of the hidden layers after pooling.
    depth : int
        Number of residual blocks after pooling.
    row_width : int
        Width of the network of the rows, a multiple of ``heads``.
    row_depth : int
        Number of attention blocks.
    heads : int
        Heads of each attention.
    points : int
        Inducing points through which rows attend to each other.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """

    points: int = 16


@dataclass(frozen=True, kw_only=True)
class Sequence(Options):
    """Options of the summary network for series: convolutions and a recurrent network.

    Parameters
    ----------
    width : int
        Width of the hidden layers after pooling.
    depth : int
        Number of residual blocks after pooling.
    row_width : int
        Width of the convolutions and of the recurrent state.
    row_depth : int
        Number of convolutions at least; long series have more, that shorten them.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """

    row_width: int = 32
    row_depth: int = 2


@dataclass(frozen=True, kw_only=True)
class Transformer(_Attention):
    """Options of the summary network for series in which steps attend to each other (Vaswani et al. 2017).

    Parameters
    ----------
    width : int
        Width of the hidden layers after pooling.
    depth : int
        Number of residual blocks after pooling.
    row_width : int
        Width of the network of the steps, a multiple of ``heads``.
    row_depth : int
        Number of attention blocks.
    heads : int
        Heads of each attention.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """


@dataclass(frozen=True, kw_only=True)
class Grid(Options):
    """Options of the summary network for images and other data with two axes in order.

    Parameters
    ----------
    width : int
        Width of the hidden layers after pooling.
    depth : int
        Number of residual blocks after pooling.
    row_width : int
        Channels of the convolutions.
    row_depth : int
        Number of residual convolutions at each resolution.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """

    row_width: int = 24
    row_depth: int = 1


@dataclass(frozen=True, kw_only=True)
class Grouped(Options):
    """Options of the summary network for rows in groups that have parameters of their own.

    Parameters
    ----------
    width : int
        Width of the hidden layers after pooling.
    depth : int
        Number of residual blocks after pooling.
    row_width : int
        Width of the networks that see single rows and single groups.
    row_depth : int, optional
        Number of their residual blocks; by default 1 for up to 64 rows or groups and none for more.
    features : int, optional
        Width of the summary; by default twice the number of parameters, at least 32.
    """

    row_width: int = 32
    row_depth: int | None = None
