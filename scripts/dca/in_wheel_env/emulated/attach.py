"""Attaches the emulated CUDA device to torch; the device runs this file when a program begins to import torch."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = Path(__file__).resolve().parent
# Loaded by themselves: nothing of this folder is on the path of the program.
PARTS = ("operators", "recurrent", "settings")


class _Attaching(importlib.abc.Loader):
    """Loads torch as its own loader does, then attaches the device."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        for part in PARTS:
            file = FOLDER / f"{part}.py"
            spec = importlib.util.spec_from_file_location(f"dca_emulated_{part}", file)
            if spec is None or spec.loader is None:
                raise ImportError(f"{file} cannot be imported")
            loaded = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = loaded
            spec.loader.exec_module(loaded)
            loaded.attach()


class _Finder(importlib.abc.MetaPathFinder):
    """Finds torch as the other finders do."""

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None = None,  # noqa: ARG002 - importlib's signature
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> ModuleSpec | None:
        """The other finders' answer for torch, with a loader that attaches the device."""
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Attaching(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
