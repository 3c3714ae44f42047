"""Makes every page of an index from its records: the same records give the same bytes.

HTML as PEP 503, 592, 629, 658 and 714 say, JSON as PEP 691 and 700 do. A wheel is one line of a page, so that a page of
ten thousand is made from what it was before and the lines that are new.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from html import escape
from typing import NamedTuple

from dca.foundation import store
from dca.publish import front, layout
from dca.publish.table import Line, Table, line_of
from dca.publish.values import Record, Settings

HTML_VERSION, JSON_VERSION = "1.0", "1.1"
HEAD = (
    "<!DOCTYPE html>\n"
    '<html lang="en">\n'
    "<head>\n"
    '<meta charset="utf-8">\n'
    f'<meta name="pypi:repository-version" content="{HTML_VERSION}">\n'
    "<title>{title}</title>\n"
    "</head>\n"
    "<body>\n"
    "<h1>{title}</h1>\n"
)
FOOT = "\n</body>\n</html>\n"
META = f'{{"meta":{{"api-version":"{JSON_VERSION}"}},\n'
Order = list[str]


class Form(NamedTuple):
    """How a page with one line per wheel is put together.

    Args:
        start: what comes right before the first line; likewise end after the last, and between any two.
        line: of one wheel.
    """

    start: str
    between: str
    end: str
    line: Callable[[Record, Settings], str]


def render(
    lines: Mapping[str, Line],
    record: Callable[[str], Record],
    settings: Settings,
    before: Table | None = None,
    old: Callable[[str], bytes] | None = None,
) -> Iterator[tuple[str, bytes | None]]:
    """Every page by its path, those first that others link to; without bytes where it is what it was.

    Args:
        lines: of all wheels, by file name.
        record: gives a wheel's record; asked only for lines that are made new.
        settings: of the index.
        before: what the pages that are there were made from.
        old: gives a page that is there, or raises FileNotFoundError.
    """
    work = _Work(lines, record, settings, before or Table(), old)
    sheets = _sheets(lines)
    for (view, project), order in sheets.items():
        title = HEAD.format(title=escape(f"Wheels of {project}"))
        yield work.page(f"{view}/{project}/{layout.HTML}", order, HTML_FORM, title, FOOT)
        versions = json.dumps(sorted({lines[name].version for name in order}))
        head = f'{META}"name":{json.dumps(project)},\n"versions":{versions},\n"files":[\n'
        yield work.page(f"{view}/{project}/{layout.JSON}", order, JSON_FORM, head, "\n]}\n")
    for view in sorted({layout.ALL, *(view for view, _ in sheets)}):
        projects = sorted(project for each, project in sheets if each == view)
        anchors = "\n".join(f'<a href="{name}/">{name}</a><br>' for name in projects)
        yield f"{view}/{layout.HTML}", (HEAD.format(title="Projects") + anchors + FOOT).encode()
        names = ",\n".join(json.dumps({"name": name}) for name in projects)
        yield f"{view}/{layout.JSON}", f'{META}"projects":[\n{names}\n]}}\n'.encode()
    yield layout.AS_IT_IS, b""
    order = front.order(lines)
    head, foot = front.frame([lines[name] for name in order], settings)
    yield work.page(layout.FRONT, order, FRONT_FORM, head, foot)


def render_all(records: Iterable[Record], settings: Settings) -> dict[str, bytes]:
    """Every page by its path, from nothing but the records."""
    known = {one.file: one for one in records}
    lines = {name: line_of(one) for name, one in known.items()}
    return {path: content or b"" for path, content in render(lines, known.__getitem__, settings)}


def file_url(one: Record) -> str:
    """Where a wheel is downloaded from, as a page two folders below the top names it."""
    if one.links_to:
        return one.links_to + layout.url(one.file)
    return "../../" + layout.url(layout.wheel(one.file))


class _Work:
    """Makes pages from those that are there and the lines that are new."""

    def __init__(
        self,
        lines: Mapping[str, Line],
        record: Callable[[str], Record],
        settings: Settings,
        before: Table,
        old: Callable[[str], bytes] | None,
    ) -> None:
        self._record, self._settings, self._before, self._old = record, settings, before, old
        self._changed = {name for name, line in lines.items() if not line.signature or before.lines.get(name) != line}
        self._sheets = {f"{view}/{project}": order for (view, project), order in _sheets(before.lines).items()}
        self._front = front.order(before.lines)
        # One wheel is on a page of its project in two views.
        self._made: dict[tuple[Form, str], bytes] = {}

    def page(self, path: str, order: Order, form: Form, head: str, foot: str) -> tuple[str, bytes | None]:
        """A page, or no bytes when the one that is there is right."""
        earlier = self._front if path == layout.FRONT else self._sheets.get(path.rpartition("/")[0], [])
        kept = self._kept(path, earlier, form)
        if kept and order == earlier and self._changed.isdisjoint(order):
            same_url = form is not FRONT_FORM or self._settings.url == self._before.url
            if same_url:
                return path, None
        body = form.between.encode().join(
            kept[name] if name in kept and name not in self._changed else self._line(form, name) for name in order
        )
        return path, b"".join((head.encode(), body, foot.encode()))

    def _line(self, form: Form, name: str) -> bytes:
        if (form, name) not in self._made:
            self._made[form, name] = form.line(self._record(name), self._settings).encode()
        return self._made[form, name]

    def _kept(self, path: str, earlier: Order, form: Form) -> dict[str, bytes]:
        """The lines of a page that is there, by file name; none when it is not what was made then."""
        wanted = self._before.pages.get(path)
        if self._old is None or wanted is None or not earlier:
            return {}
        if form is FRONT_FORM and self._settings.url != self._before.url:
            return {}
        try:
            content = self._old(path)
        except FileNotFoundError:
            return {}
        if store.sha256_bytes(content) != wanted:
            return {}
        body = content.partition(form.start.encode())[2].rpartition(form.end.encode())[0]
        lines = body.split(form.between.encode())
        return dict(zip(earlier, lines, strict=True)) if len(lines) == len(earlier) else {}


def _sheets(lines: Mapping[str, Line]) -> dict[tuple[str, str], Order]:
    """The wheels of each page by view and project."""
    found: dict[tuple[str, str], Order] = {}
    for name in sorted(lines):
        line = lines[name]
        if line.state == "listed":
            found.setdefault((layout.ALL, line.project), []).append(name)
            if line.view:
                found.setdefault((line.view, line.project), []).append(name)
    return found


def _anchor(one: Record, _: Settings) -> str:
    # Both names of the hash of METADATA: pip before 23.1 knows the first one only.
    parts = [
        f'<a href="{escape(file_url(one))}#sha256={one.sha256}"',
        f' data-dist-info-metadata="sha256={one.metadata_sha256}"',
        f' data-core-metadata="sha256={one.metadata_sha256}"',
    ]
    if one.requires_python:
        parts.append(f' data-requires-python="{escape(one.requires_python)}"')
    if one.yanked is not None:
        parts.append(f' data-yanked="{escape(one.yanked)}"')
    return "".join(parts) + f">{escape(one.file)}</a><br>"


def _entry(one: Record, _: Settings) -> str:
    entry: dict[str, object] = {
        "filename": one.file,
        "url": file_url(one),
        "hashes": {"sha256": one.sha256},
        "size": one.bytes,
        "upload-time": one.published,
        "core-metadata": {"sha256": one.metadata_sha256},
        "yanked": False if one.yanked is None else one.yanked or True,
    }
    if one.requires_python:
        entry["requires-python"] = one.requires_python
    return json.dumps(entry)


HTML_FORM = Form("</h1>\n", "\n", FOOT, _anchor)
JSON_FORM = Form('"files":[\n', ",\n", "\n]}\n", _entry)
FRONT_FORM = Form("<main>\n", "\n", "\n</main>", front.article)
