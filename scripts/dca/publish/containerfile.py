"""A Containerfile for an image that serves a published wheel, with what it runs with pinned by hashes."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from dca import __version__
from dca.catalogue import base_images
from dca.foundation import store
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError
from dca.publish import install, layout
from dca.publish.admit import LOCK
from dca.publish.place import Place
from dca.publish.records import read_records, read_settings
from dca.publish.values import Evidence, Record
from dca.trust import evidence as proof_of
from dca.trust import runlock

if TYPE_CHECKING:
    import jinja2

TEMPLATE = Path(__file__).with_name("Containerfile.jinja")
SBOM = "sbom"
# Where a client of the server asks, and where the image has what it was made from.
PORT, SHARE = 8000, "/opt/vllm/share/dca"


class Containerfile(Document):
    """A Containerfile for a published wheel.

    Args:
        index: the folder or bucket.
        url: where the index is served; empty if unknown: whoever builds the image names it.
        wheel: name of the wheel's file.
        sha256: of the wheel.
        build: base image of the stage that makes the environment, by its tag.
        serve: base image of the stage that serves, by its tag.
        text: of the Containerfile.
    """

    SCHEMA: ClassVar[str] = "dca.containerfile/1"

    index: str
    url: str = ""
    wheel: str
    sha256: str
    build: str
    serve: str
    text: str


def containerfile(name: str | None, place: Place) -> Containerfile:
    """A Containerfile for a wheel of an index, which is only read.

    Args:
        name: of the wheel, or a version; None for the newest.
        place: the index.

    Raises:
        DcaError: DCA-903 for a name that is not one wheel's, DCA-904 if there is no index, DCA-908 for damaged records
            and evidence, DCA-909 for a wheel that no image can be made for.
    """
    place.check()
    record = _chosen(name, place)
    images = base_images.load()
    python = _python(record, images)
    files = {proof_of.BY_KIND[proof.kind]: proof for proof in record.evidence if proof.kind in (LOCK, SBOM)}
    for proof in files.values():
        _check(proof, place)
    if proof_of.BY_KIND[LOCK] not in files:
        raise _refused(record, "the index has no lock for it, so what it runs with is not known.")
    url, build, serve = read_settings(place).url, images.build.format(python), images.serve.format(python)
    text = _template().render(
        wheel=record,
        url=url,
        tool=__version__,
        build=build,
        serve=serve,
        files={file: (layout.url(proof.path), proof.sha256) for file, proof in sorted(files.items())},
        lock=proof_of.BY_KIND[LOCK],
        sbom=proof_of.BY_KIND[SBOM],
        view=record.view or layout.ALL,
        share=SHARE,
        prepared=images.prepared(),
        served=base_images.served(PORT),
    )
    return Containerfile(
        index=place.name, url=url, wheel=record.file, sha256=record.sha256, build=build, serve=serve, text=text
    )


def _chosen(name: str | None, place: Place) -> Record:
    """The one wheel that is named, or the newest.

    Raises:
        DcaError: DCA-903, and DCA-909 for a yanked wheel or a variant.
    """
    known = read_records(place)
    if name is None:
        listed = install.newest_first(
            record
            for record in known.records()
            if record.state == "listed" and record.yanked is None and not record.variant
        )
        found = listed if len({record.project for record in listed}) > 1 else listed[:1]
    else:
        found = known.named(name, removed=False)
    if not found:
        raise DcaError(
            "DCA-903",
            f"{place.name} has no wheel to make an image of.",
            why="it has none, or all are yanked or variants.",
            remedy="publish one, or name one that `dca index list` shows.",
        )
    if len(found) > 1:
        raise DcaError(
            "DCA-903",
            f"{name or place.name} stands for several wheels.",
            why="\n".join(record.file for record in found[:20]),
            remedy="name one of these files.",
        )
    (record,) = found
    if record.yanked is not None:
        raise _refused(record, f"it is yanked: {record.yanked}" if record.yanked else "it is yanked.")
    if record.variant:
        raise _refused(record, "it is a variant, which pip does not install.")
    return record


def _python(record: Record, images: base_images.BaseImages) -> str:
    """The version of Python in the image.

    Raises:
        DcaError: DCA-909.
    """
    if python := images.python_for(record.tags, record.requires_python):
        return python
    known = f"Python {', '.join(images.pythons)} and glibc {images.glibc}"
    raise _refused(record, f"the base images have {known}; it is for {', '.join(record.tags)}.")


def _check(proof: Evidence, place: Place) -> None:
    """Check that evidence is what its record names, and a lock one that pip reads as such.

    Raises:
        DcaError: DCA-908.
    """
    remedy = f"give the report `{proof.kind}` again with `dca publish FILE --evidence`."
    try:
        content = place.read(proof.path)
    except FileNotFoundError:
        raise DcaError("DCA-908", f"{proof.path} is missing.", remedy=remedy) from None
    if store.sha256_bytes(content) != proof.sha256:
        raise DcaError("DCA-908", f"{proof.path} is not the file that its record names.", remedy=remedy)
    if proof.kind == LOCK:
        try:
            runlock.parse(content)
        except runlock.BadLockError as error:
            raise DcaError("DCA-908", f"{proof.path} is no lock.", why=f"it {error}", remedy=remedy) from None


def _refused(record: Record, why: str) -> DcaError:
    return DcaError(
        "DCA-909",
        f"no Containerfile is made for {record.file}.",
        why=why,
        remedy="name another wheel of the index: `dca index list` shows them.",
    )


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=False,  # noqa: S701 - no HTML
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
        undefined=jinja2.StrictUndefined,
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
