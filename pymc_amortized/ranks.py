"""Several processes that train one network, as torchrun starts them; a process alone does nothing of this.

Each process, a rank, trains on simulations of its own, and the gradients are averaged at every step (Li et al. 2020,
arXiv 2006.15704). All weights of a network are one vector here, so that one message a step does what
``DistributedDataParallel`` does by hooks and buckets. What clocks and measurements decide, rank 0 decides for all. So
all go the same way, and none waits for a message that another does not send.

There are several ranks inside of :func:`together` alone: a posterior is sampled by each process for itself.
"""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch import Tensor

from pymc_amortized.logs import logger

_together = [False]
_noted: set[int] = set()


@contextmanager
def together() -> Iterator[None]:
    """Let all ranks do what follows as one; rank 0 alone logs. Can be a decorator."""
    if _together[0] or not _launched():
        yield
        return
    if not dist.is_initialized():
        dist.init_process_group()  # gloo for tensors on the CPU, nccl for those on GPUs
    _together[0] = True
    logger.addFilter(_speaks)
    try:
        yield
    finally:
        logger.removeFilter(_speaks)
        _together[0] = False


def rank() -> int:
    """Which of the ranks this is, from 0."""
    return dist.get_rank() if _together[0] else 0


def number_of_ranks() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if _together[0] else 1


def ranks_here() -> tuple[int, int]:
    """Which of the ranks on this machine this is, from 0, and how many there are."""
    if not _together[0]:
        return 0, 1
    return int(os.environ.get("LOCAL_RANK", rank())), int(os.environ.get("LOCAL_WORLD_SIZE", number_of_ranks()))


def writes_files() -> bool:
    """Whether this process writes files: one of those that were started together does."""
    if not _launched():
        return True
    return (dist.get_rank() if dist.is_initialized() else int(os.environ["RANK"])) == 0


def wait_until(holds: Callable[[], bool]) -> None:
    """Wait for what the process does that writes files; if that fails, torchrun ends all."""
    while not holds():
        time.sleep(0.5)


def average_over_ranks(values: Tensor) -> Tensor:
    """Average a tensor over all ranks, in its place."""
    if number_of_ranks() == 1:
        return values
    dist.all_reduce(values)
    return values.div_(number_of_ranks())


def agree[T](value: T) -> T:
    """Return what rank 0 was given: a plain value, or arrays."""
    if number_of_ranks() == 1:
        return value
    held = [value]
    dist.broadcast_object_list(held)
    return held[0]


def by_first[T](make: Callable[[], T]) -> T:
    """Return what rank 0 makes; the others wait for it."""
    return agree(make() if rank() == 0 else None)  # type: ignore[return-value]


def gathered[T](value: T) -> list[T]:
    """Return what each rank was given, to rank 0 alone; the others get nothing."""
    if number_of_ranks() == 1:
        return [value]
    held: list[Any] | None = [None] * number_of_ranks() if rank() == 0 else None
    dist.gather_object(value, held)
    return held or []


def broadcast(*tensors: Tensor) -> None:
    """Give all ranks the values that tensors have on rank 0."""
    if number_of_ranks() > 1:
        for tensor in tensors:
            dist.broadcast(tensor.detach(), 0)


@contextmanager
def noting(number: int) -> Iterator[None]:
    """Note a signal instead of doing at once what it says, so that all ranks end at the same step.

    Only the main thread can.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(number, lambda *_: _noted.add(number))
    try:
        yield
    finally:
        signal.signal(number, before)
        _noted.discard(number)


def was_noted(number: int) -> bool:
    """Whether a signal has come to this rank."""
    return number in _noted


def _launched() -> bool:
    """Whether this process is one of several that were started together."""
    if not dist.is_available():
        return False
    return dist.is_initialized() or ("RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1)


def _speaks(record: logging.LogRecord) -> bool:
    """Whether to log this: the others would say what rank 0 says."""
    return rank() == 0 or record.levelno >= logging.ERROR
