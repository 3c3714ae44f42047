"""A hook of mkdocs (mkdocs.yml) that adds the reference, made from code and data when the site is built.

Commands come from click, documents from their pydantic models, and codes, failures, recipes, toolkits, models and GPUs
from build/. The Markdown files outside docs/ become pages too, and each code in a text becomes a link to its meaning.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
import types
import typing
from collections.abc import Collection, Iterable, Iterator
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, cast

import click
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pydantic import BaseModel

import dca
from dca import cli
from dca.catalogue import failures, recipes, toolkits
from dca.catalogue.recipes import Group, Recipe
from dca.config import models, readers
from dca.emulation.forms import KNOWN
from dca.foundation.documents import Document
from dca.foundation.errors import ExitCode
from dca.serve import gpus

ROOT = Path(__file__).resolve().parent.parent
# Files outside docs/ that are pages of the site.
OUTSIDE = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "examples/README.md": "examples.md",
}
CODES = "reference/codes.md"
ROOT_CONTEXT = click.Context(cli.root, info_name="dca", **cli.root.context_settings)
# The commands that print each document with --json; the other documents are only kept on disk.
PRINTED = {
    "dca.commands/1": ("dca wheel --list",),
    "dca.config/1": tuple(
        f"dca config {name}" for name in ("show", "check", "set-yarn", "set-dca", "use-1m", "drop-dca", "undo")
    ),
    "dca.config-plot/1": ("dca config plot",),
    "dca.containerfile/1": ("dca index containerfile",),
    "dca.doctor/1": ("dca doctor",),
    "dca.engine-made/1": ("dca engine make",),
    "dca.engines/1": ("dca engine list",),
    "dca.environment/1": ("dca env",),
    "dca.explanation/2": ("dca explain LOG",),
    "dca.explanations/1": ("dca explain FOLDER",),
    "dca.inspection/3": ("dca inspect",),
    "dca.kernels/1": ("dca kernels",),
    "dca.listing/1": ("dca index list",),
    "dca.matrix-jobs/1": ("dca matrix FILE --format json",),
    "dca.matrix-run/1": ("dca matrix FILE",),
    "dca.packed/1": ("dca fetch --bundle FILE",),
    "dca.patches/1": ("dca patch status", "dca patch refresh"),
    "dca.plan/1": ("dca plan",),
    "dca.plugin-check/1": ("dca plugin check",),
    "dca.report/1": ("dca report",),
    "dca.publish/1": (
        "dca publish",
        "dca index yank",
        "dca index unyank",
        "dca index remove",
        "dca index sign",
        "dca index gc",
    ),
    "dca.serve-check/2": ("dca serve check",),
    "dca.serve-command/1": ("dca serve command",),
    "dca.memory-corrections/1": ("dca serve plan",),
    "dca.serve-plan/2": ("dca serve plan",),
    "dca.serve-run/1": ("dca serve run",),
    "dca.smoke/1": ("dca smoke",),
    "dca.source/3": ("dca fetch",),
    "dca.upload/1": ("dca publish --repository URL",),
    "dca.verification/2": ("dca verify FILE",),
    "dca.verified-index/2": ("dca verify URL",),
    "dca.wheel/1": ("dca wheel",),
}
# Documents that no model describes.
OTHER = {
    "dca.error/1": (
        "Any command that fails, with `--json`.",
        {
            "code": "Error code.",
            "exit": "Exit code of the command.",
            "what": "What happened.",
            "why": "The reason, or the words of the program that failed.",
            "next": "What to do.",
            "known": "Failures of the catalogue that explain the program's output, as in `dca.explanation/2`.",
        },
    ),
    "dca.failure/2": (
        "Printed by `dca explain CODE --json`.",
        {
            "id": "The code, or the failure's name in the catalogue.",
            "title": "What happened.",
            "kind": "`cause`, `warning`, `consequence`, `harmless` or `silent`.",
            "cause": "Why it happens.",
            "remedy": "What to do.",
            "when": "When it happens.",
            "source": "Where it was seen.",
            "line": "0, as no log is read.",
            "text": "Empty, as no log is read.",
            "count": "As in `dca.explanation/2`.",
            "time": "Empty, as no log is read.",
            "around": "Empty, as no log is read.",
            "reason": "Empty, as no log is read.",
        },
    ),
    "dca.config-readers/1": (
        "Printed by `dca config readers --json`: a list `readers`, each with these fields.",
        {
            "name": "Name of the reader.",
            "title": "Its name for people.",
            "shown": "Whether `dca config show` runs it by default.",
            "installed": "Whether it can run.",
            "why": "Why it cannot run.",
            "get": "How to install it.",
        },
    ),
    "dca.patch-new/1": (
        "Printed by `dca patch new --json`.",
        {
            "work": "Work folder.",
            "patch": "The new patch file; empty after the first step.",
            "next": "What to do next.",
        },
    ),
}


def on_config(config: MkDocsConfig) -> None:
    """Put the generated pages into the navigation."""
    commands = [uri for uri in pages() if uri.startswith("reference/commands/")]
    documents = [uri for uri in pages() if uri.startswith("reference/documents/")]
    others = [uri for uri in pages() if uri not in {*commands, *documents}]
    next(item for item in config.nav or () if "Reference" in item)["Reference"] = [
        {"Commands": commands},
        {"JSON documents": documents},
        *others,
    ]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the generated pages and those from outside docs/."""
    for source, uri in OUTSIDE.items():
        files.append(File.generated(config, uri, abs_src_path=str(ROOT / source)))
    for uri, content in pages().items():
        files.append(File.generated(config, uri, content=content))


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:  # noqa: ARG001 - mkdocs' signature
    """Point links at the site's pages, and turn codes outside headings and code into links."""
    for source, uri in OUTSIDE.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(source)}(?=[)#])", f"]({uri}", markdown)
    markdown = re.sub(r"\]\((\.\./)?docs/", "](", markdown)
    codes = "../" * page.file.src_uri.count("/") + CODES if page.file.src_uri != CODES else ""
    parts = re.split(r"(^```.*?^```|`[^`\n]+`|^#.*?$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [
        re.sub(r"DCA-([0-9]{3})", lambda code: f"[{code[0]}]({codes}#dca-{code[1]})", part) for part in parts[::2]
    ]
    return "".join(parts)


@cache
def pages() -> dict[str, str]:
    """Every generated page by its path below docs/."""
    return {
        "reference/commands/dca.md": overview(),
        **{f"reference/commands/{name}.md": command_page(name) for name in cli.COMMANDS},
        "reference/documents/other.md": other_documents(),
        **{f"reference/documents/{kind.SCHEMA.split('/')[0]}.md": document_page(kind) for kind in documents()},
        CODES: codes_page(),
        "reference/failures.md": failures_page(),
        "reference/recipes.md": recipes_page(),
        "reference/toolkits.md": toolkits_page(),
        "reference/models.md": models_page(),
        "reference/forms.md": forms_page(),
    }


def inline(text: str) -> str:
    """A text as Markdown in one line: code spans stay, every other character stands for itself."""
    parts = " ".join(text.split()).split("`")
    parts[::2] = [re.sub(r"([\\*_\[\]|])", r"\\\1", part).replace("<", "&lt;") for part in parts[::2]]
    return "`".join(parts)


def code(text: str) -> str:
    """A text as a code span; none for an empty one."""
    return f"`{text}`" if text else ""


def listed(values: Iterable[object]) -> str:
    """Values with commas between."""
    return ", ".join(map(str, values))


def table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """A Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# --- commands ----------------------------------------------------------------------------------------------------


def overview() -> str:
    """The page of `dca` itself."""
    rows = [(f"[`dca {name}`]({name}.md)", inline(text)) for name, text in cli.COMMANDS.items()]
    return (
        f"# dca\n\n{help_text(cli.root)}\n{options_table(cli.root, ROOT_CONTEXT)}\n{table(('command', 'does'), rows)}"
    )


def command_page(name: str) -> str:
    """The page of a command and its subcommands."""
    command = cli.root.get_command(ROOT_CONTEXT, name)
    assert command is not None  # noqa: S101 - its name is from the list of commands
    return "\n".join(sections(command, click.Context(command, info_name=name, parent=ROOT_CONTEXT), 1))


def sections(command: click.Command, context: click.Context, level: int) -> Iterator[str]:
    """A command's section, then one for each of its subcommands."""
    yield f"{'#' * level} {context.command_path}\n"
    yield f"```text\n{command.get_usage(context).removeprefix('Usage: ')}\n```\n"
    yield help_text(command)
    yield options_table(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            inner = command.get_command(context, name)
            assert inner is not None  # noqa: S101 - the group itself lists it
            yield from sections(inner, click.Context(inner, info_name=name, parent=context), level + 1)


def options_table(command: click.Command, context: click.Context) -> str:
    """A command's options."""
    options = [option for option in command.get_params(context) if isinstance(option, click.Option)]
    return table(
        ("option", "meaning", "default, range, variable"),
        [
            (code(record[0]), inline(option.help or ""), inline(default(option, context)))
            for option in options
            if (record := option.get_help_record(context))
        ],
    )


def help_text(command: click.Command) -> str:
    """A command's help as Markdown; paragraphs that click does not wrap stay as they are."""
    paragraphs = inspect.cleandoc(command.help or "").split("\f")[0].split("\n\n")
    return "".join(
        f"```text\n{paragraph[2:]}\n```\n\n" if paragraph.startswith("\b\n") else f"{inline(paragraph)}\n\n"
        for paragraph in paragraphs
    )


def default(option: click.Option, context: click.Context) -> str:
    """An option's default, its range, and the variable that sets it."""
    extra = option.get_help_extra(context)
    value = option.to_info_dict()["default"]
    text = extra.get("default") or (str(value) if isinstance(value, str | int | float) and value else "")
    variables = (option.envvar,) if isinstance(option.envvar, str) else option.envvar or ()
    return "; ".join(filter(None, (text, extra.get("range", ""), listed(map(code, variables)))))


# --- documents ---------------------------------------------------------------------------------------------------


@cache
def documents() -> tuple[type[Document], ...]:
    """Every kind of document, by schema."""
    for module in pkgutil.walk_packages(dca.__path__, "dca."):
        if not module.name.startswith(("dca.in_wheel_env", "dca.__main__")):
            importlib.import_module(module.name)
    kinds = (kind for kind in subclasses(Document) if kind.__module__.startswith("dca."))
    return tuple(sorted(kinds, key=lambda kind: kind.SCHEMA))


def subclasses(kind: type[Document]) -> set[type[Document]]:
    """A class's subclasses, and theirs."""
    return {kind for below in kind.__subclasses__() for kind in (below, *subclasses(below))}


def document_page(kind: type[Document]) -> str:
    """The page of a document: its fields, then those of every value in it."""
    commands = " or ".join(f"`{command} --json`" for command in PRINTED.get(kind.SCHEMA, ()))
    return "\n".join(
        [
            f"# {kind.SCHEMA}\n",
            f"Printed by {commands}.\n" if commands else "Kept on disk.\n",
            fields(kind),
            *(f"## {other.__name__} {{#{other.__name__.lower()}}}\n\n{fields(other)}" for other in models_of(kind)[1:]),
        ]
    )


def models_of(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """A model, and every model that is a value in it."""
    found = [kind]
    for model in found:
        found += [below for below in dict.fromkeys(inner_models(model)) if below not in found]
    return found


def other_documents() -> str:
    """The page of the documents that no model describes."""
    return "# Other documents\n\n" + "\n".join(
        f"## {schema}\n\n{about}\n\n"
        + table(("field", "meaning"), [(code(name), text) for name, text in known.items()])
        for schema, (about, known) in OTHER.items()
    )


def inner_models(kind: type[BaseModel]) -> list[type[BaseModel]]:
    """The models that a model's fields name."""

    def of(annotation: Any) -> Iterator[type[BaseModel]]:
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            yield annotation
        for argument in typing.get_args(annotation):
            yield from of(argument)

    return [model for field in kind.model_fields.values() for model in of(field.annotation)]


def fields(kind: type[BaseModel]) -> str:
    """What a model is, and the table of its fields."""
    about, described = descriptions(kind)
    rows = [
        (code(name), json_type(field.annotation), inline(described.get(name, "")))
        for name, field in kind.model_fields.items()
    ]
    if issubclass(kind, Document):
        rows.insert(0, ("`schema`", "string", f"`{kind.SCHEMA}`"))
    return f"{inline(about)}\n\n{table(('field', 'type', 'meaning'), rows)}"


@cache
def descriptions(kind: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """A model's docstring, and what it says of fields: below `Args:`, or behind each field."""
    described: dict[str, str] = {}
    for base in reversed([base for base in kind.__mro__ if base.__module__.startswith("dca.")]):
        definition = cast("ast.ClassDef", ast.parse(textwrap.dedent(inspect.getsource(base))).body[0])
        for statement, text in zip(definition.body, definition.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(text, ast.Expr):
                described[ast.unparse(statement.target)] = ast.literal_eval(text.value)
        about, _, arguments = (inspect.getdoc(base) or "").partition("Args:\n")
        described.update(re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE))
    return about, {name: text[:1].upper() + text[1:] for name, text in described.items()}


NAMES = {str: "string", Path: "string", int: "integer", float: "number", bool: "boolean", type(None): "null"}


def json_type(annotation: Any) -> str:
    """A type as JSON has it; models are links."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return json_type(arguments[0])
    if origin is typing.Literal:
        return " or ".join(code(str(argument)) for argument in arguments)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(json_type, arguments))
    if origin is dict:
        return f"object of {json_type(arguments[1])}"
    if origin is not None:
        inner = [json_type(argument) for argument in arguments if argument is not ...]
        return f"list of {', '.join(dict.fromkeys(inner))}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    if inspect.isclass(annotation) and issubclass(annotation, Enum):
        return " or ".join(code(str(member.value)) for member in annotation)
    return NAMES.get(annotation, "any")


# --- data --------------------------------------------------------------------------------------------------------


def codes_page() -> str:
    """Every code, by the exit code that it ends with."""
    parts = ["# Error codes\n\nThe first digit of a code is the exit code of the command that ends with it.\n"]
    known = failures.load().codes
    for digit in dict.fromkeys(name[4] for name in sorted(known)):
        parts.append(f"## Exit code {digit}: {ExitCode(int(digit)).name.lower().replace('_', ' ')}\n")
        parts += [
            f"### {name}: {inline(about.title)} {{#{name.lower()}}}\n\n{inline(about.cause)}\n\n"
            f"**What to do:** {inline(about.remedy)}\n"
            for name, about in sorted(known.items())
            if name[4] == digit
        ]
    return "\n".join(parts)


def failures_page() -> str:
    """Every failure of the catalogue."""
    parts = ["# Known failures\n\nThe failures that `dca explain` finds in a log, in the order of the catalogue.\n"]
    for failure in failures.load().failures:
        texts = "\n".join(failure.texts)
        parts += [
            f"## {failure.id}\n\n{inline(failure.title[:1].upper() + failure.title[1:])} ({failure.kind}).\n",
            f"```text\n{texts}\n```\n" if texts else "Prints nothing.\n",
            f"**When:** {inline(failure.when)}\n\n**Cause:** {inline(failure.cause)}\n",
            f"**What to do:** {inline(failure.remedy)}\n\n**Source:** {inline(failure.source)}\n",
        ]
    return "\n".join(parts)


def recipes_page() -> str:
    """Every recipe with its groups."""
    parts = ["# Recipes\n\nThe source lines in `build/recipes`, in the order in which they are tried.\n"]
    loaded = sorted((entry.recipe for entry in recipes.load_all()), key=lambda recipe: recipe.priority)
    for recipe in loaded:
        parts += [
            f"## {recipe.name}\n\n{inline(recipe.title)}\n",
            table(("", ""), plugin_facts(recipe) if recipe.engine else recipe_facts(recipe)),
        ]
        if recipe.is_plugin:
            continue
        parts += [
            f"### Groups of {recipe.name}\n",
            table(
                ("group", "module", "ops", "in profile", "GPU architectures", "for"),
                [
                    (
                        code(name),
                        code(group.module),
                        str(len(group.ops)),
                        listed(profiles_with(recipe, name)) or "on request (`--with`)",
                        listed(group.archs) or "all",
                        inline(f"{group.why}{served(group)}"),
                    )
                    for name, group in recipe.groups.items()
                ],
            ),
        ]
    return "\n".join(parts)


def plugin_facts(recipe: Recipe) -> list[tuple[str, str]]:
    """What a plugin is for."""
    engine = recipe.engine
    return [
        ("version", recipe.plugin_version),
        ("kind", "a plugin, built only if it is named"),
        ("requires", code(engine.requirement) if engine else ""),
        ("entry points", listed(code(point) for point in recipe.patches.entry_points[recipes.PLUGINS_GROUP].values())),
        ("torch", f"{recipe.torch.version}, CUDA {recipe.torch.cuda}, as its engine requires"),
        ("Python", code(recipe.python)),
        ("packages as of", recipe.lock_date),
    ]


def recipe_facts(recipe: Recipe) -> list[tuple[str, str]]:
    """What a recipe pins and offers."""
    wheel, source = recipe.official_wheel, recipe.source
    return [
        ("version", recipe.base_version),
        ("source", code(source.file if source.kind == "sdist" else source.urls[0])),
        ("pin", code(source.pin)),
        ("torch", f"{recipe.torch.version}, CUDA {recipe.torch.cuda}"),
        ("CUDA toolkits that compile it", listed(recipe.cuda.supported)),
        ("Python", code(recipe.python)),
        ("packages as of", recipe.lock_date),
        ("profiles", listed(recipe.profiles)),
        ("GPU architectures (lean)", f"{listed(recipe.lean.archs)}; default {listed(recipe.lean.default_archs)}"),
        ("model classes (lean)", listed(map(code, recipe.lean.architectures)) or "not restricted"),
        ("modules", listed(code(module.path) for module in recipe.modules.values())),
        ("companions", listed(map(code, recipe.companions)) or "none"),
        ("official wheel", code(wheel.file) if wheel else "none"),
    ]


def profiles_with(recipe: Recipe, group: str) -> list[str]:
    """The profiles that have a group by default."""
    own = recipe.kernels.groups if recipe.kernels else ()
    return [name for name, groups in (("lean", recipe.lean.groups), ("kernels", own)) if group in groups]


def served(group: Group) -> str:
    """The models that need a group."""
    serves = group.serves
    needs = [
        *(["mixture of experts"] if serves.experts else []),
        *([f"head dimension {listed(serves.head_dims)}"] if serves.head_dims else []),
        *([f"{listed(serves.quantizations)} weights"] if serves.quantizations else []),
    ]
    return f" ({'; '.join(needs)})" if needs else ""


def toolkits_page() -> str:
    """Every toolkit that can be downloaded, what CUDA versions accept, and their drivers."""
    known = toolkits.load_versions()
    return "\n".join(
        [
            "# CUDA toolkits\n\n## Toolkits that can be downloaded\n",
            table(
                ("toolkit", "nvcc", "from", "download", "parts"),
                [
                    (
                        code(source.name),
                        source.version,
                        inline(source.title),
                        f"{source.download_mb} MB",
                        listed(map(code, source.hashes)),
                    )
                    for source in toolkits.load_sources()
                ],
            ),
            "## What each CUDA version accepts\n",
            table(
                ("CUDA", "newest gcc", "GPU architectures", "header fixes"),
                [
                    (
                        version.line,
                        str(version.gcc_max),
                        listed(version.archs),
                        listed(map(code, version.fixes)),
                    )
                    for version in known.versions
                ],
            ),
            "## The driver of each CUDA version\n",
            table(
                ("CUDA", "driver", "PTX", "GPU architectures that it is the first to know"),
                [
                    (release.cuda, str(release.driver), release.ptx, listed(release.archs))
                    for release in known.drivers.releases
                ],
            ),
        ]
    )


def models_page() -> str:
    """Every known model, GPU and reader."""
    return "\n".join(
        [
            "# Models, GPUs and readers\n\n## Models\n",
            table(
                (
                    "model",
                    "class",
                    "layers",
                    "heads / KV heads",
                    "head dimension",
                    "tokens without DCA",
                    "tokens with known settings",
                    "GPU memory by its card",
                ),
                [
                    (
                        code(model.name),
                        listed(map(code, model.architectures)),
                        str(model.layers),
                        f"{model.heads} / {model.kv_heads}",
                        str(model.head_dim),
                        f"{model.native_length:,}",
                        f"{longest(model):,}",
                        f"{model.vram_gb} GB" if model.vram_gb else "",
                    )
                    for model in models.load_all()
                ],
            ),
            "## GPUs\n",
            table(
                ("GPU", "memory", "as torch sees it", "compute capability", "MIG slices"),
                [
                    (
                        code(card.name),
                        f"{card.memory_gib:g} GiB",
                        f"{gpus.load().seen_gib(card):g} GiB",
                        card.arch,
                        listed(map(code, card.slices)),
                    )
                    for card in gpus.load().cards
                ],
            ),
            "## Readers of config.json\n",
            table(
                ("reader", "is", "kind", "shown by default", "dual chunk attention"),
                [
                    (
                        code(reader.name),
                        inline(reader.title),
                        reader.kind,
                        "yes" if reader.shown else "no",
                        reader.wants.dual_chunk,
                    )
                    for reader in readers.load_all()
                ],
            ),
        ]
    )


def longest(model: models.KnownModel) -> int:
    """The length that a model has with dual chunk attention or YaRN."""
    return max(
        model.max_position_embeddings,
        (model.dual_chunk.max_position_embeddings or 0) if model.dual_chunk else 0,
        int(model.yarn.factor * model.yarn.original) if model.yarn else 0,
    )


# --- forms of PTX ------------------------------------------------------------------------------------------------


def forms_page() -> str:
    """The instructions of PTX that are emulated, with every modifier."""
    by_opcode: dict[str, set[tuple[str, ...]]] = {}
    for form in KNOWN:
        opcode, *modifiers = form.split(".")
        by_opcode.setdefault(opcode, set()).add(tuple(modifiers))
    rows = [
        (
            code(opcode),
            str(len(forms)),
            "<br>".join(code(opcode + text).replace("|", "\\|") for text in patterns(forms)),
        )
        for opcode, forms in sorted(by_opcode.items())
    ]
    return (
        f"# Instructions of PTX\n\nThe {len(KNOWN)} forms of instructions that are "
        "[emulated](../emulation.md#how-a-kernel-runs); every other one ends with DCA-830. In a form, `{f16,f32}` is "
        "one of several modifiers, `[…]` may be left out, and `(…|…)` is one of several continuations.\n\n"
        + table(("opcode", "forms", "with their modifiers"), rows)
    )


def patterns(forms: Collection[tuple[str, ...]]) -> list[str]:
    """Lists of modifiers as few texts; those that go on in the same way share one.

    Args:
        forms: the modifiers of each form. One without any is the empty text.
    """
    by_first: dict[str, set[tuple[str, ...]]] = {}
    for first, *rest in filter(None, sorted(forms)):
        by_first.setdefault(first, set()).add(tuple(rest))
    firsts: dict[frozenset[tuple[str, ...]], list[str]] = {}
    for first, following in by_first.items():
        firsts.setdefault(frozenset(following), []).append(first)
    texts = [""] if () in forms else []
    for rests, names in firsts.items():
        head = f".{names[0]}" if len(names) == 1 else f".{{{','.join(names)}}}"
        more = [text for text in patterns(rests) if text]
        text = more[0] if len(more) == 1 else f"({'|'.join(more)})" if more else ""
        texts.append(head + (f"[{text}]" if text and () in rests else text))
    return texts
