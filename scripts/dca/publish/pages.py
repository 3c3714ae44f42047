"""Generates every page of an index from its records: the same records give the same bytes.

HTML follows PEP 503, 592, 629, 658 and 714, JSON follows PEP 691 and 700.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from html import escape

from dca.catalogue import variants
from dca.catalogue.variants import Variant
from dca.foundation import store
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
        described = _variants(sheet) if view == layout.VARIANTS else {}
        for name, content in described.items():
            pages[f"{view}/{project}/{name}"] = content
            lines += (
                f'\n<a href="{escape(layout.url(name))}#sha256={store.sha256_bytes(content)}">{escape(name)}</a><br>'
            )
        pages[f"{view}/{project}/{layout.HTML}"] = _html(f"Wheels of {project}", lines)
        versions = json.dumps(sorted({record.version for record in sheet}))
        names = f'"name":{json.dumps(project)},\n"versions":{versions},\n'
        files = ",\n".join([*(entries[record.file] for record in sheet), *map(_described, described.items())])
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
        # Installers compare versions before variants: among plain wheels, variants would never be chosen.
        for view in filter(None, (record.view,) if record.variant else (layout.ALL, record.view)):
            sheets.setdefault((view, record.project), []).append(record)
    return sheets


def _variants(sheet: Sequence[Record]) -> dict[str, bytes]:
    """The file of each version's variants by its name; of two variants with one label, it has the first."""
    versions: dict[str, dict[str, Variant]] = {}
    for record in sheet:
        if record.variant:
            name = variants.variants_file(record.project, record.version)
            versions.setdefault(name, {}).setdefault(record.variant.label, record.variant)
    return {name: variants.written(own.values()) for name, own in versions.items()}


def conflicts(records: Iterable[Record]) -> list[str]:
    """Variants of one version that have the same label and are for other machines: no file can describe both."""
    seen: dict[tuple[str, str, str], Record] = {}
    wrong = []
    for record in sorted(records, key=lambda record: record.file):
        if record.variant and record.state == "listed":
            first = seen.setdefault((record.project, record.version, record.variant.label), record)
            if first.variant != record.variant:
                wrong.append(f"{record.file} and {first.file} have the same label, and are for other machines.")
    return wrong


def _described(file: tuple[str, bytes]) -> str:
    """The entry of a file of variants."""
    name, content = file
    return json.dumps(
        {
            "filename": name,
            "url": layout.url(name),
            "hashes": {"sha256": store.sha256_bytes(content)},
            "size": len(content),
        }
    )


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
