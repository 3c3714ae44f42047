"""The storage of an index, as its writer sees it: a folder, or a bucket of an S3-compatible store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from dca.foundation.errors import DcaError
from dca.publish import layout


class Place(Protocol):
    """Storage with relative paths, separated by `/`. A file that is written appears completely or not at all.

    Every method that takes a path raises DCA-908 for a path that leads out of the index, before it does anything.
    """

    name: str
    # Whether only one command writes at a time; otherwise a writer looks for changes by others afterwards.
    alone: bool

    def writing(self, *, new: bool = False) -> contextlib.AbstractContextManager[None]:
        """A context in which one command writes; `new` allows it to create the index.

        Raises:
            DcaError: DCA-904 if there is no index.
        """

    def check(self) -> None:
        """Check that there is an index.

        Raises:
            DcaError: DCA-904 if there is none.
        """

    def signatures(self) -> dict[str, str]:
        """Signatures of the records by the wheels' names; a signature changes whenever the record does."""

    def pages(self) -> set[str]:
        """Paths of the existing pages."""

    def strays(self, wanted: set[str]) -> dict[str, int]:
        """Sizes by path of files that belong to no wheel or to an earlier version of this tool.

        Files that others may be writing are left out.
        """

    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: if there is no such file.
        """

    def has(self, path: str, sha256: str) -> bool:
        """Whether there is a file with that hash; it is read, not believed."""

    def check_room(self, size: int) -> None:
        """Check that so many bytes can be written.

        Raises:
            DcaError: DCA-101 if the disk is too full.
        """

    def put(self, path: str, content: bytes | Path, sha256: str, *, heal: bool = False) -> None:
        """Write a file that a record will name with its hash; a file with the same content is kept.

        Args:
            path: of the file.
            content: of it.
            sha256: of the content.
            heal: whether a record already names it with this hash, so that other content there is damaged.

        Raises:
            DcaError: DCA-902 if another publisher has just written another one.
        """

    def put_record(self, name: str, content: bytes, was: str | None) -> str:
        """Write a wheel's record and return its new signature.

        Args:
            name: of the wheel.
            content: of the record.
            was: the signature of the record that is replaced; None for a new one.

        Raises:
            DcaError: DCA-906 if another publisher has changed it meanwhile.
        """

    def put_pages(self, pages: Mapping[str, bytes]) -> None:
        """Write all pages, those before others that link to them; a folder also deletes the other pages of views.

        Args:
            pages: their content by path.
        """

    def put_page(self, path: str, content: bytes) -> None:
        """Write a page, or another file that is generated from the records; in a folder only if it differs."""

    def barrier(self) -> None:
        """Make everything written so far durable before anything that is written afterwards."""

    def delete(self, paths: list[str], hashes: Mapping[str, str] | None = None) -> None:
        """Delete the files that exist.

        Args:
            paths: of the files; if one of them must not be deleted, none is.
            hashes: sha256 of the files by path, as far as records name it.

        Raises:
            DcaError: DCA-904 for a file behind a symbolic link that does not have its hash.
        """


def inside(path: str) -> str:
    """The path, if it stays in the index.

    Raises:
        DcaError: DCA-908 if it does not.
    """
    if not layout.is_plain(path):
        raise DcaError(
            "DCA-908",
            f"{path!a} is not a path inside the index; the file was not touched.",
            why="a record names it, or a file or object in the index has such a name.",
            remedy="find the record or file with `dca verify` of the index, then restore it from a copy or delete it.",
        )
    return path


def raced(name: str) -> DcaError:
    """The error for a record that another publisher changed at the same time."""
    return DcaError(
        "DCA-906",
        f"the record of {name} was changed by another publisher meanwhile.",
        remedy="run the command again; it starts from the changed record.",
    )


def taken(name: str, theirs: str, ours: str) -> DcaError:
    """The error for a name that another file has."""
    return DcaError(
        "DCA-902",
        f"{name} is already published with other bytes; nothing was published.",
        why=f"sha256 of the published file {theirs},\nof this file {ours}.\nLock files of its users name the former.",
        remedy="give the wheel another version: a higher revision, or a local version of your own.",
    )
