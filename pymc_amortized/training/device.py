"""Where to train, the random numbers of that place, and how long a step takes there."""

import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pymc_amortized.ranks import agree, number_of_ranks, ranks_here
from pymc_amortized.training.options import Precision


def available_devices() -> tuple[str, ...]:
    """Return the devices this machine offers, the preferred one first."""
    devices = []
    if torch.cuda.is_available():
        devices += ["cuda", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    if torch.backends.mps.is_available():
        devices.append("mps")
    return (*devices, "cpu")


def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to use.

    Parameters
    ----------
    device : str, torch.device or None
        "cpu", "cuda", "cuda:1", "mps", ... None takes CUDA if there is one, then MPS, then the CPU.
        Of several ranks, each takes a CUDA device of its own.

    Returns
    -------
    torch.device

    Raises
    ------
    TypeError, ValueError
        If ``device`` is not the name of a device, or of one that this machine does not have.
    """
    available = available_devices()
    device = available[0] if device is None else device
    if number_of_ranks() > 1 and str(device) == "cuda":
        device = f"cuda:{ranks_here()[0]}"
    listed = ", ".join(map(repr, available))
    if not isinstance(device, str | torch.device):
        raise TypeError(f"device must be a string, a torch.device or None, got {device!r}. Available: {listed}.")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise ValueError(f"device={device!r} is not a device of torch. Available: {listed}.") from None
    # "cpu:0" and "mps:0" are other names of "cpu" and "mps"; CUDA devices are listed one by one.
    plain = chosen.type if chosen.type != "cuda" and not chosen.index else str(chosen)
    if plain not in available:
        raise ValueError(f"device={str(device)!r} is not available here. Available: {listed}.")
    return chosen


def precision(name: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """Compute with numbers of this precision, where torch finds that harmless; weights stay as they are."""
    return torch.autocast(device.type, torch.bfloat16) if name == "bf16" else nullcontext()


def check_precision(name: Precision, device: torch.device) -> None:
    """Raise ValueError where a device does not compute with numbers of this precision."""
    able = torch.amp.is_autocast_available(device.type)
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported(including_emulation=False)
    if name == "bf16" and not able:
        raise ValueError(f"precision='bf16' is not there on device {str(device)!r}; 'float32' is.")


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Return the state of torch's global generators that computations on ``device`` use."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        states["mps"] = torch.mps.get_rng_state()
    return states


def set_random_state(device: torch.device, states: dict[str, Tensor]) -> None:
    """Set what ``random_state`` returned; a generator without a state is left as it is."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    elif device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def integer_seed(seed: np.random.SeedSequence) -> int:
    """Return a seed for torch, from one of NumPy's."""
    return int(seed.generate_state(1, np.uint64)[0] >> 1)


def torch_generator(seed: np.random.SeedSequence, device: torch.device | str) -> torch.Generator:
    """Return a generator of random numbers on a device, from a seed of NumPy's."""
    generator = torch.Generator(device=device)
    generator.manual_seed(integer_seed(seed))
    return generator


@contextmanager
def isolated_random_numbers(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, for dropout and the like, and put them back at the end."""
    before = random_state(device)
    try:
        generator = torch.Generator().manual_seed(seed)
        torch.set_rng_state(generator.get_state())
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        yield
    finally:
        set_random_state(device, before)


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """Let torch compute with so many threads, and put their number back at the end."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        yield
    finally:
        torch.set_num_threads(before)


def fastest_step(
    network: nn.Module, z: Tensor, encoded: Mapping[str, Tensor], threads: int | None = None
) -> tuple[float, int]:
    """Time a loss with its gradient on a batch, on one thread and on all that torch may use.

    Threads wait for each other at every operation: on a machine that does other work besides, two can be ten
    times slower than one.

    Parameters
    ----------
    network : nn.Module
        With a method ``loss(z, encoded)``; it stays as it is.
    z : Tensor
        (batch, dim)
    encoded : mapping
        Named tensors (batch, ...).
    threads : int, optional
        The only number of threads to try.

    Returns
    -------
    seconds : float
    threads : int
        The faster number of threads.
    """
    allowed = torch.get_num_threads()
    if z.device.type != "cpu":
        return agree((_seconds(network, z, encoded), allowed))
    timed = []
    for number in [threads] if threads else sorted({1, allowed}):
        with torch_threads(number):
            timed.append((_seconds(network, z, encoded), number))
    return agree(min(timed))


def _seconds(network: nn.Module, z: Tensor, encoded: Mapping[str, Tensor]) -> float:
    """Median of three trials, after one that does not count."""
    weights = [p for p in network.parameters() if p.requires_grad]
    seconds = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.enable_grad():
            loss = network.loss(z, encoded)  # type: ignore[operator]
            gradients = torch.autograd.grad(loss, weights, allow_unused=True)
        float(sum(g.sum() for g in gradients if g is not None))  # waits for the device
        seconds.append(time.perf_counter() - start)
    return sorted(seconds[1:])[1]
