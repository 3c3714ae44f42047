"""A recipe of a small plugin, with its source: as build/recipes and build/ have them, in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.catalogue import recipes
from dca.catalogue.recipes import Loaded
from dca.foundation import data
from dca.serve import engines

NAME = "small-plugin"
RECIPE = f"""\
schema = "dca.recipe/1"
name = "{NAME}"
kind = "plugin"
title = "a small plugin"
priority = 1
package = "thing-dca"
base_version = "1.2"
lock_date = "2026-01-02"
python = ">=3.11,<3.15"

[source]
kind = "folder"
path = "small"

[engine]
package = "vllm"
version = "0.33.0"

[torch]
version = "2.14.0"
cuda = "13.0"
cxx11_abi = true

[cuda]
official = ["13.0"]
supported = []

[patches.entry_points."vllm.general_plugins"]
thing = "thing_dca:register"
"""
SERVING = f"""\
schema = "dca.serving/1"
recipe = "{NAME}"
environment = {{ VLLM_USE_V2_MODEL_RUNNER = "0" }}
architectures = ["Qwen2ForCausalLM", "Qwen3ForCausalLM"]
tool_parser = "hermes"
own_sampling = true
structured_output = true
v1 = true
"""
SOURCE = {
    "pyproject.toml": "# not part of the wheel\n",
    "thing_dca/__init__.py": '"""A plugin."""\n\n\ndef register() -> None:\n    """Nothing."""\n',
    "thing_dca/inner/__init__.py": "X = 1\n",
    "thing_dca/py.typed": "",
    "thing_dca/kernel.ptx": ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry thing()\n{\nret;\n}\n",
    "sources/kernel.cu": "// not part of the wheel\n",
    "thing_dca/notes.txt": "not part of the wheel\n",
    "thing_dca/__pycache__/__init__.pyc": "not part of the source\n",
}


def write(folder: Path) -> Path:
    """The recipe's file; its source lies in `folder`/build/small.

    Args:
        folder: to write both to.
    """
    for name, text in SOURCE.items():
        path = folder / "build/small" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    recipe = folder / f"{NAME}.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    return recipe


class Data:
    """A small plugin beside the recipes of the project, for as long as a test runs.

    Args:
        folder: with the recipe and its source.
        monkeypatch: makes them known.
    """

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source = folder / "build/small"
        self.file = write(folder)
        every, served = recipes.load_all(), engines.load_all()
        (folder / "serving").mkdir()
        (folder / f"serving/{NAME}.toml").write_text(SERVING, encoding="utf-8")
        own = engines.load_all(folder / "serving")
        monkeypatch.setattr(engines, "load_all", lambda: (*served, *own))
        monkeypatch.setattr(data, "source_folder", lambda path: folder / "build" / path)
        monkeypatch.setattr(recipes, "load_all", lambda: (*every, self.load()))

    def load(self) -> Loaded:
        """The recipe, with its source as it is now."""
        return recipes.load(self.file)
