"""How trained objects show themselves: lines that fit a terminal, and cards in notebooks."""

import textwrap
from html import escape
from typing import ClassVar

WIDTH = 80


class Card:
    """Shows an object by what it says of itself, and by the calls that come next.

    Completion (``dir``) offers what users call, not what a record of a training has for other rooms of this package: a
    class that has set `INSIDE` keeps its methods from it.
    """

    NEXT: ClassVar[str] = ""
    INSIDE: ClassVar[bool] = False

    def __dir__(self) -> list[str]:
        bases = [base for base in type(self).__mro__ if vars(base).get("INSIDE")]
        fields = getattr(self, "__dataclass_fields__", {})
        hidden = {name for base in bases for name in vars(base) if not name.startswith("__")} - set(fields)
        return [name for name in super().__dir__() if name not in hidden | {"NEXT", "INSIDE"}]

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
