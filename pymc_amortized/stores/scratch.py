"""Folders for what a process needs while it lives; those of processes that were killed are removed by the next one."""

from contextlib import suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any

LOCK = "in-use"
"""File of a folder that its process keeps locked; the system lets go of it, however that process ends."""


class Scratch:
    """A temporary folder.

    Parameters
    ----------
    beside : Path, optional
        A path that it is made beside, on the same disk.
    """

    def __init__(self, beside: Path | None = None) -> None:
        prefix = "prepared-" if beside is None else f"{beside.name}.prepared-"
        if beside is not None:
            _remove_abandoned(beside.parent, prefix)
        self._folder = TemporaryDirectory(prefix=prefix, dir=None if beside is None else beside.parent)
        self.path = Path(self._folder.name)
        self._lock = _locked(self.path / f"{LOCK}.new")
        if self._lock is not None:
            (self.path / f"{LOCK}.new").rename(self.path / LOCK)  # it is there once it is locked

    def remove(self) -> None:
        """Remove it, with all that it holds."""
        if self._lock is not None:
            self._lock.close()
        self._folder.cleanup()


def _locked(path: Path) -> Any:
    """Open a file and lock it; None where that cannot be: there is no such lock, or another process has it."""
    with suppress(ImportError, OSError):
        import fcntl

        file = path.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            raise
        return file
    return None


def _remove_abandoned(parent: Path, prefix: str) -> None:
    for folder in parent.iterdir():
        if folder.name.startswith(prefix) and (folder / LOCK).is_file() and (lock := _locked(folder / LOCK)):
            rmtree(folder, ignore_errors=True)
            lock.close()
