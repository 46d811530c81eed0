"""How trained objects show themselves: lines that fit a terminal, and cards in notebooks."""

import textwrap
from html import escape
from typing import ClassVar

WIDTH = 80


class Card:
    """Shows an object by what it says of itself, and by the calls that come next."""

    NEXT: ClassVar[str] = ""

    def __str__(self) -> str:
        return "\n".join(_wrapped(line) for line in repr(self).splitlines())

    def _repr_html_(self) -> str:
        title, *facts = repr(self).splitlines()
        items = "".join(f"<li>{escape(fact.strip())}</li>" for fact in facts)
        return f"<div><b>{escape(title)}</b><ul>{items}</ul>Next:<pre>{escape(self.NEXT)}</pre></div>"


def _wrapped(line: str) -> str:
    start = line[: len(line) - len(line.lstrip())]
    indent = f"{start}    "
    return textwrap.fill(line, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
