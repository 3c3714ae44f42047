"""Small wheels, made in a moment, and the index they are published to."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path

from dca import publish
from dca.foundation import store
from dca.foundation.events import Silent
from dca.inspection.archive import unpadded
from dca.publish.folder import Folder
from dca.publish.values import Published

TAG = "py3-none-any"


def make(
    folder: Path,
    version: str = "1.0+dca1.cu124",
    *,
    project: str = "vllm",
    cuda: str | None = "12.4",
    content: str = "x = 1\n",
    requires: tuple[str, ...] = (),
    head: str = "Requires-Python: >=3.8\n",
    tag: str = TAG,
    build: str = "",
    changed: dict[str, bytes] | None = None,
) -> Path:
    """A wheel that is right, unless `changed` says otherwise; `cuda` is what its own record says, None for none."""
    info = f"{project}-{version}.dist-info"
    lines = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n{head}"
    lines += "".join(f"Requires-Dist: {one}\n" for one in requires)
    wheel_tag = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n" + (f"Build: {build}\n" if build else "")
    files = {f"{project}/__init__.py": content.encode(), f"{info}/METADATA": lines.encode() + b"\n"}
    files[f"{info}/WHEEL"] = wheel_tag.encode()
    if cuda is not None:
        told = {
            "recipe": "one",
            "plan": "p",
            "profile": "lean",
            "groups": ["core"],
            "archs": ["8.0", "9.0"],
            "cuda": cuda,
            "torch": {"version": "2.8.0"},
            "modules": [],
            "serves": {},
        }
        files[f"{info}/dca.json"] = json.dumps(told).encode()
    files |= changed or {}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{project}-{version}{f'-{build}' if build else ''}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
        rows = [*(row(name, data) for name, data in files.items()), f"{info}/RECORD,,"]
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", (2020, 1, 1, 0, 0, 0)), "\n".join(rows) + "\n")
    path.chmod(0o644)
    return path


def row(name: str, content: bytes) -> str:
    """A line of RECORD."""
    return f"{name},sha256={unpadded(hashlib.sha256(content).digest())},{len(content)}"


def put(index: Path, *wheels: Path, **more: object) -> Published:
    """Publish in this process, with a cache that knows nothing."""
    cache = store.Store(index.parent / "no-cache")
    return publish.publish(wheels, Folder(index), cache, Silent(), **more)  # type: ignore[arg-type]
