"""Models that a hub's client has downloaded: the folder that a name on a hub, ORG/NAME, stands for."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from dca.foundation.errors import DcaError

CONFIG = "config.json"
# A URL is no name, and may hold a password.
_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def is_name(model: str) -> bool:
    """Whether a word can be a hub's name of a model, and is no path that exists."""
    path = Path(model)
    plain = _NAME.fullmatch(model) and not path.is_absolute() and path.parts[0] not in (".", "..")
    return bool(plain) and not path.exists()


def cache() -> Path:
    """The folder of the hub's cache, by the variables of its client."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def cached(model: str) -> Path | None:
    """The newest snapshot of a model in the hub's cache; None without one that has a config.json."""
    if not is_name(model):
        return None
    organisation, name = model.split("/")
    kept = cache() / f"models--{organisation}--{name}"
    with contextlib.suppress(OSError):
        snapshots = [path for path in (kept / "snapshots").iterdir() if (path / CONFIG).exists()]
        with contextlib.suppress(OSError):
            named = kept / "snapshots" / (kept / "refs/main").read_text(encoding="utf-8").strip()
            if named in snapshots:
                return named
        return max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
    return None


def located(model: Path) -> Path:
    """A model's folder or file; of a hub's name, the newest snapshot in the hub's cache.

    Raises:
        DcaError: DCA-204 for a hub's name that the cache does not have.
    """
    if not is_name(str(model)):
        return model
    if found := cached(str(model)):
        return found
    if Path(model.parts[0]).exists():
        return model
    raise DcaError(
        "DCA-204",
        f"{model} is not a folder, and the hub's cache has no config.json of that name: {cache()}.",
        remedy=f"name the model's folder, or download it first: `hf download {model} config.json`.",
    )
