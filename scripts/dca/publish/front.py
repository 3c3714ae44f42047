"""The front page: every wheel of an index with its install commands, in one self-contained HTML file."""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.tags import Tag, parse_tag

from dca.publish import layout
from dca.publish.admit import LOCK
from dca.publish.install import UNKNOWN_URL, lines, newest_first
from dca.publish.values import Record, Settings
from dca.trust import evidence as proof_of

if TYPE_CHECKING:
    import jinja2

TEMPLATE, ARTICLE = Path(__file__).with_name("front.html"), Path(__file__).with_name("article.html")
# The place of the wheels in the page's template.
WHEELS = "<!-- wheels -->"
# The kinds of evidence that are shown first.
FIRST = (LOCK, "smoke", "inspection", "sbom", "provenance")
# What kinds of evidence are called on the page, if not by their own names.
NAMES = {LOCK: "lock"} | {
    name.split(".")[0]: what
    for names in proof_of.ENVELOPES.values()
    for name, what in zip(names, ("signed provenance", "signed evidence"), strict=True)
}


def page(listed: Sequence[Record], settings: Settings) -> bytes:
    """The front page, with the newest wheels first.

    Args:
        listed: the records of the wheels to show.
        settings: of the index.
    """
    views = Counter(record.view for record in listed if record.view and not record.variant)
    frame = _template(TEMPLATE).render(
        count=len(listed),
        views=[(view, f"{view[2:-1]}.{view[-1]}", count) for view, count in sorted(views.items())],
        variants=sum(record.variant is not None for record in listed),
        projects=sorted({record.project for record in listed}),
        url=settings.url,
        unknown=UNKNOWN_URL,
        warning=_warned(listed),
    )
    head, _, foot = frame.partition(WHEELS)
    articles = "\n".join(_article(record, settings) for record in newest_first(listed))
    return (head + articles + foot).encode()


def _warned(listed: Sequence[Record]) -> str:
    """The project that a command without a version may take from elsewhere: that of the newest local version."""
    own = [record for record in newest_first(listed) if "+" in record.version]
    return next((record.project for record in own), "")


def _article(record: Record, settings: Settings) -> str:
    """A wheel's section of the page, in one line."""
    place = {kind: number for number, kind in enumerate(FIRST)}
    python, platform = tags(record.tags)
    facts = (
        ("variant", record.variant.label if record.variant else ""),
        ("CUDA", record.cuda),
        ("archs", ", ".join(f"sm_{arch.replace('.', '')}" for arch in record.archs)),
        ("torch", record.torch),
        ("Python", record.requires_python or python),
        ("platform", platform),
        ("size", size(record.bytes)),
        ("published", record.published[:10]),
    )
    text = _template(ARTICLE).render(
        wheel=record,
        link=(record.links_to + layout.url(record.file)) if record.links_to else layout.url(layout.wheel(record.file)),
        facts=[fact for fact in facts if fact[1]],
        # Whoever still needs a yanked wheel knows its version.
        install=lines(record, settings.url) if record.yanked is None else None,
        evidence=[
            (layout.url(proof.path), NAMES.get(proof.kind, proof.kind), proof.says)
            for proof in sorted(record.evidence, key=lambda proof: (place.get(proof.kind, len(place)), proof.kind))
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
    """A size in MB or kB."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


def tags(given: Sequence[str]) -> tuple[str, str]:
    """The Python versions and the platforms of a wheel's tags, in words."""
    parsed: list[Tag] = sorted({tag for text in given for tag in parse_tag(text)}, key=str)
    pythons = sorted({tag.interpreter for tag in parsed})
    abi3 = any(tag.abi == "abi3" for tag in parsed)
    names = [_python(name, abi3=abi3) for name in pythons]
    return ", ".join(names), ", ".join(sorted({tag.platform for tag in parsed}))


def _python(name: str, *, abi3: bool) -> str:
    match = re.fullmatch(r"(?:cp|py)([0-9])([0-9]*)", name)
    if not match:
        return name
    version = f"{match[1]}.{match[2]}" if match[2] else f"{match[1]}"
    return f">={version}" if abi3 and match[2] else version
