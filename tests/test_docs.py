"""The documentation: its site builds, its reference is complete, its links resolve, and its commands exist."""

from __future__ import annotations

import html
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import reference
from dca import cli, resolve
from dca.catalogue import failures, recipes, toolkits
from dca.config import models
from dca.emulation.forms import KNOWN
from tests.support import ROOT

SOURCES = [
    *sorted((ROOT / "docs").glob("*.md")),
    *(ROOT / name for name in reference.OUTSIDE),
]
MAKEFILE = (ROOT / "Makefile").read_text()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def build(config: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    mkdocs: list[str | Path] = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", config, "-d", folder]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(mkdocs, cwd=ROOT, env=env, text=True, capture_output=True, timeout=300, check=False)


def words(text: str) -> str:
    """A text without markup, as a reader sees it."""
    return " ".join(html.unescape(re.sub(r"<[^>]*>", "", text)).replace("`", "").replace("¶", "").split())


def shown(site: Path, page: str) -> str:
    content = (site / f"reference/{page}.html").read_text()
    return words(content[content.index("<article") : content.index("</article")])


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """A command and all below it."""
    yield command, context
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None
            yield from commands(inner, click.Context(inner, info_name=name, parent=context))


def options(command: click.Command) -> list[click.Option]:
    return [option for option in command.params if isinstance(option, click.Option) and not option.hidden]


# --- the reference -----------------------------------------------------------------------------------------------


@pytest.mark.long
def test_the_reference_has_every_command_and_option(site: Path) -> None:
    pages = {name: shown(site, f"commands/{name}") for name in ("dca", *cli.COMMANDS)}
    for command, context in commands(cli.root, reference.ROOT_CONTEXT):
        page = pages[[*context.command_path.split(), "dca"][1] if context.parent else "dca"]
        assert context.command_path in page
        assert words((command.help or "").split("\n\n")[0]) in page
        for option in options(command):
            if record := option.get_help_record(context):
                assert words(record[0]) in page
                assert words(option.help or "") in page


def test_the_reference_has_every_field_of_every_document(site: Path) -> None:
    for kind in reference.documents():
        page = shown(site, f"documents/{kind.SCHEMA.split('/')[0]}")
        assert kind.SCHEMA in page
        names = {name for model in reference.models_of(kind) for name in model.model_fields}
        assert {name for name in names if name not in page} == set()


@pytest.mark.slow
def test_every_field_of_a_printed_document_has_a_meaning() -> None:
    printed = [kind for kind in reference.documents() if kind.SCHEMA in reference.PRINTED]
    for model in {model for kind in printed for model in reference.models_of(kind)}:
        _, described = reference.descriptions(model)
        assert {name for name in model.model_fields if not described.get(name)} == set(), model


def test_the_reference_has_every_code_and_failure(site: Path) -> None:
    catalogue, codes, known = failures.load(), shown(site, "codes"), shown(site, "failures")

    def missing(texts: Sequence[str], page: str) -> set[str]:
        # What stands between < and > is a part of these texts.
        return {text for text in texts if words(html.escape(text, quote=False)) not in page}

    for code, about in catalogue.codes.items():
        assert missing((code, about.title, about.cause, about.remedy), codes) == set()
    for failure in catalogue.failures:
        texts = (failure.id, failure.title[1:], failure.cause, failure.remedy, *failure.texts)
        assert missing(texts, known) == set()


def test_the_reference_has_every_recipe_group_toolkit_and_model(site: Path) -> None:
    page = shown(site, "recipes")
    for recipe in (entry.recipe for entry in recipes.load_all()):
        # The hash of a folder of this project is computed, not written.
        pins = () if isinstance(recipe.source, recipes.FolderSource) else (recipe.source.pin,)
        assert {name for name in (recipe.name, *pins, *recipe.groups) if name not in page} == set()
    page = shown(site, "toolkits")
    assert {source.name for source in toolkits.load_sources() if source.name not in page} == set()
    page = shown(site, "models")
    assert {model.name for model in models.load_all() if model.name not in page} == set()


def spelled_out(text: str) -> Iterator[str]:
    """The forms that a pattern of the reference stands for."""
    opened = re.search(r"[{\[(]", text)
    if not opened:
        yield text
        return
    depth, parts, start = 0, [], opened.end()
    for at in range(opened.start(), len(text)):
        depth += (text[at] in "{[(") - (text[at] in "}])")
        if (depth == 1 and text[at] in ",|") or depth == 0:
            parts.append(text[start:at])
            start = at + 1
        if depth == 0:
            break
    for part in [*parts, *([""] if opened[0] == "[" else [])]:
        yield from spelled_out(text[: opened.start()] + part + text[start:])


@pytest.mark.slow
def test_the_reference_has_every_form_that_is_emulated_and_no_other() -> None:
    rows = [line for line in reference.pages()["reference/forms.md"].splitlines() if line.startswith("| `")]
    texts = [text.replace("\\|", "|") for row in rows for text in re.findall(r"`([^`]+)`", row.split(" | ", 2)[2])]
    forms = [form for text in texts for form in spelled_out(text)]
    assert sorted(forms) == sorted(KNOWN)


@pytest.mark.parametrize("schema", reference.PRINTED)
def test_a_document_is_printed_by_commands_that_exist(schema: str) -> None:
    assert schema in {kind.SCHEMA for kind in reference.documents()}
    for command in reference.PRINTED[schema]:
        parse(shlex.split(f"{command} --json"))


@pytest.mark.slow
def test_documents_without_a_model_have_the_fields_that_are_described(tmp_path: Path) -> None:
    error = subprocess.run(
        [sys.executable, "-m", "dca", "plan", "--cuda", "twelve", "--json"], capture_output=True, check=False
    )
    known = CliRunner().invoke(cli.root, ["explain", "DCA-606", "--json"])
    listing = CliRunner().invoke(cli.root, ["config", "readers", "--json", "--cache-dir", str(tmp_path)])
    for printed in (json.loads(error.stdout), json.loads(known.stdout), json.loads(listing.stdout)):
        schema = printed.pop("schema")
        entry = printed["readers"][0] if "readers" in printed else printed
        assert set(entry) == set(reference.OTHER[schema][1])


# --- links -------------------------------------------------------------------------------------------------------


def test_the_site_loads_nothing_from_a_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert (
            re.findall(r"<(?:script|img|iframe)[^>]+src=\"?https?:|<link[^>]+href=\"?https?:", page.read_text()) == []
        )


@pytest.mark.slow
def test_a_link_that_leads_nowhere_fails_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# One\n\n[two](#three)\n")
    settings = re.search(r"^validation:\n(?: .*\n)+", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert settings
    (tmp_path / "mkdocs.yml").write_text(f"site_name: one\n{settings[0]}")
    done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert done.returncode == 1
    assert "#three" in done.stdout + done.stderr


def anchors(page: Path) -> set[str]:
    """What GitHub calls a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_of_a_source_resolves(page: Path) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


# --- commands ----------------------------------------------------------------------------------------------------


def quoted(page: Path) -> Iterator[list[str]]:
    """The commands of a page's code, as words."""
    text = page.read_text()
    lines = [
        line[2:]
        for block in re.findall(r"^```console\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("$ ")
    ]
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    for line in [*lines, *(span for span in spans if re.match(r"(\.venv/bin/)?(dca|make) ", span))]:
        for command in re.split(r" (?:\||&&|;|> \S+) ?", line):
            found = shlex.split(command, comments=True)
            while found and re.match(r"[A-Z_]+=", found[0]):
                found.pop(0)
            if found:
                yield found


def parse(found: list[str]) -> None:
    """Fail for a command that click would not take; placeholders are words in capitals."""
    command: click.Command = cli.root
    context = click.Context(command, info_name="dca")
    rest = [word.strip("[]") for word in found[1:]]
    while rest and isinstance(command, click.Group) and not rest[0].startswith(("…", "-")):
        inner = command.get_command(context, name := rest.pop(0))
        assert inner, f"there is no command {name}"
        command, context = inner, click.Context(inner, info_name=name, parent=context)
    if any(rest[-1:] == [name] and not option.is_flag for option in options(command) for name in option.opts):
        rest.append("VALUE")
    values, left, _ = command.make_parser(context).parse_args(rest)
    assert set(left) <= {"…"}
    for option in options(command):
        value: Any = values.get(option.name or "")
        if isinstance(option.type, click.Choice) and isinstance(value, str) and not value.isupper():
            assert value in option.type.choices


@pytest.mark.parametrize(
    # The changelog names what commands were called before.
    "page",
    [page for page in SOURCES if page.name != "CHANGELOG.md"],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_command_of_a_page_exists_with_its_options(page: Path) -> None:
    for found in quoted(page):
        if found[0] in ("dca", ".venv/bin/dca"):
            parse(found)
        if found[0] == "make":
            targets = [word for word in found[1:] if "=" not in word and word != "…"]
            assert {target for target in targets if f"\n{target}:" not in MAKEFILE} == set()
            variables = {word.split("=")[0] for word in found[1:] if "=" in word}
            assert {name for name in variables if not re.search(rf"\b{name}\b", MAKEFILE)} == set()


@pytest.mark.parametrize("command", ["dca wheeel", "dca wheel --cudda 12.1", "dca explain LOG LOG", "dca patch stats"])
def test_a_command_that_does_not_exist_is_found(command: str) -> None:
    with pytest.raises((AssertionError, click.UsageError)):
        parse(shlex.split(command))


@pytest.mark.parametrize("page", ["README.md", "docs/publish.md"])
def test_a_wheel_of_an_example_has_the_present_revision_of_its_patches(page: str) -> None:
    named = set(re.findall(r"(\d+(?:\.\d+)+)\+(dca\w*)", (ROOT / page).read_text()))
    assert named
    for version, revision in named:
        series = (ROOT / f"patches/vllm-{version}/series").read_text()
        assert revision == resolve.revision(int(re.findall(r"^# revision: (\d+)$", series, re.MULTILINE)[0]))
