"""The same kernel for old releases of the kernels library, which import this folder instead of the one above it."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

_FILE = Path(__file__).resolve().parent.parent / "__init__.py"
_NAME = f"{__name__}_{_FILE.parent.name.replace('-', '_')}"
_SPEC = importlib.util.spec_from_file_location(_NAME, _FILE)
assert _SPEC is not None and _SPEC.loader is not None  # noqa: S101, PT018 - a file with a name of Python's has both
_MODULE = sys.modules[_NAME] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)
__all__ = list(_MODULE.__all__)
globals().update({name: getattr(_MODULE, name) for name in __all__})
