"""The page for people: every wheel of an index with its install line, in one file that needs no network of its own."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.tags import Tag, parse_tag

from dca.documents import Value
from dca.publish import layout
from dca.publish.values import Record, Settings

if TYPE_CHECKING:
    import jinja2

TEMPLATE = Path(__file__).with_name("front.html")
# What stands in an install line when nobody has said where the index is served.
UNKNOWN_URL = "URL/"
# The kinds whose files are shown first.
FIRST = ("smoke", "inspection", "sbom", "provenance")


class Shown(Value):
    """A wheel as the page shows it.

    Args:
        link: of the wheel.
        python: versions that it installs with, in words.
        platform: likewise.
        uv: the line that installs it with its hash; likewise pip.
        evidence: links, names and results.
        words: what the search looks at.
    """

    record: Record
    link: str
    size: str
    day: str
    archs: str
    python: str
    platform: str
    uv: str
    pip: str
    evidence: tuple[tuple[str, str, str], ...]
    words: str


def render(listed: Sequence[Record], settings: Settings) -> bytes:
    """The page.

    Args:
        listed: records of the wheels that are shown.
        settings: of the index.
    """
    newest = sorted(sorted(listed, key=lambda one: one.file), key=lambda one: one.published, reverse=True)
    views: dict[str, int] = {}
    for one in listed:
        if one.view:
            views[one.view] = views.get(one.view, 0) + 1
    return (
        _template()
        .render(
            wheels=[show(one, settings) for one in newest],
            views=sorted((view, f"{view[2:-1]}.{view[-1]}", count) for view, count in views.items()),
            projects=sorted({one.project for one in listed}),
            url=settings.url,
            unknown=UNKNOWN_URL,
        )
        .encode()
    )


@functools.cache
def _template() -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8"))


def show(one: Record, settings: Settings) -> Shown:
    """A wheel as the page shows it."""
    index = f"{settings.url or UNKNOWN_URL}{one.view or layout.ALL}/"
    wanted = f"echo '{one.project}=={one.version} --hash=sha256:{one.sha256}' |"
    options = f"--no-deps --require-hashes --index-url {index}"
    order = {kind: place for place, kind in enumerate(FIRST)}
    evidence = sorted(one.evidence, key=lambda proof: (order.get(proof.kind, len(order)), proof.kind))
    python, platform = tags(one.tags)
    archs = ", ".join(f"sm_{arch.replace('.', '')}" for arch in one.archs)
    return Shown.model_construct(
        record=one,
        link=(one.links_to + layout.url(one.file)) if one.links_to else layout.url(layout.wheel(one.file)),
        size=size(one.bytes),
        day=one.published[:10],
        archs=archs,
        python=one.requires_python or python,
        platform=platform,
        uv=f"{wanted} uv pip install {options} -r -",
        pip=f"{wanted} pip install {options} -r /dev/stdin",
        evidence=tuple((layout.url(proof.path), proof.kind, proof.says) for proof in evidence),
        words=" ".join((one.file, one.cuda, one.view, archs, one.torch, one.recipe, platform)).lower(),
    )


def size(count: int) -> str:
    """Bytes in a unit that is read at a glance."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def tags(given: Sequence[str]) -> tuple[str, str]:
    """The Python and the platform of a wheel's tags, in words."""
    found: list[Tag] = sorted({tag for text in given for tag in parse_tag(text)}, key=str)
    pythons = sorted({tag.interpreter for tag in found})
    abi3 = any(tag.abi == "abi3" for tag in found)
    names = [_python(name, abi3=abi3) for name in pythons]
    return ", ".join(names), ", ".join(sorted({tag.platform for tag in found}))


def _python(name: str, *, abi3: bool) -> str:
    match = re.fullmatch(r"(?:cp|py)([0-9])([0-9]*)", name)
    if not match:
        return name
    version = f"{match[1]}.{match[2]}" if match[2] else f"{match[1]}"
    return f">={version}" if abi3 and match[2] else version
