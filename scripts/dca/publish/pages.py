"""Generates every page of an index from its records: the same records give the same bytes.

HTML follows PEP 503, 592, 629, 658 and 714, JSON follows PEP 691 and 700.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from dca.publish import front, layout
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


def render(records: Iterable[Record], settings: Settings) -> dict[str, bytes]:
    """Every page by its path; a page comes before the pages that link to it.

    Args:
        records: of the index, in any order; the pages show only listed wheels.
        settings: of the index.
    """
    listed = sorted((record for record in records if record.state == "listed"), key=lambda record: record.file)
    # A wheel has the same line in each view.
    anchors = {record.file: _anchor(record) for record in listed}
    entries = {record.file: _entry(record) for record in listed}
    pages: dict[str, bytes] = {}
    sheets = _sheets(listed)
    for (view, project), sheet in sheets.items():
        lines = "\n".join(anchors[record.file] for record in sheet)
        pages[f"{view}/{project}/{layout.HTML}"] = _html(f"Wheels of {project}", lines)
        versions = json.dumps(sorted({record.version for record in sheet}))
        names = f'"name":{json.dumps(project)},\n"versions":{versions},\n'
        files = ",\n".join(entries[record.file] for record in sheet)
        pages[f"{view}/{project}/{layout.JSON}"] = f'{META}{names}"files":[\n{files}\n]}}\n'.encode()
    for view in sorted({layout.ALL, *(view for view, _ in sheets)}):
        projects = sorted(project for sheet_view, project in sheets if sheet_view == view)
        links = "\n".join(f'<a href="{project}/">{project}</a><br>' for project in projects)
        pages[f"{view}/{layout.HTML}"] = _html("Projects", links)
        names = ",\n".join(json.dumps({"name": project}) for project in projects)
        pages[f"{view}/{layout.JSON}"] = f'{META}"projects":[\n{names}\n]}}\n'.encode()
    pages[layout.AS_IT_IS] = b""
    pages[layout.FRONT] = front.page(listed, settings)
    return pages


def file_url(record: Record) -> str:
    """A wheel's download URL, relative to a page two folders below the top."""
    if record.links_to:
        return record.links_to + layout.url(record.file)
    return "../../" + layout.url(layout.wheel(record.file))


def _sheets(listed: Sequence[Record]) -> dict[tuple[str, str], list[Record]]:
    """The wheels of each page, by view and project."""
    sheets: dict[tuple[str, str], list[Record]] = {}
    for record in listed:
        for view in filter(None, (layout.ALL, record.view)):
            sheets.setdefault((view, record.project), []).append(record)
    return sheets


def _html(title: str, body: str) -> bytes:
    return (HEAD.format(title=escape(title)) + body + FOOT).encode()


def _anchor(record: Record) -> str:
    # The hash of METADATA under both names: pip before 23.1 knows only the first.
    parts = [
        f'<a href="{escape(file_url(record))}#sha256={record.sha256}"',
        f' data-dist-info-metadata="sha256={record.metadata_sha256}"',
        f' data-core-metadata="sha256={record.metadata_sha256}"',
    ]
    if record.requires_python:
        parts.append(f' data-requires-python="{escape(record.requires_python)}"')
    if record.yanked is not None:
        parts.append(f' data-yanked="{escape(record.yanked)}"')
    return "".join(parts) + f">{escape(record.file)}</a><br>"


def _entry(record: Record) -> str:
    entry: dict[str, object] = {
        "filename": record.file,
        "url": file_url(record),
        "hashes": {"sha256": record.sha256},
        "size": record.bytes,
        "upload-time": record.published,
        "core-metadata": {"sha256": record.metadata_sha256},
        "yanked": False if record.yanked is None else record.yanked or True,
    }
    if record.requires_python:
        entry["requires-python"] = record.requires_python
    return json.dumps(entry)
