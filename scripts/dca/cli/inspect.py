"""`dca inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from dca import inspection
from dca.catalogue import model_needs, recipes
from dca.catalogue.plan import Plan
from dca.cli import options
from dca.cli.packing import packed
from dca.cli.terminal import wrapped
from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.inspection import InspectedModule, Inspection, Recorded, missing
from dca.toolchain import environments

FAMILIES = 6
MOST_PROBLEMS = 20


@dataclass(frozen=True)
class Checks:
    """What a wheel is checked against.

    Args:
        python: of an environment with the wheel's torch.
        plan: file of a plan.
        archs: the values of --arch.
        model: a model's config.json or folder.
    """

    python: Path | None
    plan: Path | None
    archs: tuple[str, ...]
    model: Path | None


@click.command("inspect")
@click.argument("wheel", type=options.PATH)
@packed(
    Checks,
    "checks",
    click.option(
        "--python",
        type=options.PATH,
        metavar="FILE",
        help="Python with the wheel's torch: check symbols against it, and load the modules to list their ops. Loading "
        "runs their code.",
    ),
    click.option("--plan", type=options.PATH, help="plan.json to compare with; a difference is exit 7."),
    click.option("--arch", "archs", multiple=True, help="GPU archs that must be able to run it, such as 8.0,9.0."),
    click.option("--model", type=options.PATH, metavar="CONFIG", help="Config of a model that the wheel must serve."),
)
@click.option("-v", "--verbose", is_flag=True, help="Show every kernel family, and the schemas of ops.")
@options.schema(Inspection)
@options.output
def command(wheel: Path, checks: Checks, verbose: bool, output: options.Output) -> None:
    """Show what a wheel contains: modules, GPU archs, kernels, ops, torch, CUDA, sizes.

    Works on any vLLM wheel, without a GPU and without CUDA. No code of the wheel runs unless --python is given.
    """
    options.check_file("--python", checks.python)
    options.check_file("--plan", checks.plan)
    model = model_needs.read(checks.model) if checks.model else None
    plan = documents.read(Plan, checks.plan) if checks.plan else None
    archs = options.arch_list(checks.archs) or (plan.archs if plan else ())
    inspected = _inspect(wheel, checks.python, archs)
    differences = inspection.compare(inspected, plan) if plan else list(inspected.problems)
    unfit = inspection.unreached(inspected) if checks.archs else []
    if model:
        unfit += missing.lacking(inspected, model, recipes.load_all())
    compared = {"planned": plan.key, "differences": tuple(differences)} if plan else {}
    document = inspected.model_copy(update={**compared, "unfit": tuple(unfit)})
    output.show(document, render(inspected, verbose=verbose))
    if differences:
        raise DcaError(
            "DCA-702" if plan else "DCA-701",
            f"{wheel.name} {'differs from its plan' if plan else 'is faulty'}.",
            why=_some([*differences, *unfit]),
            remedy="do not install or publish it; `dca wheel` builds a right one."
            if inspected.recorded
            else "do not rely on its metadata; `dca wheel` builds a right one.",
            answered=output.as_json,
        )
    if unfit:
        raise DcaError(
            "DCA-110",
            f"{wheel.name} does not fit.",
            why=_some(unfit),
            remedy=f"build one that does: `{_fitting(inspected, checks, archs)}`.",
            answered=output.as_json,
        )


def _inspect(wheel: Path, python: Path | None, archs: tuple[str, ...]) -> Inspection:
    """What a wheel contains, and how some GPU archs run it; with an environment's Python, ops and symbols as well."""
    if python is None:
        return inspection.inspect(wheel, asked=archs)
    source = inspection.schemas.loaded(python)
    return inspection.inspect(wheel, source, torch=environments.look_at_torch(python), asked=archs)


def _fitting(inspected: Inspection, checks: Checks, archs: tuple[str, ...]) -> str:
    """The command that builds a wheel of the same recipe for the named archs and model."""
    words = ["dca wheel"]
    if inspected.recorded:
        words += ["--recipe", inspected.recorded.recipe]
    if checks.archs:
        words += ["--arch", ",".join(archs)]
    if checks.model:
        words += ["--model", str(checks.model)]
    return " ".join(words)


def _some(problems: list[str]) -> str:
    """The first problems: a wheel with another wheel's RECORD has a thousand of the same kind."""
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
        f"  CUDA          {', '.join(inspected.cuda_libraries) or 'no CUDA libraries'}",
        f"  glibc         {inspected.glibc + ' or newer' if inspected.glibc else 'any'}",
        f"  DCA backend   {'present' if inspected.dca_backend else 'absent'}",
        f"  DCA index     {_present(inspected.index_ops)}",
        f"  sparse attn   {_present(inspected.sparse_ops)}; its Python {_present(inspected.sparse_functions)}",
    ]
    if record := inspected.recorded:
        lines.append(
            f"  made by dca   {record.recipe}, {record.profile}: {', '.join(record.groups)}; plan {record.plan}"
        )
        lines += wrapped("  attention     ", _attention(record))
    for module in inspected.modules:
        lines += ["", f"  {module.path}  {_size(module.bytes)}, {_size(module.stored)} in the wheel"]
        if record and (made := record.rewritten.get(module.path)):
            text = (
                f"the official wheel's module with sha256 {made.official}; of its attention kernels {made.keeps.text}"
            )
            lines += wrapped(f"      {'from':<8}", text)
        for title, text in _module(module, verbose=verbose):
            lines += wrapped(f"      {title:<8}", text)
    return "\n".join(lines)


def _attention(record: Recorded) -> str:
    """The head dimensions and data types of the attention kernels, and the options of a build that adds others."""
    serves, left_out = record.serves, record.left_out
    if serves.architectures == model_needs.NO_MODEL:
        return "none: it is not a wheel to serve with"
    sizes, dtypes = ", ".join(map(str, serves.head_dims)), ", ".join(serves.dtypes)
    others = [f"{option} adds {', '.join(values)}" for option, values in left_out.by_option.items()]
    return "; ".join([f"head dimension {sizes or 'any'} in {dtypes or 'any data type'}", *others])


def _module(module: InspectedModule, *, verbose: bool) -> Iterator[tuple[str, str]]:
    """The lines about a module, as titles and texts."""
    yield "holds", ", ".join(f"{name} {_size(size)}" for name, size in module.sections.items() if size) or "nothing"
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
    yield "needs", ", ".join([*module.needed, *_required(module)]) or "nothing"
    yield from _ops(module, verbose=verbose)


def _required(module: InspectedModule) -> Iterator[str]:
    """What a module requires besides libraries: versions, symbols and the C++ ABI."""
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
        "strings": "read from strings in the file; load it with --python FILE to be sure",
    }[module.schemas_from or "strings"]
    if not module.ops:
        yield "ops", "none" if module.schemas_from != "strings" else "none among the strings in the file"
        return
    yield "ops", f"{len(module.ops)}, {how}: {', '.join(() if verbose else module.ops)}".rstrip(": ")
    if verbose:
        yield from (("", schema) for schema in module.schemas)


def _symbols(inspected: Inspection) -> str:
    if not inspected.checked_with_torch:
        return ""
    incomplete = any(module.missing_symbols for module in inspected.modules)
    result = "symbols are missing" if incomplete else "it has every symbol that the modules need"
    return f"; checked with {inspected.checked_with_torch}: {result}"


def _present(present: bool | None) -> str:
    if present is None:
        return "unknown"
    return "present" if present else "absent"


def _size(count: int) -> str:
    return f"{count / 1e6:.1f} MB" if count >= 100_000 else f"{count / 1e3:.1f} kB"
