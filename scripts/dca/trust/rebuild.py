"""Builds a wheel again from its provenance, from scratch and in another folder, and reports the differences."""

from __future__ import annotations

import contextlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dca.binaries import elf
from dca.catalogue import kept_ptx, toolkits
from dca.catalogue.plan import Plan, Request
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.pipeline import gather, wheel
from dca.trust import evidence
from dca.trust.verify import Finding
from dca.wheelfile import provenance

# Downloads, which a build only reads; everything else is built again.
SHARED = ("downloads", "env", "toolkit", "uv", "lock")


@dataclass(frozen=True)
class Local:
    """Local sources to build from instead of downloading them.

    Args:
        source: absolute path of a clone or an sdist; None to download it.
        companions: absolute paths of the companions' clones, by name.
    """

    source: str | None = None
    companions: dict[str, str] = field(default_factory=dict)


FETCHED = Local()


def request(statement: bytes, local: Local = FETCHED) -> Request:
    """The request that leads to the same plan.

    Args:
        statement: the provenance.
        local: sources on this machine.

    Raises:
        DcaError: DCA-111 if the statement does not contain it.
    """
    try:
        definition = json.loads(statement)["predicate"]["buildDefinition"]
        asked = {provenance.BUILD_TYPE: definition["externalParameters"]}[definition["buildType"]]
        return Request(
            recipe=asked["recipe"],
            profile=asked["profile"],
            groups=tuple(asked["groups"]),
            archs=tuple(asked["archs"]),
            cuda=asked["cuda"],
            prebuilt=tuple(asked["prebuilt"]),
            prebuilt_whole=asked.get("prebuiltWhole", False),
            variants=asked.get("variants", False),
            source=local.source,
            companions=local.companions,
            # What others compiled proves nothing.
            compiler_cache="off",
            # The wheel is not for this machine; a plugin is for none.
            driver=str(toolkits.load_versions().drivers.releases[-1].driver) if asked["archs"] else None,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DcaError(
            "DCA-111",
            "the provenance does not say how the wheel was built.",
            why=f"{error!r}",
            remedy="download it again from the index where the wheel is published.",
        ) from None


def rebuild(
    path: Path,
    sha256: str,
    files: dict[str, bytes],
    cache: store.Store,
    reporter: Reporter,
    local: Local = FETCHED,
) -> Finding:
    """Build a wheel again and compare; the build's files are deleted after the comparison.

    Args:
        path: the wheel.
        sha256: of the wheel.
        files: its evidence; the provenance is required.
        cache: holds the downloads, and the build while it runs.
        reporter: receives progress.
        local: sources on this machine.

    Raises:
        DcaError: DCA-111 without provenance, and all errors of a build.
    """
    if evidence.PROVENANCE not in files:
        raise DcaError(
            "DCA-111",
            f"{path.name} cannot be built again: there is no provenance for it.",
            remedy="name the folder with its provenance.json: --evidence DIR.",
        )
    planned = gather.make_plan(request(files[evidence.PROVENANCE], local), cache)
    if differences := _differences(planned.plan, json.loads(files[evidence.PROVENANCE])):
        says = "it cannot be built again in the same way: " + "; ".join(differences) + "."
        return Finding(check="rebuild", status="not proven", says=says)
    root = cache.open().folder("rebuild", sha256[:16])
    with cache.lock("rebuild", root.name, lambda: reporter.note("another command is rebuilding this wheel; waiting.")):
        root.mkdir(parents=True, exist_ok=True)
        for name in SHARED:
            (cache.root / name).mkdir(exist_ok=True)
            with contextlib.suppress(FileExistsError):
                (root / name).symlink_to(cache.root / name)
        built = wheel.make(planned, store.Store(root), root / "dist", reporter)
        same = built.sha256 == sha256
        says = "a rebuild from its sources, in another folder, has the same bytes."
        if same:
            says += keep_ptx(Path(built.wheel), path)
        else:
            says = "a rebuild differs: " + "; ".join(differing(path, Path(built.wheel))) + "."
        store.remove(root)
    return Finding(check="rebuild", status="proven" if same else "wrong", says=says)


def keep_ptx(built: Path, wheel: Path) -> str:
    """Copy the PTX that a rebuild kept beside the wheel, which may have been built without; a sentence if it was."""
    source, target = kept_ptx.beside(built), kept_ptx.beside(wheel)
    if not source.is_file() or (target.is_file() and store.sha256_file(target) == store.sha256_file(source)):
        return ""
    try:
        store.write_bytes(target, source.read_bytes())
    except OSError as error:
        return f" Its PTX could not be written to {target}: {error.strerror}."
    return f" Its PTX is in {target.name} now."


def _differences(plan: Plan, statement: Any) -> list[str]:
    """Why this version of the tool plans another wheel on this machine; empty if it plans the same."""
    definition = statement["predicate"]["buildDefinition"]
    if definition["internalParameters"]["plan"] == plan.key:
        return []
    parts = {part["name"]: part.get("digest", {}).get("sha256") for part in definition["resolvedDependencies"]}
    then, now = definition["internalParameters"]["choices"], plan.model_dump(mode="json")
    changed = [
        f"the {name} has changed"
        for name, digest in (
            ("recipe", plan.recipe_digest),
            ("build lock", plan.build_lock_digest),
            ("run lock", plan.lock_digest),
        )
        if parts.get(name) != digest
    ]
    changed += [
        f"{name} was {then[name]} and is now {now[name]}"
        for name in sorted(then.keys() & now.keys() - {"modules"})
        if then[name] != now[name]
    ]
    return changed or ["its plan has changed"]


def differing(first: Path, second: Path) -> list[str]:
    """The differences of two wheels: files that only one has, and how the others differ."""
    with zipfile.ZipFile(first) as one, zipfile.ZipFile(second) as other:
        names = [{info.filename for info in archive.infolist()} for archive in (one, other)]
        differences = [f"only the first has {name}" for name in sorted(names[0] - names[1])]
        differences += [f"only the second has {name}" for name in sorted(names[1] - names[0])]
        for name in sorted(names[0] & names[1]):
            contents = one.read(name), other.read(name)
            if contents[0] != contents[1]:
                differences.append(f"{name}: {_why(name, *contents)}")
    if not differences:
        return ["all files are the same, but packed differently: by another zlib, or another version of this tool"]
    return differences


def _why(name: str, first: bytes, second: bytes) -> str:
    if name.endswith(".so"):
        try:
            hashes = elf.section_hashes(first), elf.section_hashes(second)
        except elf.ElfError as error:
            return f"one is not a complete module ({error})"
        changed = [section for section in hashes[0] | hashes[1] if hashes[0].get(section) != hashes[1].get(section)]
        return f"sections {', '.join(changed) or 'none'} ({len(first)} and {len(second)} bytes)"
    lines = [content.decode("utf-8", "replace").splitlines() for content in (first, second)]
    at = next((n for n, pair in enumerate(zip(*lines, strict=False)) if pair[0] != pair[1]), min(map(len, lines)))
    shown = [f"{text[at][:60]!r}" if at < len(text) else "nothing" for text in lines]
    return f"line {at + 1} is {shown[0]} and {shown[1]}"
