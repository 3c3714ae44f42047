"""Small wheels, made in a moment, and the index they are published to."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dca import publish
from dca.catalogue import variants
from dca.catalogue.variants import Variant
from dca.foundation import store
from dca.foundation.events import Silent
from dca.inspection.archive import unpadded
from dca.publish.folder import Folder
from dca.publish.values import Published
from dca.trust.signing import Signer


@dataclass(frozen=True)
class Details:
    """What few wheels need.

    Args:
        requires: its dependencies.
        head: further lines of METADATA.
        tag: of its name and of WHEEL.
        build: its build number.
        changed: content of files by path, in place of what is right or besides.
        variant: which variant of its version it is; its own record then says the same archs.
    """

    requires: tuple[str, ...] = ()
    head: str = "Requires-Python: >=3.8\n"
    tag: str = "py3-none-any"
    build: str = ""
    changed: Mapping[str, bytes] = field(default_factory=dict)
    variant: Variant | None = None


USUAL = Details()


def make(
    folder: Path,
    version: str = "1.0+dca1.cu124",
    *,
    project: str = "vllm",
    cuda: str | None = "12.4",
    content: str = "x = 1\n",
    details: Details = USUAL,
) -> Path:
    """A wheel that is right, unless its details say otherwise; `cuda` is what its own record says, None for none."""
    info = f"{project}-{version}.dist-info"
    tag, build = details.tag, details.build
    lines = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n{details.head}"
    lines += "".join(f"Requires-Dist: {requirement}\n" for requirement in details.requires)
    wheel_tag = f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n" + (f"Build: {build}\n" if build else "")
    files = {f"{project}/__init__.py": content.encode(), f"{info}/METADATA": lines.encode() + b"\n"}
    files[f"{info}/WHEEL"] = wheel_tag.encode()
    if cuda is not None:
        record = {
            "recipe": "one",
            "plan": "p",
            "profile": "lean",
            "groups": ["core"],
            "archs": _archs(details.variant) if details.variant else ["8.0", "9.0"],
            "cuda": cuda,
            "torch": {"version": "2.8.0"},
            "modules": [],
            "serves": {},
        }
        files[f"{info}/dca.json"] = json.dumps(record).encode()
    if details.variant:
        files[f"{info}/{variants.FILE}"] = variants.written([details.variant])
    files |= details.changed
    folder.mkdir(parents=True, exist_ok=True)
    label = f"-{details.variant.label}" if details.variant else ""
    path = folder / f"{project}-{version}{f'-{build}' if build else ''}-{tag}{label}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), data)
        rows = [*(row(name, data) for name, data in files.items()), f"{info}/RECORD,,"]
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", (2020, 1, 1, 0, 0, 0)), "\n".join(rows) + "\n")
    path.chmod(0o644)
    return path


def _archs(variant: Variant) -> list[str]:
    codes = variant.properties.get(variants.NAMESPACE, {}).get(variants.ARCH, ())
    return [f"{code[:-6]}.{code[-6]}" for code in codes if code.endswith("_real")]


def row(name: str, content: bytes) -> str:
    """A line of RECORD."""
    return f"{name},sha256={unpadded(hashlib.sha256(content).digest())},{len(content)}"


def put(
    index: Path,
    *wheels: Path,
    evidence: Sequence[Path] = (),
    signers: Sequence[Signer] = (),
    links_to: str | None = None,
    url: str | None = None,
    variants: bool = False,
) -> Published:
    """Publish in this process, with a cache that knows nothing."""
    cache = store.Store(index.parent / "no-cache")
    additions = publish.Additions(evidence, signers, links_to, url, variants)
    return publish.publish(wheels, Folder(index), cache, Silent(), additions)
