"""Models, GPUs and stand-ins that the tests of serving share."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

# The folder has no place on the path that tests share.
_spec = importlib.util.spec_from_file_location("serve_cases", Path(__file__).with_name("serve_cases.py"))
assert _spec is not None
assert _spec.loader is not None
if "serve_cases" not in sys.modules:
    sys.modules["serve_cases"] = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(sys.modules["serve_cases"])
