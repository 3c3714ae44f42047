"""Loads the extension module beside this file; its ops are in a namespace of their own, which no other build has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

(_LIBRARY,) = Path(__file__).parent.glob("*.abi3.so")
NAMESPACE = _LIBRARY.name.partition(".")[0]

torch.ops.load_library(str(_LIBRARY))
ops: Any = getattr(torch.ops, NAMESPACE)
