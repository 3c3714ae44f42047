"""What an index is kept in, as its writer sees it: a folder, or a bucket of an S3-compatible store."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from dca.foundation.errors import DcaError
from dca.publish import layout


class Place(Protocol):
    """Paths are relative, with `/`. What is put somewhere appears there whole or not at all.

    Every method that takes a path raises DCA-908 for one that leads out of the index, and does nothing then.
    """

    name: str
    # Whether only one command writes at a time; without that, what others wrote meanwhile is looked for.
    alone: bool

    def writing(self, *, new: bool = False) -> contextlib.AbstractContextManager[None]:
        """The time in which one command writes; an index is made where there is none yet only with `new`.

        Raises:
            DcaError: DCA-904 for what is no index.
        """

    def check(self) -> None:
        """Whether there is an index.

        Raises:
            DcaError: DCA-904 when there is none.
        """

    def signatures(self) -> dict[str, str]:
        """Names of the records that are there, each with something that changes whenever the record does."""

    def pages(self) -> set[str]:
        """Paths of the pages that are there."""

    def strays(self, wanted: set[str]) -> dict[str, int]:
        """Files that belong to no wheel, or that an earlier version left, with their sizes.

        Not those that others may be writing.
        """

    def read(self, path: str) -> bytes:
        """A file's content.

        Raises:
            FileNotFoundError: when there is none.
        """

    def put(self, path: str, content: bytes | Path, sha256: str) -> None:
        """A file that other files will name with its hash; one with the same content is left as it is.

        Raises:
            DcaError: DCA-902 when there is another that cannot be replaced.
        """

    def put_record(self, name: str, content: bytes, was: str | None) -> str:
        """A wheel's record; its new signature.

        Args:
            name: of the wheel.
            content: of the record.
            was: the signature of the record that this was made from; None when there was none.

        Raises:
            DcaError: DCA-906 when somebody else has changed it meanwhile.
        """

    def put_page(self, path: str, content: bytes) -> None:
        """A page, or another file that is made from the records; in a folder it is written only when it differs."""

    def barrier(self) -> None:
        """Everything that was put so far lasts before anything that is put afterwards."""

    def delete(self, paths: list[str], hashes: Mapping[str, str] | None = None) -> None:
        """Delete files, as far as they are there.

        Args:
            paths: of the files; when one of them must not be deleted, none is.
            hashes: sha256 of the files by path, where records name it.

        Raises:
            DcaError: DCA-904 for a file behind a symbolic link that is not the index's own.
        """


def inside(path: str) -> str:
    """The path, when it stays in the index.

    Raises:
        DcaError: DCA-908.
    """
    if not layout.is_plain(path):
        raise DcaError(
            "DCA-908",
            f"{path!a} is not a path inside of the index; it was not touched.",
            why="a record names it, or a file or object in the index has such a name.",
            remedy="find what names it with `dca verify` of the index, then restore that from a copy or delete it.",
        )
    return path


def raced(name: str) -> DcaError:
    """The error for a record that changed while it was being changed."""
    return DcaError(
        "DCA-906",
        f"the record of {name} was changed by somebody else meanwhile.",
        remedy="run the command again: it starts from what is there now.",
    )


def taken(name: str, theirs: str, ours: str) -> DcaError:
    """The error for a name that is taken by other bytes."""
    return DcaError(
        "DCA-902",
        f"{name} is already there with other bytes; nothing was published.",
        why=f"sha256 there {theirs},\nhere {ours}.\nLocks of those who installed it name the former.",
        remedy="give the wheel another version: a higher revision, or a local version of your own.",
    )
