"""The code of the README and of pages of the documentation runs."""

import re
import subprocess
import sys
import types
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["README.md", "docs/everyday.md", "docs/deployment.md", "docs/scale.md"]


def python_blocks(text: str) -> Iterator[tuple[int, str]]:
    """Yield the line and code of each Python block that no `<!-- skip -->` stands before."""
    for match in re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        if not text[: match.start()].rstrip().endswith("<!-- skip -->"):
            yield text.count("\n", 0, match.start(1)), match.group(1)


def test_python_blocks():
    blocks = ["```python\nb\n```", "<!-- skip -->", "```python\nc\n```", "```sh\nd\n```"]
    text = "\n".join(["a", *blocks, "```python\ne\n```"])
    assert list(python_blocks(text)) == [(2, "b\n"), (12, "e\n")]


@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto")  # of az.loo, by chance
@pytest.mark.parametrize("name", PAGES)
def test_code_of_a_page_runs(name, tmp_path, monkeypatch):
    """The blocks run in order in one module, in a folder of their own; networks are trained for a second each."""
    page = ROOT / name
    blocks = list(python_blocks(page.read_text(encoding="utf-8")))
    assert blocks, f"{name} holds no Python block"
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)
    for line, code in blocks:
        # Empty lines before it let tracebacks point at the page's own lines.
        shorter = re.sub(r"(max_time\W+)\d+\b", r"\g<1>1", code)
        exec(compile("\n" * line + shorter, str(page), "exec"), vars(module))


def test_readme_is_short():
    assert (ROOT / "README.md").read_text(encoding="utf-8").count("\n") <= 120


def test_every_dependency_has_a_lowest_version():
    """As `make test-lowest` installs them; PyMC chooses that of PyTensor."""
    script = [sys.executable, str(ROOT / "scripts" / "lowest-versions")]
    lines = subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()
    names = {
        re.split(r"[^\w-]", entry)[0] for entry in metadata.requires("pymc-amortized") or () if "extra" not in entry
    }
    assert {line.partition("==")[0] for line in lines} >= names - {"pytensor"}
    assert all(re.fullmatch(r"[\w-]+==[\d.]+", line) for line in lines)
