"""The README's code runs."""

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and code of each Python block that no `<!-- skip -->` stands before."""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not text[: match.start()].rstrip().endswith("<!-- skip -->"):
            yield text.count("\n", 0, match.start(1)), match.group(1)


def test_python_blocks():
    blocks = ["```python\nb\n```", "<!-- skip -->", "```python\nc\n```", "```sh\nd\n```"]
    text = "\n".join(["a", *blocks, "```python\ne\n```"])
    assert list(python_blocks(text)) == [(2, "b\n"), (12, "e\n")]


def test_readme_code_runs(tmp_path, monkeypatch):
    """The blocks run in order in one module, in a folder of their own; networks are trained for a second each."""
    blocks = list(python_blocks(README.read_text(encoding="utf-8")))
    assert blocks, "README.md holds no Python block"
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("readme")
    monkeypatch.setitem(sys.modules, "readme", module)
    for line, code in blocks:
        # Empty lines before it let tracebacks point at the README's own lines.
        shorter = re.sub(r"(max_time\W+)\d+\b", r"\g<1>1", code)
        exec(compile("\n" * line + shorter, str(README), "exec"), vars(module))
