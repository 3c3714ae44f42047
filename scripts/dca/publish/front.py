"""The page for people: every wheel of an index with its install line, in one file that needs no network of its own."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.tags import Tag, parse_tag

from dca.publish import layout
from dca.publish.table import Line
from dca.publish.values import Record, Settings
from dca.trust import evidence as proof_of

if TYPE_CHECKING:
    import jinja2

TEMPLATE, ARTICLE = Path(__file__).with_name("front.html"), Path(__file__).with_name("article.html")
# Where the wheels come in the first of them.
WHEELS = "<!-- wheels -->"
# What stands in an install line when nobody has said where the index is served.
UNKNOWN_URL = "URL/"
# The kinds whose files are shown first.
FIRST = ("smoke", "inspection", "sbom", "provenance")
# What envelopes are called here, in place of their kinds.
ENVELOPES = {
    name.split(".")[0]: what
    for names in proof_of.ENVELOPES.values()
    for name, what in zip(names, ("signed provenance", "signed evidence"), strict=True)
}


def order(lines: Mapping[str, Line]) -> list[str]:
    """The wheels that the page shows, the newest first."""
    listed = ((line.published, name) for name, line in lines.items() if line.state == "listed")
    return [name for _, name in sorted(listed, reverse=True)]


def frame(listed: Sequence[Line], settings: Settings) -> tuple[str, str]:
    """What comes before the first wheel of the page, and after the last."""
    views: dict[str, int] = {}
    for one in listed:
        if one.view:
            views[one.view] = views.get(one.view, 0) + 1
    page = _template(TEMPLATE).render(
        count=len(listed),
        views=sorted((view, f"{view[2:-1]}.{view[-1]}", count) for view, count in views.items()),
        projects=sorted({one.project for one in listed}),
        url=settings.url,
        unknown=UNKNOWN_URL,
    )
    head, _, foot = page.partition(WHEELS)
    return head, foot


def article(one: Record, settings: Settings) -> str:
    """A wheel as the page shows it, in one line."""
    index = f"{settings.url or UNKNOWN_URL}{one.view or layout.ALL}/"
    wanted = f"echo '{one.project}=={one.version} --hash=sha256:{one.sha256}' |"
    options = f"--no-deps --require-hashes --index-url {index}"
    place = {kind: number for number, kind in enumerate(FIRST)}
    python, platform = tags(one.tags)
    facts = (
        ("CUDA", one.cuda),
        ("archs", ", ".join(f"sm_{arch.replace('.', '')}" for arch in one.archs)),
        ("torch", one.torch),
        ("Python", one.requires_python or python),
        ("platform", platform),
        ("size", size(one.bytes)),
        ("published", one.published[:10]),
    )
    text = _template(ARTICLE).render(
        one=one,
        link=(one.links_to + layout.url(one.file)) if one.links_to else layout.url(layout.wheel(one.file)),
        facts=[fact for fact in facts if fact[1]],
        uv=f"{wanted} uv pip install {options} -r -",
        pip=f"{wanted} pip install {options} -r /dev/stdin",
        evidence=[
            (layout.url(proof.path), ENVELOPES.get(proof.kind, proof.kind), proof.says)
            for proof in sorted(one.evidence, key=lambda proof: (place.get(proof.kind, len(place)), proof.kind))
        ],
    )
    return " ".join(text.split())


@functools.cache
def _template(path: Path) -> jinja2.Template:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(path.read_text(encoding="utf-8"))


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
