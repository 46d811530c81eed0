"""What is done in blocks, so that it stays in the cache or in memory."""

from collections.abc import Iterator


def blocks(total: int, size: int) -> Iterator[slice]:
    """Cut `total` into slices of at most `size`."""
    for start in range(0, total, size):
        yield slice(start, min(start + size, total))
