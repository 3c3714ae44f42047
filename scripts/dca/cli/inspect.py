"""`dca inspect`."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from pathlib import Path

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


@click.command("inspect")
@click.argument("wheel", type=click.Path(path_type=Path))
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A Python with the wheel's torch: symbols are checked against it, and modules are loaded, which runs their "
    "code, to list their ops.",
)
@click.option(
    "--plan",
    "planned",
    type=click.Path(path_type=Path),
    help="A plan.json to compare with; a difference is exit 7.",
)
@click.option("--arch", "archs", multiple=True, help="GPU archs that must be able to run it, such as 8.0,9.0.")
@click.option(
    "--model", type=click.Path(path_type=Path), metavar="CONFIG", help="A model's config.json that it must serve."
)
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
def command(
    wheel: Path,
    python: Path | None,
    planned: Path | None,
    archs: tuple[str, ...],
    model: Path | None,
    verbose: bool,
    as_json: bool,
    quiet: bool,
) -> None:
    """Show what is in a wheel: modules, GPU archs, kernels, ops, torch, CUDA, sizes.

    Works on any vLLM wheel, without a GPU and without CUDA. Nothing of the wheel is run unless --python is given.
    """
    for flag, file in (("--python", python), ("--plan", planned)):
        if file is not None and not file.is_file():
            raise DcaError("DCA-204", f"{flag}: {file} is not a file.", remedy="check the path.")
    wanted = model_needs.read(model) if model else None
    plan = documents.read(Plan, planned) if planned else None
    asked = options.arch_list(archs) or (plan.archs if plan else ())
    torch = environments.look_at_torch(python) if python else None
    source = inspection.schemas.loaded(python) if python else None
    found = inspection.inspect(wheel, source, torch=torch, asked=asked)
    different = inspection.compare(found, plan) if plan else list(found.problems)
    unfit = inspection.unreached(found) if archs else []
    if wanted:
        unfit += missing.lacking(found, wanted, recipes.load_all())
    if as_json:
        compared = {"planned": plan.key, "differences": tuple(different)} if plan else {}
        click.echo(documents.dumps(found.model_copy(update={**compared, "unfit": tuple(unfit)})).decode(), nl=False)
    elif not quiet:
        click.echo(render(found, verbose=verbose))
    if different:
        raise DcaError(
            "DCA-702" if plan else "DCA-701",
            f"{wheel.name} is not {'what was planned' if plan else 'right'}.",
            why=_some([*different, *unfit]),
            remedy="do not install or publish it; `dca wheel` builds one that is right."
            if found.recorded
            else "what it says of itself cannot be relied on; `dca wheel` builds one that is right.",
            answered=as_json,
        )
    if unfit:
        given = [("--arch", ",".join(asked)) if archs else (), ("--model", str(model)) if model else ()]
        words = " ".join(["dca wheel", *(word for pair in given for word in pair)])
        raise DcaError(
            "DCA-110",
            f"{wheel.name} does not fit.",
            why=_some(unfit),
            remedy=f"build one that does: `{words}`.",
            answered=as_json,
        )


def _some(problems: list[str]) -> str:
    """The first problems: a wheel whose RECORD is of another one has a thousand of a kind."""
    rest = len(problems) - MOST_PROBLEMS
    return "\n".join(problems[:MOST_PROBLEMS]) + (f"\nand {rest} more; --json lists them all." if rest > 0 else "")


def render(found: Inspection, *, verbose: bool = False) -> str:
    """An inspection as text."""
    lines = [
        f"{found.file}  {_size(found.bytes)}, {_size(found.unpacked)} unpacked, {found.files} files",
        f"  version       {found.version}",
        f"  tags          {', '.join(found.tags)}",
        f"  Python        {found.requires_python or 'any'}",
        f"  torch         {found.torch or 'not required'}{_symbols(found)}",
        f"  transformers  {found.transformers or 'not required'}",
        f"  CUDA          {', '.join(found.cuda_libraries) or 'no library of it'}",
        f"  glibc         {found.glibc + ' or newer' if found.glibc else 'any'}",
        f"  DCA backend   {'present' if found.dca_backend else 'absent'}",
        f"  DCA index     {_present(found.index_ops)}",
        f"  sparse attn   {_present(found.sparse_ops)}; its Python {_present(found.sparse_functions)}",
    ]
    if record := found.recorded:
        lines.append(
            f"  made by dca   {record.recipe}, {record.profile}: {', '.join(record.groups)}; plan {record.plan}"
        )
    for module in found.modules:
        lines += ["", f"  {module.path}  {_size(module.bytes)}, {_size(module.stored)} in the wheel"]
        for title, texts in _module(module, verbose=verbose):
            lines += textwrap.wrap(
                texts,
                WIDTH,
                initial_indent=f"      {title:<8}",
                subsequent_indent=" " * 14,
                break_on_hyphens=False,
                break_long_words=False,
            )
    return "\n".join(lines)


def _module(module: InspectedModule, *, verbose: bool) -> Iterator[tuple[str, str]]:
    """What is told of a module, as titles and texts."""
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
        texts = [f"{one.name} {_size(one.bytes)} ({one.kernels})" for one in shown]
        if rest:
            texts.append(f"{len(rest)} more {_size(sum(one.bytes for one in rest))}")
        yield "kernels", ", ".join(texts)
    if module.tools:
        yield "made by", "CUDA " + ", ".join(module.tools)
    yield "needs", ", ".join([*module.needed, *_wanted(module)]) or "nothing"
    yield from _ops(module, verbose=verbose)


def _wanted(module: InspectedModule) -> Iterator[str]:
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


def _symbols(found: Inspection) -> str:
    missing = [module for module in found.modules if module.missing_symbols]
    if not found.checked_with_torch:
        return ""
    told = "some are missing" if missing else "every symbol that its modules want is there"
    return f"; checked with {found.checked_with_torch}: {told}"


def _present(there: bool | None) -> str:
    return "not known" if there is None else "present" if there else "absent"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
