"""docs/troubleshooting.md quotes messages that exist, and has a place for each that users may meet."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from pymc_amortized.correction.doubt import Kind

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
PACKAGE = ROOT / "pymc_amortized"
SOURCES = {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py")}

GAP = "\N{HORIZONTAL ELLIPSIS}"
# Of a message: names and numbers, which differ from one to the next.
FIELD = re.compile(r"%[-+.\d]*[a-z%]")
# Met by who changes the package, or reads a file that somebody tampered with; never by a user's mistake at the door.
INSIDE = (
    "__init__.py",
    "approximators/storage/",
    "approximators/comparison/file.py",
    "approximators/posterior/file.py",
    "networks/density/protocols.py",
    "networks/encoding/",
    "networks/images.py",
    "networks/rows/",
    "novelty/",
    "numerics/location_scale.py",
    "numerics/quadratic.py",
    "training/shared.py",
    "training/source.py",
    "training/state.py",
    "training/history.py",
    "training/judge.py",
    "row_density/columns.py",
)


def text_of(node: ast.expr) -> str:
    """Return the words of an expression, a gap for everything that is filled in."""
    match node:
        case ast.Constant(value=str() as value):
            return FIELD.sub(GAP, value)
        case ast.JoinedStr(values=values):
            return "".join(map(text_of, values))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return text_of(left) + text_of(right)
    return GAP


def texts(source: str) -> Iterator[str]:
    """Yield every text that stands in a source."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str)):
            yield text_of(node)


def warnings_and_errors(source: str) -> Iterator[tuple[int, str]]:
    """Yield line and words of each message that is logged as a warning or raised."""
    for node in ast.walk(ast.parse(source)):
        call = node.exc if isinstance(node, ast.Raise) else node
        if not isinstance(call, ast.Call) or not call.args:
            continue
        if isinstance(node, ast.Raise) or ast.unparse(call.func) in ("logger.warning", "warnings.warn"):
            words = text_of(call.args[0])
            # with fewer letters, it hands on what is said elsewhere
            if len(re.findall("[a-z]", words)) > 6:
                yield node.lineno, words


def pieces(quote: str) -> list[str]:
    """Split a quoted message at its gaps; what is too short to be found by is left out."""
    return [piece.strip() for piece in quote.split(GAP) if len(piece.strip()) > 6]


WORDS = " ".join(re.sub(r"\s+", " ", text) for source in SOURCES.values() for text in texts(source))
QUOTES = [re.sub(r"\s+", " ", quote) for quote in re.findall(r"^> (.+)$", PAGE, re.MULTILINE)]


@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_doubt_has_an_anchor(kind):
    assert f"({kind.replace(' ', '-')})=\n### {kind}\n" in PAGE


@pytest.mark.parametrize("quote", QUOTES)
def test_a_quoted_message_exists(quote):
    assert pieces(quote), "nothing in it can be found"
    assert [piece for piece in pieces(quote) if piece not in WORDS] == []


def test_every_message_has_a_place():
    known = [piece for quote in QUOTES for piece in pieces(quote)]
    lost = [
        f"{name}:{line} {words}"
        for name, source in SOURCES.items()
        if not name.startswith(INSIDE)
        for line, words in warnings_and_errors(source)
        if not any(piece in re.sub(r"\s+", " ", words) for piece in known)
    ]
    assert lost == [], "docs/troubleshooting.md quotes nothing of these:\n" + "\n".join(lost)


def test_a_message_without_a_place_is_seen():
    source = 'logger.warning("Nobody %s wrote %d of this", a, b)\nraise ValueError(f"{name!r} is" " very odd")'
    assert {words for _, words in warnings_and_errors(source)} == {
        f"Nobody {GAP} wrote {GAP} of this",
        f"{GAP} is very odd",
    }
