"""CONTRIBUTING.md names files that exist, and every room."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
PATHS = sorted({match for match in re.findall(r"`([\w./]+)`", TEXT) if "/" in match or match.endswith((".py", ".md"))})


def exists(path: str) -> bool:
    """Whether there is such a file or folder in the repository, or in the package."""
    return any((folder / path).exists() for folder in (ROOT, ROOT / "pymc_amortized"))


@pytest.mark.parametrize("path", PATHS)
def test_named_paths_exist(path):
    assert exists(path)


def test_a_path_that_is_not_there_is_seen():
    assert not exists("networks/summary/none.py")


def test_every_room_has_a_line():
    rooms = [file.parent for file in (ROOT / "pymc_amortized").rglob("*.py") if file.name != "__init__.py"]
    named = {path.rstrip("/") for path in PATHS}
    lost = {room.relative_to(ROOT / "pymc_amortized").as_posix() for room in rooms} - named - {"."}
    assert lost <= {"approximators", "networks", "diagnostics/plots"}
