"""The documents of an index: one record per wheel, from which every page is generated.

Others may write to the disk or server that an index is read from, so the models validate all paths, names, links,
hashes and sizes.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from re import Pattern
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field, ValidationError, model_validator

from dca.catalogue.variants import Variant, wheel_name
from dca.foundation.documents import Document, Value
from dca.publish import layout

# "leaving" is a removed wheel whose files may still exist; those of a "gone" wheel are deleted. Its name stays taken,
# because lock files may contain its hash.
State = Literal["listed", "leaving", "gone"]
# Larger than any file; JSON readers may round larger numbers.
MOST_BYTES = 1 << 53


def _matches(pattern: Pattern[str] | str, what: str) -> AfterValidator:
    return _is(re.compile(pattern).fullmatch, what)


def _is(allowed: Callable[[str], object], what: str) -> AfterValidator:
    def check(value: str) -> str:
        if not allowed(value):
            raise ValueError(f"{_quoted(value)} is not {what}")
        return value

    return AfterValidator(check)


def _quoted(value: object) -> str:
    """A value from outside for a message: shortened, and with control characters escaped."""
    text = ascii(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _size(value: int) -> int:
    if not 0 <= value < MOST_BYTES:
        raise ValueError(f"{value:.3g} is not a size in bytes")
    return value


def _number(value: int) -> int:
    if not 0 < value < MOST_BYTES:
        raise ValueError(f"{value:.3g} is not the number of a statement")
    return value


def _no_control(value: str) -> bool:
    return not any(unicodedata.category(character) == "Cc" for character in value)


def reason(error: Exception) -> str:
    """The damaged key of a document of an index and what is wrong with it."""
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors()[0]
    key = ".".join(map(str, first["loc"]))
    words = first["msg"].removeprefix("Value error, ")
    return f"{key if layout.is_plain(key) else ascii(key)}: {words}" if key else words


Sha256 = Annotated[str, _matches(layout.SHA256, "a sha256")]
Size = Annotated[int, AfterValidator(_size)]
Text = Annotated[str, _is(_no_control, "text without control characters")]
Id = Annotated[str, _matches(r"[0-9a-f]{32}", "the random number of an index")]
Number = Annotated[int, AfterValidator(_number)]
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
    """A report about a wheel.

    Args:
        kind: "inspection", "smoke", or the name of the report's file.
        path: in the index.
        sha256: of the file.
        bytes: size of the file.
        says: the result in a few words, if this tool can read the report.
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
                f"path {_quoted(self.path)} is not {layout.EVIDENCE}/SHA256/NAME with kind and hash in NAME"
            )
        return self


class Record(Document):
    """A published wheel.

    Args:
        file: name of the wheel.
        published: when it was added to this index, UTC, in the format of PEP 700.
        project: the package's normalized name.
        metadata_sha256: of the METADATA file beside the wheel.
        cuda: CUDA version that the wheel was compiled with, such as "12.4"; empty if unknown.
        archs: GPU architectures that the wheel contains code for.
        torch: version of torch that the wheel requires.
        recipe: that the wheel was built from; empty if this tool did not build it.
        yanked: the reason, which may be empty; None if the wheel is not yanked.
        links_to: URL of the folder that the wheel is downloaded from; empty for the index itself.
        sha256: SHA-256 of the file.
        bytes: size of the file.
        version: the wheel's version.
        requires_python: Requires-Python in METADATA.
        tags: tags of the wheel.
        evidence: files of evidence.
        state: `listed`; `leaving`: removed, its files may still exist; `gone`: its files are deleted.
        variant: which variant of its version it is; None, and not written, for a plain wheel.
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
    variant: Variant | None = Field(default=None, exclude_if=lambda variant: variant is None)

    @model_validator(mode="after")
    def _check_name(self) -> Record:
        # An invalid name is a ValueError.
        project, version, _, tags, label = wheel_name(self.file)
        if label != (self.variant.label if self.variant else ""):
            raise ValueError(f"variant is not the one that the name {self.file} says")
        named = {"project": str(project), "version": str(version), "tags": tuple(sorted(map(str, tags)))}
        own = {"project": self.project, "version": self.version, "tags": tuple(sorted(set(self.tags)))}
        for key, value in named.items():
            if own[key] != value:
                raise ValueError(f"{key} is {_quoted(own[key])}, but the name {self.file} says {value}")
        return self

    @model_validator(mode="after")
    def _check_evidence(self) -> Record:
        for proof in self.evidence:
            if proof.path.split("/")[1] != self.sha256:
                raise ValueError(f"path {proof.path} is the evidence of another wheel")
        if len({proof.kind for proof in self.evidence}) != len(self.evidence):
            raise ValueError("two files of evidence have the same kind")
        return self

    @property
    def view(self) -> str:
        """The folder of its CUDA version, such as "cu124"; empty if that is unknown. Variants have one for all."""
        if self.variant:
            return layout.VARIANTS
        return f"cu{self.cuda.replace('.', '')}" if self.cuda else ""


class Settings(Document):
    """The settings of an index; a folder with this file is an index.

    Args:
        url: URL where the index is served, with a slash at the end; empty if unknown.
        id: a random number that its signed statements name; empty before the first.
    """

    SCHEMA: ClassVar[str] = "dca.index/1"

    url: FolderUrl = ""
    id: Literal[""] | Id = ""


class Published(Document):
    """What a command did to an index.

    Args:
        index: the folder or bucket.
        url: URL where the index is served; empty if unknown.
        added: records of wheels that were not listed before.
        changed: records of wheels whose evidence, links or state changed.
        unchanged: records of wheels that were already published with the same bytes.
        deleted: paths of deleted files in the index.
        freed: total size of the deleted files in bytes.
        statements: what became of the signed statements of the index, in words.
    """

    SCHEMA: ClassVar[str] = "dca.publish/1"

    index: str
    url: str = ""
    added: tuple[Record, ...] = ()
    changed: tuple[Record, ...] = ()
    unchanged: tuple[Record, ...] = ()
    deleted: tuple[str, ...] = ()
    freed: int = 0
    statements: tuple[str, ...] = ()


class Listing(Document):
    """The wheels of an index, including removed ones.

    Args:
        index: the folder or bucket.
        url: where it is served, as far as it is known.
        wheels: records of its wheels.
    """

    SCHEMA: ClassVar[str] = "dca.listing/1"

    index: str
    url: str = ""
    wheels: tuple[Record, ...]


class Uploaded(Document):
    """What an upload did.

    Args:
        repository: the URL or name that was uploaded to.
        index: URL of the server's simple index.
        uploaded: names of the uploaded wheels.
        unchanged: names of the wheels that the server already had with the same bytes.
    """

    SCHEMA: ClassVar[str] = "dca.upload/1"

    repository: str
    index: str
    uploaded: tuple[str, ...]
    unchanged: tuple[str, ...]
