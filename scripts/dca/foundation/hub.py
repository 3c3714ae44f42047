"""Models that a hub's client has downloaded: the folder that ORG/NAME or ORG/NAME@REVISION stands for."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path
from typing import NamedTuple

from dca.foundation.errors import DcaError

CONFIG = "config.json"
# A URL is no name, and may hold a password.
_NAME = re.compile(r"([\w.-]+)/([\w.-]+)(?:@([\w.-]+(?:/[\w.-]+)*))?")


class Named(NamedTuple):
    """A model on a hub.

    Args:
        organisation: who publishes it.
        name: its name there.
        revision: a branch, tag or commit; empty for the branch main.
    """

    organisation: str
    name: str
    revision: str

    @property
    def repository(self) -> str:
        """The name without the revision."""
        return f"{self.organisation}/{self.name}"

    @property
    def kept(self) -> Path:
        """Its folder in the hub's cache, as the hub's client lays it out."""
        return cache() / f"models--{self.organisation}--{self.name}"


def named(model: str) -> Named | None:
    """A word as a hub's name of a model; None for what is none, and for a path that exists."""
    found = _NAME.fullmatch(model)
    if found is None or Path(model).exists() or any(part.strip(".") == "" for part in re.split("[/@]", model)):
        return None
    return Named(found[1], found[2], found[3] or "")


def is_name(model: str) -> bool:
    """Whether a word can be a hub's name of a model, and is no path that exists."""
    return named(model) is not None


def cache() -> Path:
    """The folder of the hub's cache, by the variables of its client."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def cached(model: str) -> Path | None:
    """The snapshot of a model in the hub's cache that has a config.json: of the revision, or the newest without one."""
    wanted = named(model)
    if wanted is None:
        return None
    with contextlib.suppress(OSError):
        snapshots = [path for path in (wanted.kept / "snapshots").iterdir() if (path / CONFIG).exists()]
        commit = wanted.revision
        with contextlib.suppress(OSError):
            commit = (wanted.kept / "refs" / (wanted.revision or "main")).read_text(encoding="utf-8").strip()
        if (pinned := wanted.kept / "snapshots" / commit) in snapshots:
            return pinned
        return None if wanted.revision else max(snapshots, key=lambda path: path.stat().st_mtime, default=None)
    return None


def located(model: Path) -> Path:
    """A model's folder or file; of a hub's name, its snapshot in the hub's cache.

    Raises:
        DcaError: DCA-204 for a hub's name that the cache does not have.
    """
    wanted = named(str(model))
    if wanted is None:
        return model
    if found := cached(str(model)):
        return found
    if Path(model.parts[0]).exists():
        return model
    pinned = f" --revision {wanted.revision}" if wanted.revision else ""
    raise DcaError(
        "DCA-204",
        f"{model} is not a folder, and the hub's cache has no config.json of that name: {cache()}.",
        remedy="name the model's folder, or add --download, or run "
        f"`hf download {wanted.repository} config.json{pinned}`.",
    )
