"""What stands in an index: one record per wheel, from which every page is made."""

from __future__ import annotations

from typing import ClassVar, Literal

from dca.foundation.documents import Document, Value

# "leaving" is a wheel that was removed and whose files may still be there; "gone" is one whose files are not. The
# name of a wheel that is gone stays taken: whoever has its hash in a lock must not be given other bytes under it.
State = Literal["listed", "leaving", "gone"]


class Evidence(Value):
    """A file that says something of a wheel.

    Args:
        kind: what it is: "inspection", "smoke", or what its file is called.
        path: in the index.
        sha256: of the file; likewise bytes.
        says: the result in a few words, where this tool can read it.
    """

    kind: str
    path: str
    sha256: str
    bytes: int
    says: str = ""


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

    file: str
    sha256: str
    bytes: int
    published: str
    project: str
    version: str
    requires_python: str
    metadata_sha256: str
    tags: tuple[str, ...]
    cuda: str
    archs: tuple[str, ...]
    torch: str
    recipe: str
    evidence: tuple[Evidence, ...] = ()
    yanked: str | None = None
    links_to: str = ""
    state: State = "listed"

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

    url: str = ""


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
