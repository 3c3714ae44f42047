"""Builds a wheel again from its provenance, from nothing and in another folder, and tells where the two differ."""

from __future__ import annotations

import contextlib
import json
import zipfile
from pathlib import Path
from typing import Any

from dca.binaries import elf
from dca.catalogue.plan import Plan, Request
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.pipeline import gather, wheel
from dca.trust import evidence
from dca.trust.verify import Finding
from dca.wheelfile import provenance

# What a build fetches and only reads; everything else is made anew.
SHARED = ("downloads", "env", "toolkit", "uv", "lock")


def request(statement: bytes, **local: Any) -> Request:
    """What must be asked for to get the same plan.

    Args:
        statement: the provenance.
        local: local sources, as in `Request`.

    Raises:
        DcaError: DCA-111 when the statement does not say.
    """
    try:
        told = json.loads(statement)
        definition = told["predicate"]["buildDefinition"]
        asked = {provenance.BUILD_TYPE: definition["externalParameters"]}[definition["buildType"]]
        return Request(
            recipe=asked["recipe"],
            profile=asked["profile"],
            groups=tuple(asked["groups"]),
            archs=tuple(asked["archs"]),
            cuda=asked["cuda"],
            prebuilt=tuple(asked["prebuilt"]),
            **local,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DcaError(
            "DCA-111",
            "the provenance does not say how the wheel was made.",
            why=f"{error!r}",
            remedy="get it anew from where the wheel was published.",
        ) from None


def rebuild(
    path: Path, sha256: str, files: dict[str, bytes], cache: store.Store, reporter: Reporter, **local: Any
) -> Finding:
    """Build a wheel again and compare; what is compiled is kept until they have been compared.

    Args:
        path: the wheel.
        sha256: of it.
        files: its evidence; the provenance is needed.
        local: local sources, as in `Request`.

    Raises:
        DcaError: DCA-111 without provenance, and all that building raises.
    """
    if evidence.PROVENANCE not in files:
        raise DcaError(
            "DCA-111",
            f"{path.name} cannot be built again: nothing says how it was made.",
            remedy="name the folder with its provenance.json: --evidence DIR.",
        )
    plan, world = gather.make_plan(request(files[evidence.PROVENANCE], **local), cache)
    if differences := _planned(plan, json.loads(files[evidence.PROVENANCE])):
        says = "it cannot be built again as it was: " + "; ".join(differences) + "."
        return Finding(check="rebuild", status="not proven", says=says)
    root = cache.open().folder("rebuild", sha256[:16])
    with cache.lock("rebuild", root.name, lambda: reporter.note("another run builds it again; waiting for it.")):
        root.mkdir(parents=True, exist_ok=True)
        for name in SHARED:
            (cache.root / name).mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                (root / name).symlink_to(cache.root / name)
        made = wheel.make(plan, world, store.Store(root), root / "dist", reporter)
        same = made.sha256 == sha256
        says = "built again from its sources, in another folder, it has the same bytes."
        if not same:
            says = "built again it differs: " + "; ".join(differing(path, Path(made.wheel))) + "."
        store.remove(root)
    return Finding(check="rebuild", status="proven" if same else "wrong", says=says)


def _planned(plan: Plan, told: Any) -> list[str]:
    """Why this tool and machine plan another wheel today, in words; empty when they plan the same."""
    definition = told["predicate"]["buildDefinition"]
    if definition["internalParameters"]["plan"] == plan.key:
        return []
    parts = {one["name"]: one.get("digest", {}).get("sha256") for one in definition["resolvedDependencies"]}
    then, now = definition["internalParameters"]["choices"], plan.model_dump(mode="json")
    changed = [
        f"the {name} is another"
        for name, digest in (
            ("recipe", plan.recipe_digest),
            ("build lock", plan.build_lock_digest),
            ("run lock", plan.lock_digest),
        )
        if parts.get(name) != digest
    ]
    changed += [
        f"{name} was {then[name]} and would be {now[name]}"
        for name in sorted(then.keys() & now.keys() - {"modules"})
        if then[name] != now[name]
    ]
    return changed or ["its plan is another"]


def differing(one: Path, other: Path) -> list[str]:
    """Where two wheels differ, in words: files that only one has, and why the others are not the same."""
    with zipfile.ZipFile(one) as first, zipfile.ZipFile(other) as second:
        names = [{info.filename for info in archive.infolist()} for archive in (first, second)]
        told = [f"only the first has {name}" for name in sorted(names[0] - names[1])]
        told += [f"only the second has {name}" for name in sorted(names[1] - names[0])]
        for name in sorted(names[0] & names[1]):
            contents = first.read(name), second.read(name)
            if contents[0] != contents[1]:
                told.append(f"{name}: {_why(name, *contents)}")
    if not told:
        return ["every file is the same, but not how they are packed: another zlib, or another version of this tool"]
    return told


def _why(name: str, one: bytes, other: bytes) -> str:
    if name.endswith(".so"):
        try:
            first, second = elf.section_hashes(one), elf.section_hashes(other)
        except elf.ElfError as error:
            return f"one is no whole module ({error})"
        changed = [section for section in first | second if first.get(section) != second.get(section)]
        return f"sections {', '.join(changed) or 'none'} ({len(one)} and {len(other)} bytes)"
    lines = [content.decode("utf-8", "replace").splitlines() for content in (one, other)]
    at = next((n for n, pair in enumerate(zip(*lines, strict=False)) if pair[0] != pair[1]), min(map(len, lines)))
    shown = [f"{text[at][:60]!r}" if at < len(text) else "nothing" for text in lines]
    return f"line {at + 1} is {shown[0]} and {shown[1]}"
