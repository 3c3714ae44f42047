"""Names that test modules share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parent.parent
RunDca = Callable[..., subprocess.CompletedProcess[str]]
