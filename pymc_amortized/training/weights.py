"""All weights of a network as one flat vector.

One vector makes everything that concerns all weights one operation: the gradient's norm, the
optimizer's step, the moving average, keeping and restoring the best.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw


def scalar_loss(network: nn.Module, batch: tuple[Tensor, Mapping[str, Tensor]]) -> Tensor:
    """Return the network's loss on a batch."""
    loss: Tensor = network.loss(*batch)  # type: ignore[operator]
    if loss.ndim:
        raise ValueError(f"The network's loss must be a scalar, got shape {tuple(loss.shape)}.")
    return loss


class FlatWeights:
    """The trainable parameters of a network, laid end to end.

    While ``flattened()`` is entered the network's parameters are views of ``vector``; afterwards
    they are tensors of their own again, with the values that the vector had at the end.

    Attributes
    ----------
    vector : Parameter
    idle : list of slice
        The weights that the latest loss did not involve.
    """

    def __init__(self, network: nn.Module) -> None:
        named = [(name, p) for name, p in network.named_parameters() if p.requires_grad]
        if not named:
            raise ValueError("The network has no trainable parameters.")
        self.layout = [[name, list(p.shape)] for name, p in named]
        self.parameters = [p for _, p in named]
        kinds = {(str(p.dtype), str(p.device)) for p in self.parameters}
        if len(kinds) > 1:
            found = ", ".join(f"{dtype} on {device}" for dtype, device in sorted(kinds))
            raise TypeError(f"The network's parameters must share one dtype and one device, found {found}.")
        self.buffers = {name: b for name, b in network.named_buffers() if b is not None}
        self.vector = nn.Parameter(torch.cat([p.detach().reshape(-1) for p in self.parameters]))
        self.idle: list[slice] = []

    @contextmanager
    def flattened(self) -> Iterator[None]:
        """Let the network compute with the vector."""
        sizes = [p.numel() for p in self.parameters]
        try:
            for p, part in zip(self.parameters, self.vector.detach().split(sizes), strict=True):
                p.data = part.view(p.shape)
            yield
        finally:
            for p in self.parameters:
                p.data = p.detach().clone()  # shared storage could not be saved
                p.grad = None

    def gradient(self, loss: Tensor) -> Tensor:
        """Return the gradient of ``loss`` as one vector; zero where the loss involves no weight."""
        gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        self.idle = self._slices([g is None for g in gradients])
        return torch.cat(
            [
                torch.zeros_like(p).view(-1) if g is None else g.reshape(-1)
                for p, g in zip(self.parameters, gradients, strict=True)
            ]
        )

    def _slices(self, chosen: list[bool]) -> list[slice]:
        """Where the chosen parameters are, those next to each other together."""
        found: list[slice] = []
        at = 0
        for p, wanted in zip(self.parameters, chosen, strict=True):
            start, at = at, at + p.numel()
            if wanted and found and found[-1].stop == start:
                found[-1] = slice(found[-1].start, at)
            elif wanted:
                found.append(slice(start, at))
        return found

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the weights that the latest loss did not involve as they are, whatever an optimizer does."""
        vector = self.vector.detach()
        kept = [(part, vector[part].clone()) for part in self.idle]
        try:
            yield
        finally:
            for part, values in kept:
                vector[part] = values

    @torch.no_grad()
    def set(self, vector: Tensor, buffers: Mapping[str, Tensor] | None = None) -> None:
        """Give the network these weights and, where given, buffers."""
        self.vector.copy_(vector)
        for name, value in (buffers or {}).items():
            self.buffers[name].copy_(value)

    @contextmanager
    def replaced(self, vector: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Iterator[None]:
        """Let the network compute with other weights, and buffers where given, for a while."""
        own, own_buffers = self.copy(), self.copied_buffers() if buffers else None
        try:
            self.set(vector, buffers)
            yield
        finally:
            self.set(own, own_buffers)

    def copy(self) -> Tensor:
        """Return a copy of the vector."""
        return self.vector.detach().clone()

    def copied_buffers(self) -> dict[str, Tensor]:
        """Return copies of the buffers, such as the running statistics of a user's network."""
        return {name: value.detach().clone() for name, value in self.buffers.items()}


class AdamW:
    """AdamW of one vector, by torch's own function: its class imports torch's compiler, which takes 3 s.

    Parameters
    ----------
    vector : Tensor
        What is moved, in its place.
    weight_decay : float
    """

    def __init__(self, vector: Tensor, weight_decay: float) -> None:
        self._vector, self._weight_decay = vector.detach(), weight_decay
        self._fused = vector.device.type in ("cpu", "cuda", "mps") and vector.is_floating_point()
        steps = torch.zeros((), device=vector.device if self._fused else "cpu")
        zeros = torch.zeros_like(self._vector)
        self.moments: dict[str, Tensor] = {"step": steps, "exp_avg": zeros, "exp_avg_sq": zeros.clone()}

    def restore(self, moments: Mapping[str, Tensor]) -> None:
        """Go on with the moments of an earlier one."""
        for name, values in self.moments.items():
            values.copy_(moments[name])

    def forget(self) -> None:
        """Begin anew from where the vector is."""
        for values in self.moments.values():
            values.zero_()

    @torch.no_grad()
    def step(self, gradient: Tensor, rate: float) -> None:
        """Make one step, at a learning rate."""
        step, mean, square = ([self.moments[name]] for name in ("step", "exp_avg", "exp_avg_sq"))
        adamw(
            [self._vector],
            [gradient],
            mean,
            square,
            [],
            step,
            foreach=False,
            fused=self._fused,
            amsgrad=False,
            beta1=0.9,
            beta2=0.999,
            lr=rate,
            weight_decay=self._weight_decay,
            eps=1e-8,
            maximize=False,
        )
