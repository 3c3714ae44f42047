"""Makes every page of an index from its records: the same records give the same bytes.

HTML as PEP 503, 592, 629, 658 and 714 say, JSON as PEP 691 and 700 do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from html import escape

from dca.publish import layout
from dca.publish.front import render as render_front
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
FOOT = "</body>\n</html>\n"


def render(records: Iterable[Record], settings: Settings) -> dict[str, bytes]:
    """Every page by its path, those first that others link to."""
    listed = sorted((one for one in records if one.state == "listed"), key=lambda one: one.file)
    pages: dict[str, bytes] = {}
    tops: dict[str, bytes] = {}
    lines = {one.file: (_anchor(one), _entry(one)) for one in listed}
    for view in (layout.ALL, *sorted({one.view for one in listed if one.view})):
        projects: dict[str, list[Record]] = {}
        for one in listed:
            if view in (layout.ALL, one.view):
                projects.setdefault(one.project, []).append(one)
        for project, wheels in projects.items():
            anchors = "".join(lines[one.file][0] for one in wheels)
            pages[f"{view}/{project}/{layout.HTML}"] = _html(f"Wheels of {project}", anchors)
            pages[f"{view}/{project}/{layout.JSON}"] = _project_json(project, wheels, lines)
        names = sorted(projects)
        anchors = "".join(f'<a href="{name}/">{name}</a><br>\n' for name in names)
        tops[f"{view}/{layout.HTML}"] = _html("Projects", anchors)
        body = ",\n".join(json.dumps({"name": name}) for name in names)
        tops[f"{view}/{layout.JSON}"] = f'{_meta()},\n"projects":[\n{body}\n]}}\n'.encode()
    front = {layout.AS_IT_IS: b"", layout.FRONT: render_front(listed, settings)}
    return pages | tops | front


def file_url(one: Record) -> str:
    """Where a wheel is downloaded from, as a page two folders below the top names it."""
    if one.links_to:
        return one.links_to + layout.url(one.file)
    return "../../" + layout.url(layout.wheel(one.file))


def _html(title: str, anchors: str) -> bytes:
    return (HEAD.format(title=escape(title)) + anchors + FOOT).encode()


def _anchor(one: Record) -> str:
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
    return "".join(parts) + f">{escape(one.file)}</a><br>\n"


def _entry(one: Record) -> str:
    entry = {
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


def _project_json(project: str, wheels: list[Record], lines: dict[str, tuple[str, str]]) -> bytes:
    versions = json.dumps(sorted({one.version for one in wheels}))
    body = ",\n".join(lines[one.file][1] for one in wheels)
    return f'{_meta()},\n"name":{json.dumps(project)},\n"versions":{versions},\n"files":[\n{body}\n]}}\n'.encode()


def _meta() -> str:
    return f'{{"meta":{{"api-version":"{JSON_VERSION}"}}'
