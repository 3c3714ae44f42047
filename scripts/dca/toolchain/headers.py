"""Fixes the headers of toolkits, as `catalogue.header_fixes` describes.

A downloaded toolkit is fixed in its folder. A toolkit of the machine is not changed: a folder of links to its files
replaces it, with copies of the fixed headers.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import ClassVar, Literal

from dca.catalogue.header_fixes import HeaderFix, UnexpectedTextError, files, fixed, includes, read
from dca.foundation import documents, store
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError

RECORD = "dca-headers.json"


class FixedHeader(Value):
    """The outcome of a fix in a toolkit.

    Args:
        sha256: of the fix.
        status: `not needed` when the header already declares these functions with an exception specification.
    """

    name: str
    file: str
    sha256: str
    status: Literal["applied", "not needed"]


class Headers(Document):
    """The fixes of a toolkit's headers, recorded in the toolkit's folder."""

    SCHEMA: ClassVar[str] = "dca.headers/1"

    fixes: tuple[FixedHeader, ...]


def apply(toolkit: Path, fixes: Iterable[HeaderFix], label: str) -> Headers:
    """Fix the headers of a toolkit in its folder, and record the fixes there.

    Args:
        label: of the toolkit in messages.

    Raises:
        DcaError: DCA-408 when a header differs from the one that a fix was written for.
    """
    done = []
    for fix in fixes:
        status: Literal["applied", "not needed"] = "not needed"
        try:
            for path in files(toolkit, fix):
                if (text := fixed(read(path), fix)) is not None:
                    # This replaces a link, not its target, which may belong to another toolkit.
                    store.write_bytes(path, text.encode("latin-1"))
                    status = "applied"
        except (UnexpectedTextError, OSError) as error:
            raise DcaError(
                "DCA-408",
                f"the header {fix.file} of {label} could not be fixed for glibc {fix.glibc}.",
                why=f"{error}.",
                remedy=f"correct the fix `{fix.name}` in build/toolkits/cuda.toml, or give another toolkit with "
                "--toolkit DIR.",
            ) from None
        done.append(FixedHeader(name=fix.name, file=fix.file, sha256=fix.sha256, status=status))
    headers = Headers(fixes=tuple(done))
    documents.write(headers, toolkit / RECORD)
    return headers


def record(toolkit: Path | None) -> tuple[FixedHeader, ...]:
    """The recorded fixes of a toolkit's headers; empty for an unchanged toolkit."""
    if toolkit is None or not (toolkit / RECORD).is_file():
        return ()
    return documents.read(Headers, toolkit / RECORD).fixes


def overlay(toolkit: Path, version: str, fixes: tuple[HeaderFix, ...], cache: store.Store) -> Path:
    """A folder that replaces a toolkit of the machine, with fixed copies of some headers.

    nvcc finds everything relative to its own file, and headers include each other relative to their folder. So
    everything is a link except nvcc, which would follow a link to itself, and the folders that lead to the headers.

    Raises:
        DcaError: DCA-408 when a header differs from the one that a fix was written for.
    """
    folder = cache.folder("toolkit", f"own-{version}-{_identity(toolkit, fixes)}")
    with cache.lock("toolkit", folder.name):
        if folder.is_dir():
            return folder
        store.sweep(folder)
        with store.incoming_folder(folder) as part:
            open_folders = {Path(name, fix.file).parent for name in includes() for fix in fixes}
            _link(toolkit, part, [Path("bin"), *open_folders])
            nvcc = part / "bin/nvcc"
            nvcc.unlink()
            shutil.copy2(toolkit / "bin/nvcc", nvcc)
            for path in list(_headers(part, fixes)):
                content = path.read_bytes()
                path.unlink()
                path.write_bytes(content)
            apply(part, fixes, f"the toolkit {toolkit}")
    return folder


def _identity(toolkit: Path, fixes: tuple[HeaderFix, ...]) -> str:
    """Identity of an overlay: the toolkit's path, its nvcc and headers, and the fixes."""
    nvcc = (toolkit / "bin/nvcc").stat()
    return documents.digest(
        [
            str(toolkit.resolve()),
            nvcc.st_mtime_ns,
            nvcc.st_size,
            [fix.sha256 for fix in fixes],
            [store.sha256_file(path) for path in _headers(toolkit, fixes)],
        ]
    )[:12]


def _headers(toolkit: Path, fixes: tuple[HeaderFix, ...]) -> Iterator[Path]:
    for fix in fixes:
        yield from (path for name in includes() if (path := toolkit / name / fix.file).is_file())


def _link(origin: Path, target: Path, opened: list[Path]) -> None:
    """Link to everything in a folder; the `opened` folders become folders of links themselves."""
    target.mkdir(exist_ok=True)
    inside = {path.parts[0] for path in opened if path.parts}
    for entry in sorted(origin.iterdir()):
        if entry.name in inside and entry.is_dir():
            below = [Path(*path.parts[1:]) for path in opened if path.parts[:1] == (entry.name,)]
            _link(entry, target / entry.name, below)
        else:
            (target / entry.name).symlink_to(entry.absolute())
