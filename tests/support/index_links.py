"""Follows the links of an index's pages as installers do, without knowing its records."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pypi_simple import IndexPage, ProjectPage

from dca.foundation import store
from dca.publish import layout


def differing(index: Path) -> list[str]:
    """Pages whose HTML and JSON differ, or of which one form is missing."""
    problems = []
    views = [view for view in index.iterdir() if layout.VIEW.fullmatch(view.name)]
    for folder in sorted({page.parent for view in views for page in view.rglob("*") if page.is_file()}):
        html, as_json = folder / layout.HTML, folder / layout.JSON
        if not (html.is_file() and as_json.is_file()):
            problems.append(f"{folder}: one form alone")
        elif folder.parent == index:
            one, other = (
                IndexPage.from_html(html.read_text()),
                IndexPage.from_json_data(_json(as_json)),
            )
            if one.projects != other.projects:
                problems.append(f"{folder}: {one.projects} and {other.projects}")
        else:
            given = {"base_url": html.as_uri()}
            pages = (
                ProjectPage.from_html(folder.name, html.read_text(), **given),
                ProjectPage.from_json_data(_json(as_json), **given),
            )
            told = [
                [(one.filename, one.url, one.digests, one.is_yanked, one.yanked_reason) for one in page.packages]
                for page in pages
            ]
            if told[0] != told[1]:
                problems.append(f"{folder}: {told}")
    return problems


def _json(path: Path) -> Any:
    return json.loads(path.read_text())


def broken(index: Path) -> list[str]:
    """Links that lead nowhere, or to a file whose hash is not the one on the page."""
    links = re.findall(r'href="([^"]+)"', front.read_text()) if (front := index / layout.FRONT).is_file() else []
    problems = [f"{layout.FRONT}: {link}" for link in links if not (index / unquote(link)).exists()]
    pages = [page for view in index.iterdir() if layout.VIEW.fullmatch(view.name) for page in view.rglob("index.*")]
    for page in pages:
        text, project = page.read_text(), page.parent.name
        html = page.name == layout.HTML
        if page.parent.parent == index:
            projects = (IndexPage.from_html(text) if html else IndexPage.from_json_data(json.loads(text))).projects
            problems += [f"{page}: {name}" for name in projects if not (page.parent / name / page.name).is_file()]
            continue
        if html:
            packages = ProjectPage.from_html(project, text, base_url=page.as_uri()).packages
        else:
            packages = ProjectPage.from_json_data(json.loads(text), base_url=page.as_uri()).packages
        for package in packages:
            file = Path(unquote(urlsplit(package.url).path))
            metadata = file.with_name(f"{file.name}.metadata")
            for path, digests in ((file, package.digests), (metadata, package.metadata_digests)):
                if not path.is_file() or digests != {"sha256": store.sha256_file(path)}:
                    problems.append(f"{page}: {path}")
    return problems
