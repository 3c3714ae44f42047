"""Unpacks untrusted archives: nothing is written outside the target folder, and the unpacked size is limited.

Every rejection is DCA-404, before or while files are written; the caller unpacks into a folder that it discards.
"""

from __future__ import annotations

import gzip
import lzma
import os
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from dca.foundation import store, together, zip_layout
from dca.foundation.errors import DcaError

if not hasattr(tarfile, "data_filter"):
    # Python 3.10 has filters from 3.10.12 on, 3.11 from 3.11.4 on. The package is the tarfile of a later Python.
    from backports import tarfile  # type: ignore[no-redef]

# What an archive may unpack to; see `most_unpacked`.
MOST_UNPACKED, SMALL_UNPACKED, MOST_GROWTH, MOST_MEMBERS = 32 << 30, 256 << 20, 100, 500_000
LONGEST_NAME = 1024


def unpack_sdist(archive: Path, folder: Path) -> None:
    """The single top folder of an sdist, or of any other tar archive that has one, as `folder`.

    Raises:
        DcaError: DCA-404 for anything that would leave the folder, and for an archive that is damaged or has no single
            top folder.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.", suffix=".part") as scratch:
        try:
            _check_stream(archive)
            with tarfile.open(archive) as tar:
                names = _check_members(tar, archive)
                tar.extractall(scratch, filter=_filter)  # noqa: S202 - the filter is tarfile's own "data"
        except tarfile.FilterError as error:
            raise _leaves(archive, str(error)) from None
        except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise _damaged(archive, error) from None
        except OSError as error:
            # gzip and bz2 report damage as an OSError without a number; an error of the disk has one.
            if error.errno:
                raise
            raise _damaged(archive, error) from None
        tops = sorted({name.split("/")[0] for name in names})
        if len(tops) != 1 or not (Path(scratch) / tops[0]).is_dir():
            raise DcaError(
                "DCA-404",
                f"{archive.name} does not have one top folder.",
                remedy="use the published archive.",
            )
        top = Path(scratch) / tops[0]
        for _, path in store.walk(top):
            if path.is_symlink() and store.leads_out(path, top):
                raise _leaves(archive, f"{path.relative_to(top)} -> {path.readlink()}")
        top.rename(folder)


def _filter(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    together.check()
    return tarfile.data_filter(member, folder)


def _check_stream(archive: Path) -> None:
    """Read a gzip stream to its end: tarfile takes damage in the middle for the end of the archive."""
    with archive.open("rb") as stream:
        if stream.read(2) != b"\x1f\x8b":
            return
    read, most = 0, most_unpacked(archive)
    with gzip.open(archive) as content:
        while block := content.read(1 << 20):
            together.check()
            read += len(block)
            if read > most:
                raise _bomb(archive, read)


def most_unpacked(archive: Path) -> int:
    """Bytes that an archive may unpack to. The largest pinned one grows eightfold; text grows twentyfold."""
    return min(MOST_UNPACKED, max(SMALL_UNPACKED, archive.stat().st_size * MOST_GROWTH))


def _check_members(tar: tarfile.TarFile, archive: Path) -> list[str]:
    """The names of a tar archive's members.

    Raises:
        DcaError: DCA-404 for members that some releases of tarfile's own filter accept: a name outside the folder, a
            member below a link, a hard link to anything but an earlier file, a device. Also for a repeated name, and
            for an archive that grows too much.
    """
    # "dir", "link" or "file" by path, for every member and every folder that a member's path implies.
    kinds: dict[str, str] = {}
    size, most = 0, most_unpacked(archive)
    for member in tar:
        _check_name(member.name, archive)
        size += member.size
        if size > most or len(kinds) > MOST_MEMBERS:
            raise _bomb(archive, size)
        if not (member.isreg() or member.isdir() or member.islnk() or member.issym()):
            raise _leaves(archive, f"{member.name.rstrip('/')} is not a file, folder or link")
        parts = _parts(member.name)
        folders = ["/".join(parts[:depth]) for depth in range(1, len(parts))]
        _check_place(member, "/".join(parts), folders, kinds, archive)
        _check_target(member, "/".join(parts), kinds, archive)
        kinds["/".join(parts)] = "dir" if member.isdir() else "link" if member.issym() else "file"
        kinds.update({folder: "dir" for folder in folders if folder not in kinds})
    return [member.name for member in tar.getmembers()]


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _check_place(member: tarfile.TarInfo, name: str, folders: list[str], kinds: dict[str, str], archive: Path) -> None:
    """Reject a member below a link or a file, and a repeated name.

    Args:
        name: its path.
        folders: the folders above it, by path.
        kinds: the kinds of the members before it.
    """
    if through := [folder for folder in folders if kinds.get(folder, "dir") != "dir"]:
        raise _leaves(archive, f"{name}, which lies below {through[0]}, a {kinds[through[0]]}")
    if name in kinds and not (member.isdir() and kinds[name] == "dir"):
        raise _leaves(archive, f"{name}, which is there twice")


def _check_target(member: tarfile.TarInfo, name: str, kinds: dict[str, str], archive: Path) -> None:
    """Reject a link by the text of its target; where a symbolic link leads is checked after unpacking."""
    if member.issym() or member.islnk():
        _check_name(member.linkname, archive, up=member.issym())
    if member.islnk() and kinds.get("/".join(part for part in member.linkname.split("/") if part != ".")) != "file":
        raise _leaves(archive, f"{name} -> {member.linkname}, which is not an earlier file")


def unpack_wheel(archive: Path, folder: Path, wanted: Callable[[str], bool] = lambda _: True) -> None:
    """A wheel's files below `folder`.

    Args:
        archive: the wheel.
        folder: where they go.
        wanted: which of them, by name.

    Raises:
        DcaError: DCA-404 for names that would leave the folder, for links, and for a damaged archive.
    """
    try:
        with zipfile.ZipFile(archive) as wheel:
            _check_entries(wheel, archive)
            with archive.open("rb") as source:
                for fault in zip_layout.faults(source, wheel):
                    raise _odd(archive, fault)
            members = [info for info in wheel.infolist() if wanted(info.filename)]
            for info in members:
                _read_to_its_end(wheel, info)
            for info in members:
                together.check()
                wheel.extract(info, folder)
                if (info.external_attr >> 16) & 0o100 and not info.is_dir():
                    (folder / info.filename).chmod(0o755)
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        ValueError,
        LookupError,
        struct.error,
    ) as error:
        raise _damaged(archive, error) from None


def _check_entries(wheel: zipfile.ZipFile, archive: Path) -> None:
    entries, most = wheel.infolist(), most_unpacked(archive)
    size = sum(info.file_size for info in entries)
    if size > most or len(entries) > MOST_MEMBERS:
        raise _bomb(archive, size)


def _read_to_its_end(wheel: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Check a member's content before anything is written."""
    with wheel.open(info) as stream:
        while stream.read(1 << 20):
            pass


def _check_name(name: str, archive: Path, *, up: bool = False) -> None:
    """Reject names outside their folder; a link's target may go `up`, because it is checked after unpacking.

    Links have been hidden from that check behind names too long for the system to resolve.
    """
    climbs = ".." in name.split("/") and not up
    if name.startswith("/") or climbs or "\\" in name or "\0" in name or len(os.fsencode(name)) > LONGEST_NAME:
        raise _leaves(archive, name)


def _leaves(archive: Path, what: str) -> DcaError:
    return DcaError(
        "DCA-404",
        f"{archive.name} holds a path that leaves its folder: {what[:200]!r}.",
        remedy="do not use this archive.",
    )


def _odd(archive: Path, fault: str) -> DcaError:
    return DcaError(
        "DCA-404",
        f"{archive.name} is an archive that is not unpacked: {fault}",
        remedy="do not use this archive.",
    )


def _bomb(archive: Path, size: int) -> DcaError:
    return DcaError(
        "DCA-404",
        f"{archive.name} would unpack to {size >> 20} MiB or more, from {archive.stat().st_size >> 10} KiB.",
        remedy="do not use this archive.",
    )


def _damaged(archive: Path, error: Exception) -> DcaError:
    return DcaError("DCA-404", f"{archive.name} is damaged.", why=str(error), remedy="download it again.")
