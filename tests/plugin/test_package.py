"""The plugin's package as a whole: what it imports, how large it is, and that it can be read without vLLM."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PLUGIN = ROOT / "build/plugin"
SOURCES = sorted((PLUGIN / "vllm_dca").glob("*.py"))
# What vLLM brings along, besides the standard library.
BROUGHT = frozenset({"numpy", "prometheus_client", "torch", "vllm"})
# These are read, and tested, where there is neither torch nor vLLM.
PLAIN = ("chunking", "refusals", "settings")


def imported(source: Path) -> set[str]:
    """The first names of what a file imports, its own package left out."""
    names = set()
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Import):
            names |= {name.name.partition(".")[0] for name in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add((node.module or "").partition(".")[0])
    return names


def test_it_imports_what_vllm_brings_and_nothing_of_the_tool() -> None:
    assert len(SOURCES) > 5
    for source in SOURCES:
        assert imported(source) - BROUGHT <= sys.stdlib_module_names, source


def test_it_is_small() -> None:
    sources = [*SOURCES, *(PLUGIN / "csrc").iterdir()]
    lines = {source.name: sum(bool(line.strip()) for line in source.read_text().splitlines()) for source in sources}
    print(lines, sum(lines.values()))
    assert sum(lines.values()) < 1800
    assert max(lines.values()) < 400


def test_its_entry_point_is_there_before_vllm_is() -> None:
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text())["project"]
    assert project["name"] == "vllm-dca"
    (entry,) = project["entry-points"]["vllm.general_plugins"].items()
    assert entry == ("dual_chunk_attention", "vllm_dca:register")
    code = "import vllm_dca, sys; assert callable(vllm_dca.register); assert 'vllm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=PLUGIN, check=True)


@pytest.mark.parametrize("name", PLAIN)
def test_what_is_rejected_can_be_read_without_torch(name: str) -> None:
    code = f"import vllm_dca.{name}, sys; assert not {{'torch', 'numpy', 'vllm'}} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=PLUGIN, check=True)
