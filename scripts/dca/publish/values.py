"""What stands in an index: one record per wheel, from which every page is made.

An index is read back from a disk or a server that others may write to, so every value checks its paths, names, links,
hashes and sizes. Whoever has a value may use them.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from re import Pattern
from typing import Annotated, ClassVar, Literal

from packaging.utils import parse_wheel_filename
from pydantic import AfterValidator, model_validator

from dca.foundation.documents import Document, Value
from dca.publish import layout

# "leaving" is a wheel that was removed and whose files may still be there; "gone" is one whose files are not. The
# name of a wheel that is gone stays taken: whoever has its hash in a lock must not be given other bytes under it.
State = Literal["listed", "leaving", "gone"]
# No file is as large; more cannot be exact in every reader of JSON.
MOST_BYTES = 1 << 53


def _matches(pattern: Pattern[str] | str, what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not re.fullmatch(pattern, value):
            raise ValueError(f"{_quoted(value)} is not {what}")
        return value

    return AfterValidator(check)


def _is(allowed: Callable[[str], bool], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not allowed(value):
            raise ValueError(f"{_quoted(value)} is not {what}")
        return value

    return AfterValidator(check)


def _quoted(value: object) -> str:
    """A value from outside as a message shows it: short, and without anything that a terminal obeys."""
    text = ascii(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _size(value: int) -> int:
    if not 0 <= value < MOST_BYTES:
        raise ValueError(f"{value:.3g} is not a size in bytes")
    return value


def _no_control(value: str) -> bool:
    return not any(unicodedata.category(character) == "Cc" for character in value)


Sha256 = Annotated[str, _matches(layout.SHA256, "a sha256")]
Size = Annotated[int, AfterValidator(_size)]
Text = Annotated[str, _is(_no_control, "text without control characters")]
Kind = Annotated[str, _matches(layout.KIND, "a kind of evidence")]
Project = Annotated[str, _matches(layout.PROJECT, "the canonical name of a project")]
File = Annotated[str, _matches(layout.PLAIN_NAME, "the name of a wheel")]
Cuda = Annotated[str, _matches(r"([0-9]{1,2}\.[0-9]{1,2})?", "a CUDA version such as 12.4")]
Arch = Annotated[str, _matches(r"[0-9]{1,2}\.[0-9][a-z]?(\+PTX)?", "a GPU architecture such as 9.0")]
Time = Annotated[str, _matches(layout.TIME, "a time such as 2026-01-02T03:04:05Z")]
FolderUrl = Annotated[
    str, _is(lambda url: not url or layout.is_folder_url(url), "the http or https URL of a folder, with / at its end")
]


class Evidence(Value):
    """A file that says something of a wheel.

    Args:
        kind: what it is: "inspection", "smoke", or what its file is called.
        path: in the index.
        sha256: of the file; likewise bytes.
        says: the result in a few words, where this tool can read it.
    """

    kind: Kind
    path: str
    sha256: Sha256
    bytes: Size
    says: Text = ""

    @model_validator(mode="after")
    def _check_path(self) -> Evidence:
        folder, _, name = self.path.rpartition("/")
        suffix = name.partition(".")[2]
        wheel = folder.removeprefix(f"{layout.EVIDENCE}/")
        expected = layout.evidence(wheel, self.kind, self.sha256, suffix)
        if not (layout.SHA256.fullmatch(wheel) and layout.SUFFIX.fullmatch(suffix) and self.path == expected):
            raise ValueError(
                f"path {_quoted(self.path)} is not {layout.EVIDENCE}/SHA256/NAME, with kind and hash in NAME"
            )
        return self


class Record(Document):
    """A published wheel.

    Args:
        file: name of the wheel.
        published: when it came into this index, UTC, as PEP 700 writes it.
        project: its name, normalized.
        metadata_sha256: of the METADATA that lies beside it.
        cuda: CUDA version that it was compiled with, such as "12.4"; empty when nothing says so.
        archs: GPU architectures that it holds code for.
        torch: version that it requires.
        recipe: that it was made from; empty for a wheel that this tool did not make.
        yanked: the reason, which may be empty; None when it is not yanked.
        links_to: URL of the folder that its file is downloaded from; empty for the index itself.
    """

    SCHEMA: ClassVar[str] = "dca.published/1"

    file: File
    sha256: Sha256
    bytes: Size
    published: Time
    project: Project
    version: str
    requires_python: Text
    metadata_sha256: Sha256
    tags: tuple[str, ...]
    cuda: Cuda
    archs: tuple[Arch, ...]
    torch: Text
    recipe: Text
    evidence: tuple[Evidence, ...] = ()
    yanked: Text | None = None
    links_to: FolderUrl = ""
    state: State = "listed"

    @model_validator(mode="after")
    def _check_name(self) -> Record:
        # An invalid name is a ValueError.
        project, version, _, tags = parse_wheel_filename(self.file)
        named = {"project": str(project), "version": str(version), "tags": tuple(sorted(map(str, tags)))}
        own = {"project": self.project, "version": self.version, "tags": tuple(sorted(set(self.tags)))}
        for key, value in named.items():
            if own[key] != value:
                raise ValueError(f"{key} is {_quoted(own[key])}, but {self.file} says {value}")
        return self

    @model_validator(mode="after")
    def _check_evidence(self) -> Record:
        for proof in self.evidence:
            if proof.path.split("/")[1] != self.sha256:
                raise ValueError(f"path {proof.path} is evidence of another wheel")
        if len({proof.kind for proof in self.evidence}) != len(self.evidence):
            raise ValueError("two files of evidence have the same kind")
        return self

    @property
    def view(self) -> str:
        """The folder of its CUDA version, such as "cu124"; empty when it has none."""
        return f"cu{self.cuda.replace('.', '')}" if self.cuda else ""


class Settings(Document):
    """What is said of an index as a whole; a folder with this file is one.

    Args:
        url: where it is served, with a slash at the end; empty when that is not known.
    """

    SCHEMA: ClassVar[str] = "dca.index/1"

    url: FolderUrl = ""


class Published(Document):
    """What a command did to an index.

    Args:
        index: the folder or bucket.
        url: where it is served, as far as it is known.
        added: records of wheels that were not listed before.
        changed: of those whose evidence, links or state are other than before.
        unchanged: of those that were there already, with the same bytes.
        deleted: paths in the index whose files were deleted.
        freed: bytes of these.
    """

    SCHEMA: ClassVar[str] = "dca.publish/1"

    index: str
    url: str = ""
    added: tuple[Record, ...] = ()
    changed: tuple[Record, ...] = ()
    unchanged: tuple[Record, ...] = ()
    deleted: tuple[str, ...] = ()
    freed: int = 0


class Listing(Document):
    """The wheels of an index, those that were removed among them."""

    SCHEMA: ClassVar[str] = "dca.listing/1"

    index: str
    url: str = ""
    wheels: tuple[Record, ...]


class Uploaded(Document):
    """What an upload did.

    Args:
        repository: where to.
        index: the simple index that was asked before.
        uploaded: names of wheels.
        unchanged: names of those that were there already with the same bytes.
    """

    SCHEMA: ClassVar[str] = "dca.upload/1"

    repository: str
    index: str
    uploaded: tuple[str, ...]
    unchanged: tuple[str, ...]
