"""Goes through all files of a wheel or folder once: digests them, and inspects those with compiled code."""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from dca.binaries.fatbin import Bare, FatbinError
from dca.binaries.limits import TooLargeError
from dca.foundation import zips
from dca.inspection import kinds
from dca.inspection.archive import unpadded
from dca.inspection.kinds import is_bare
from dca.inspection.modules import Looker, Stored
from dca.inspection.record import Seen
from dca.inspection.values import InspectedModule, Unread

MOST_MODULES = 2000
"""Files of compiled code that are inspected; the largest wheels have a few hundred."""
MOST_RESULT = 16 << 20
"""Bytes that the modules take in the result; the largest wheels take 1 MB."""
_BLOCK = 1 << 20
_SOME = 20
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_+-][\w.+-]{0,200}")


@dataclass(frozen=True)
class File:
    """A file of a wheel or folder.

    Args:
        path: in it.
        size: in bytes.
        stored: its compressed size in a wheel.
        blocks: reads its content.
        on_disk: where it is, if it is not in a wheel.
    """

    path: str
    size: int
    stored: int
    blocks: Callable[[], Iterator[bytes]]
    on_disk: Path | None = None


def in_wheel(archive: zipfile.ZipFile) -> Iterator[File]:
    """The files of a wheel, sorted; each path once.

    Args:
        archive: opened by `zips.opened`.
    """
    entries = {entry.filename: entry for entry in archive.infolist() if not entry.is_dir()}
    for path, entry in sorted(entries.items()):
        yield File(path, entry.file_size, entry.compress_size, functools.partial(zips.blocks, archive, entry))


def on_disk(path: str, file: Path) -> File:
    """A file that is in no wheel.

    Args:
        path: what it is called in the result.
        file: where it is.
    """

    def blocks() -> Iterator[bytes]:
        with file.open("rb") as stream:
            while block := stream.read(_BLOCK):
                yield block

    size = file.stat().st_size
    return File(path, size, size, blocks, file)


@dataclass
class _Group:
    """GPU code in files of one folder and kind."""

    code: Bare
    stored: Stored


@dataclass
class Contents:
    """What is found in the files.

    Args:
        looker: inspects those with compiled code.
        scratch: a folder, to unpack one file at a time into.
        algorithm: the algorithm of a file's digest, by its path; None if only those with compiled code are digested.
    """

    looker: Looker
    scratch: Path
    algorithm: Callable[[str], str] | None = None
    modules: list[InspectedModule] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)
    _unread: dict[tuple[str, str], Unread] = field(default_factory=dict)
    _groups: dict[tuple[str, str], _Group] = field(default_factory=dict)
    _result: int = 0

    def add_all(self, files: Iterable[File]) -> None:
        """Go through some files."""
        for file in files:
            self._add_or_leave(file)
        for group in self._groups.values():
            self._add_group(group)
        self.modules.sort(key=lambda module: module.path)

    def _add_or_leave(self, file: File) -> None:
        try:
            self._add(file)
        except zips.MethodError as error:
            self.leave(kinds.Unknown("files", str(error), cuda=True, host=True), file)
            self.problems.append(f"{file.path}: {error}; pip and uv agree on stored and deflated files alone.")
        except zips.UNREADABLE as error:
            self.problems.append(f"{file.path} is damaged: {error}.")

    @property
    def unread(self) -> tuple[Unread, ...]:
        """The files that were not looked into, by kind and reason."""
        return tuple(unread for _, unread in sorted(self._unread.items()))

    def leave(self, kind: kinds.Unknown, file: File, files: int = 1) -> None:
        """Count a file that is not looked into, or several."""
        none = Unread(what=kind.what, why=kind.why, files=0, bytes=0, some=(), cuda=kind.cuda, host=kind.host)
        before = self._unread.get((kind.what, kind.why), none)
        some = (*before.some, file.path)[:_SOME]
        added = {"files": before.files + files, "bytes": before.bytes + file.size, "some": some}
        self._unread[kind.what, kind.why] = before.model_copy(update=added)

    def _leave(self, why: str, stored: Stored) -> None:
        """Count compiled code that is too much."""
        kind = kinds.Unknown("libraries and GPU code", why, cuda=True, host=not is_bare(stored.kind))
        self.leave(kind, File(stored.path, stored.bytes, stored.stored, lambda: iter(())), stored.files)

    def _add(self, file: File) -> None:
        blocks = file.blocks()
        first = next(blocks, b"")
        kind = kinds.kind(file.path, first[: kinds.HEAD])
        every = itertools.chain((first,), blocks)
        if kind is None or isinstance(kind, kinds.Unknown):
            if self.algorithm:
                self._digest(file, every)
            if kind:
                self.leave(kind, file)
            return
        name = file.path.rsplit("/", 1)[-1]
        unpacked = file.on_disk or self.scratch / (name if _PLAIN_NAME.fullmatch(name) else "module")
        sha256 = self._digest(file, every, None if file.on_disk else unpacked)
        try:
            self._inspect(Stored(file.path, kind, file.size, file.stored, sha256), unpacked)
        finally:
            if not file.on_disk:
                unpacked.unlink(missing_ok=True)

    def _inspect(self, stored: Stored, file: Path) -> None:
        """Inspect a file of compiled code."""
        folder = stored.path.rpartition("/")[0]
        group = self._groups.get((folder, stored.kind))
        if group is None and len(self.modules) + len(self._groups) >= MOST_MODULES:
            self._leave(f"more than {MOST_MODULES} of them are not inspected", stored)
            return
        try:
            if not is_bare(stored.kind):
                self._keep(*self.looker.look(stored, file))
                return
            code = group.code if group else Bare(self.looker.work)
            code.add(file, stored.kind, stored.path)
        except FatbinError as error:
            self.problems.append(f"{stored.path}: {error}.")
        except TooLargeError as error:
            self._leave(f"more than is read: {error}", stored)
        else:
            self._groups[folder, stored.kind] = _Group(code, _together(group.stored, stored) if group else stored)

    def _add_group(self, group: _Group) -> None:
        try:
            self._keep(*self.looker.bare(group.stored, group.code.result()))
        except TooLargeError as error:
            self._leave(f"more than is read: {error}", group.stored)

    def _keep(self, module: InspectedModule, problems: list[str]) -> None:
        """Add a module to the result, unless the result becomes too long."""
        self._result += len(module.model_dump_json())
        if self._result > MOST_RESULT:
            stored = Stored(module.path, module.kind, module.bytes, module.stored, "", module.files)
            self._leave(f"the result is not longer than {MOST_RESULT >> 20} MiB", stored)
            return
        self.modules.append(module)
        self.problems += problems

    def _digest(self, file: File, blocks: Iterable[bytes], target: Path | None = None) -> str:
        """Read a file to its end, and write it to another if there is a target; its sha256."""
        sha256, size = hashlib.sha256(), 0
        algorithm = self.algorithm(file.path) if self.algorithm else "sha256"
        own = sha256 if algorithm == "sha256" else hashlib.new(algorithm)
        with (target or Path(os.devnull)).open("wb") as stream:
            for block in blocks:
                size += len(block)
                sha256.update(block)
                if own is not sha256:
                    own.update(block)
                stream.write(block)
        self.seen[file.path] = Seen(unpadded(own.digest()), size)
        return sha256.hexdigest()


def _together(first: Stored, second: Stored) -> Stored:
    """Several files of GPU code in one folder."""
    folder = second.path.rpartition("/")[0]
    return Stored(
        path=f"{folder}/*{PurePosixPath(second.path).suffix}".lstrip("/"),
        kind=second.kind,
        bytes=first.bytes + second.bytes,
        stored=first.stored + second.stored,
        sha256="",
        files=first.files + 1,
    )
