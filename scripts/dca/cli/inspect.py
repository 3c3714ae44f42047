"""`dca inspect`."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dca import inspection
from dca.catalogue import model_needs, recipes
from dca.catalogue.plan import Plan
from dca.cli import options
from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.inspection import InspectedModule, Inspection, missing
from dca.toolchain import environments

WIDTH = 110
FAMILIES = 6
MOST_PROBLEMS = 20


def _schema(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        click.echo(documents.canonical(documents.json_schema(Inspection)).decode(), nl=False)
        ctx.exit()


@dataclass(frozen=True)
class Checks:
    """What a wheel is checked against, as the command line names it.

    Args:
        python: of an environment with the wheel's torch.
        plan: the file of a plan.
        archs: as --arch has them, which may be given more than once.
        model: a model's config.json, or its folder.
    """

    python: Path | None
    plan: Path | None
    archs: tuple[str, ...]
    model: Path | None


def _checks(function: Callable[..., None]) -> Callable[..., None]:
    """The options that become the `checks` of a command."""
    file = click.Path(path_type=Path)

    @click.option(
        "--python",
        type=file,
        metavar="FILE",
        help="A Python with the wheel's torch: symbols are checked against it, and modules are loaded, which runs "
        "their code, to list their ops.",
    )
    @click.option("--plan", type=file, help="A plan.json to compare with; a difference is exit 7.")
    @click.option("--arch", "archs", multiple=True, help="GPU archs that must be able to run it, such as 8.0,9.0.")
    @click.option("--model", type=file, metavar="CONFIG", help="A model's config.json that it must serve.")
    @functools.wraps(function)
    def wrapper(
        python: Path | None, plan: Path | None, archs: tuple[str, ...], model: Path | None, **others: Any
    ) -> None:
        function(checks=Checks(python, plan, archs, model), **others)

    return wrapper


@click.command("inspect")
@click.argument("wheel", type=click.Path(path_type=Path))
@_checks
@click.option("-v", "--verbose", is_flag=True, help="Every kernel family, and schemas in place of names of ops.")
@click.option(
    "--schema",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_schema,
    help="The JSON Schema of what --json prints, and nothing else.",
)
@options.output
def command(wheel: Path, checks: Checks, verbose: bool, as_json: bool, quiet: bool) -> None:
    """Show what is in a wheel: modules, GPU archs, kernels, ops, torch, CUDA, sizes.

    Works on any vLLM wheel, without a GPU and without CUDA. Nothing of the wheel is run unless --python is given.
    """
    for flag, file in (("--python", checks.python), ("--plan", checks.plan)):
        if file is not None and not file.is_file():
            raise DcaError("DCA-204", f"{flag}: {file} is not a file.", remedy="check the path.")
    model = model_needs.read(checks.model) if checks.model else None
    plan = documents.read(Plan, checks.plan) if checks.plan else None
    archs = options.arch_list(checks.archs) or (plan.archs if plan else ())
    inspected = _inspect(wheel, checks.python, archs)
    differences = inspection.compare(inspected, plan) if plan else list(inspected.problems)
    unfit = inspection.unreached(inspected) if checks.archs else []
    if model:
        unfit += missing.lacking(inspected, model, recipes.load_all())
    if as_json:
        compared = {"planned": plan.key, "differences": tuple(differences)} if plan else {}
        document = inspected.model_copy(update={**compared, "unfit": tuple(unfit)})
        click.echo(documents.dumps(document).decode(), nl=False)
    elif not quiet:
        click.echo(render(inspected, verbose=verbose))
    if differences:
        raise DcaError(
            "DCA-702" if plan else "DCA-701",
            f"{wheel.name} is not {'what was planned' if plan else 'right'}.",
            why=_some([*differences, *unfit]),
            remedy="do not install or publish it; `dca wheel` builds one that is right."
            if inspected.recorded
            else "what it says of itself cannot be relied on; `dca wheel` builds one that is right.",
            answered=as_json,
        )
    if unfit:
        raise DcaError(
            "DCA-110",
            f"{wheel.name} does not fit.",
            why=_some(unfit),
            remedy=f"build one that does: `{_fitting(checks, archs)}`.",
            answered=as_json,
        )


def _inspect(wheel: Path, python: Path | None, archs: tuple[str, ...]) -> Inspection:
    """What is in a wheel, for some GPU archs; with the help of an environment's Python where one is named."""
    if python is None:
        return inspection.inspect(wheel, asked=archs)
    source = inspection.schemas.loaded(python)
    return inspection.inspect(wheel, source, torch=environments.look_at_torch(python), asked=archs)


def _fitting(checks: Checks, archs: tuple[str, ...]) -> str:
    """The command that builds a wheel for the archs and the model that were asked for."""
    words = ["dca wheel"]
    if checks.archs:
        words += ["--arch", ",".join(archs)]
    if checks.model:
        words += ["--model", str(checks.model)]
    return " ".join(words)


def _some(problems: list[str]) -> str:
    """The first problems: a wheel whose RECORD is of another one has a thousand of a kind."""
    rest = len(problems) - MOST_PROBLEMS
    return "\n".join(problems[:MOST_PROBLEMS]) + (f"\nand {rest} more; --json lists them all." if rest > 0 else "")


def render(inspected: Inspection, *, verbose: bool = False) -> str:
    """An inspection as text."""
    lines = [
        f"{inspected.file}  {_size(inspected.bytes)}, {_size(inspected.unpacked)} unpacked, {inspected.files} files",
        f"  version       {inspected.version}",
        f"  tags          {', '.join(inspected.tags)}",
        f"  Python        {inspected.requires_python or 'any'}",
        f"  torch         {inspected.torch or 'not required'}{_symbols(inspected)}",
        f"  transformers  {inspected.transformers or 'not required'}",
        f"  CUDA          {', '.join(inspected.cuda_libraries) or 'no library of it'}",
        f"  glibc         {inspected.glibc + ' or newer' if inspected.glibc else 'any'}",
        f"  DCA backend   {'present' if inspected.dca_backend else 'absent'}",
        f"  DCA index     {_present(inspected.index_ops)}",
        f"  sparse attn   {_present(inspected.sparse_ops)}; its Python {_present(inspected.sparse_functions)}",
    ]
    if record := inspected.recorded:
        lines.append(
            f"  made by dca   {record.recipe}, {record.profile}: {', '.join(record.groups)}; plan {record.plan}"
        )
    for module in inspected.modules:
        lines += ["", f"  {module.path}  {_size(module.bytes)}, {_size(module.stored)} in the wheel"]
        for title, text in _module(module, verbose=verbose):
            lines += textwrap.wrap(
                text,
                WIDTH,
                initial_indent=f"      {title:<8}",
                subsequent_indent=" " * 14,
                break_on_hyphens=False,
                break_long_words=False,
            )
    return "\n".join(lines)


def _module(module: InspectedModule, *, verbose: bool) -> Iterator[tuple[str, str]]:
    """The lines about a module, as titles and texts; a long text is wrapped by the caller."""
    yield "is", ", ".join(f"{name} {_size(size)}" for name, size in module.sections.items() if size) or "nothing"
    if module.sass:
        yield (
            "cubins",
            ", ".join(
                f"sm_{arch.replace('.', '')} ({count}, {_size(module.sass_bytes[arch])})"
                for arch, count in module.sass.items()
            ),
        )
    if module.ptx:
        yield (
            "PTX",
            ", ".join(f"{arch} ({count}, {_size(module.ptx_bytes[arch])})" for arch, count in module.ptx.items()),
        )
    if module.reached:
        yield "runs on", "; ".join(f"{arch}: {how}" for arch, how in module.reached.items())
    if module.families:
        shown = module.families if verbose else module.families[:FAMILIES]
        rest = module.families[len(shown) :]
        texts = [f"{family.name} {_size(family.bytes)} ({family.kernels})" for family in shown]
        if rest:
            texts.append(f"{len(rest)} more {_size(sum(family.bytes for family in rest))}")
        yield "kernels", ", ".join(texts)
    if module.tools:
        yield "made by", "CUDA " + ", ".join(module.tools)
    yield "needs", ", ".join([*module.needed, *_wanted(module)]) or "nothing"
    yield from _ops(module, verbose=verbose)


def _wanted(module: InspectedModule) -> Iterator[str]:
    """What a module needs beside libraries: versions, symbols and the C++ ABI."""
    if module.glibc:
        yield f"glibc {module.glibc}"
    if module.torch_symbols:
        yield f"{module.torch_symbols} symbols of torch"
    if module.cxx11_abi is not None:
        yield f"the {'new' if module.cxx11_abi else 'old'} C++ ABI"


def _ops(module: InspectedModule, *, verbose: bool) -> Iterator[tuple[str, str]]:
    if module.schemas is None or module.ops is None:
        return
    how = {
        "loaded": "loaded here",
        "built": "loaded when built",
        "recorded": "recorded when built",
        "strings": "read from its texts; --python FILE loads it to be sure",
    }[module.schemas_from or "strings"]
    if not module.ops:
        yield "ops", "none" if module.schemas_from != "strings" else "none among its texts"
        return
    yield "ops", f"{len(module.ops)}, {how}: {', '.join(() if verbose else module.ops)}".rstrip(": ")
    if verbose:
        yield from (("", schema) for schema in module.schemas)


def _symbols(inspected: Inspection) -> str:
    if not inspected.checked_with_torch:
        return ""
    incomplete = any(module.missing_symbols for module in inspected.modules)
    result = "some are missing" if incomplete else "every symbol that its modules want is there"
    return f"; checked with {inspected.checked_with_torch}: {result}"


def _present(present: bool | None) -> str:
    if present is None:
        return "not known"
    return "present" if present else "absent"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
