"""`dca inspect`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click

from dca import inspection
from dca.binaries.newer import OLDEST
from dca.catalogue import model_needs, recipes, torch_releases
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import PLUGIN
from dca.catalogue.toolkits import load_versions
from dca.cli import options
from dca.cli.packing import packed
from dca.cli.terminal import wrapped
from dca.foundation import documents
from dca.foundation.errors import DcaError, ExitCode
from dca.inspection import InspectedModule, Inspection, Recorded, missing, verdict
from dca.inspection.verdict import Target
from dca.serve import gpus
from dca.toolchain import environments

FAMILIES = 6
MOST_PROBLEMS, MOST_INSTALLS = 20, 20
SAYS = {"yes": "Yes", "no": "No", "unknown": "Cannot tell"}
EXIT_CODES = {"yes": ExitCode.OK, "no": ExitCode.CHECK_FAILED, "unknown": ExitCode.CANNOT_TELL}


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


def target(gpu: str | None, driver: str | None, torch: str | None) -> Target | None:
    """What something is to run on; None if nothing was asked for.

    Raises:
        DcaError: DCA-201.
    """
    options.check_driver(driver)
    if driver and not gpu:
        raise DcaError("DCA-201", "--driver needs --gpu.", remedy="name the GPU as well: --gpu H100 --driver 550.")
    if not gpu and not torch:
        return None
    return Target(
        gpu=gpu or "",
        arch=gpus.arch_of("--gpu", gpu) if gpu else "",
        processor=gpus.processor_of(gpu) if gpu else "",
        driver=load_versions().drivers.driver(driver) if driver else None,
        torch=torch_releases.parse(torch) if torch else None,
    )


@click.command("inspect")
@click.argument("file", type=options.PATH)
@packed(
    target,
    "asked",
    click.option("--gpu", metavar="NAME|ARCH", help="GPU that is to run it, such as H100 or 9.0."),
    click.option("--driver", metavar="VERSION", help="NVIDIA driver of that GPU, such as 550 or 550.54.15."),
    click.option("--torch", metavar="VERSION", help="torch that is to load it, such as 2.8 or 2.8.0+cu129."),
)
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
    click.option("--model", type=options.MODEL, metavar="CONFIG", help="Config of a model that the wheel must serve."),
    options.download,
)
@click.option("-v", "--verbose", is_flag=True, help="Show every kernel family, and the schemas of ops.")
@options.schema(Inspection)
@options.output
def command(file: Path, asked: Target | None, checks: Checks, verbose: bool, output: options.Output) -> None:
    """Show what a wheel, a library or a folder of kernels contains, and whether it runs on a GPU, driver and torch.

    Works on any wheel, .so, .cubin, .fatbin, .ptx or folder with them, without a GPU and without CUDA. No code of it
    runs unless --python is given. With --gpu or --torch the exit code is the answer: 0 yes, 1 no, 10 cannot tell.
    """
    options.check_file("--python", checks.python)
    options.check_file("--plan", checks.plan)
    model = model_needs.read(checks.model) if checks.model else None
    plan = documents.read(Plan, checks.plan) if checks.plan else None
    archs = options.arch_list(checks.archs) or (plan.archs if plan else ())
    inspected = _inspect(file, checks.python, archs)
    differences = inspection.compare(inspected, plan) if plan else list(inspected.problems)
    unfit = inspection.unreached(inspected) if checks.archs else []
    if model:
        unfit += missing.lacking(inspected, model, recipes.load_all())
    compared = {"planned": plan.key, "differences": tuple(differences)} if plan else {}
    answered = verdict.answer(inspected, asked) if asked else None
    document = inspected.model_copy(update={**compared, "unfit": tuple(unfit), "answer": answered})
    output.show(document, render(document, verbose=verbose))
    if differences and (plan or not answered):
        raise DcaError(
            "DCA-702" if plan else "DCA-701",
            f"{inspected.file} {'differs from its plan' if plan else 'is faulty'}.",
            why=_some([*differences, *unfit]),
            remedy=_remedy(inspected),
            answered=output.as_json,
        )
    if unfit:
        raise DcaError(
            "DCA-110",
            f"{inspected.file} does not fit.",
            why=_some(unfit),
            remedy=f"build one that does: `{_fitting(inspected, checks, archs)}`.",
            answered=output.as_json,
        )
    if answered:
        click.get_current_context().exit(EXIT_CODES[answered.says])


def _inspect(file: Path, python: Path | None, archs: tuple[str, ...]) -> Inspection:
    """What a file contains, and how some GPU archs run it; with an environment's Python, ops and symbols as well."""
    if python is None:
        return inspection.inspect(file, asked=archs)
    source = inspection.schemas.loaded(python)
    return inspection.inspect(file, source, torch=environments.look_at_torch(python), asked=archs)


def _remedy(inspected: Inspection) -> str:
    if inspected.kernel_variants:
        return "do not load or upload it; `dca kernels` writes a right one."
    if inspected.recorded:
        return "do not install or publish it; `dca wheel` builds a right one."
    return "do not rely on its metadata; `dca wheel` builds a right one."


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
    return "\n".join(problems[:MOST_PROBLEMS]) + (f"\nand {rest} more; --json lists them." if rest > 0 else "")


def render(inspected: Inspection, *, verbose: bool = False) -> str:
    """An inspection as text."""
    lines = [
        *_answer(inspected),
        f"{inspected.file}  {_size(inspected.bytes)}, {_size(inspected.unpacked)} unpacked, {inspected.files} files",
    ]
    if inspected.form == "wheel":
        lines += [
            f"  version       {inspected.version}",
            f"  tags          {', '.join(inspected.tags)}",
            *([f"  variant       {inspected.variant.label}: {inspected.variant.text()}"] if inspected.variant else []),
            f"  Python        {inspected.requires_python or 'any'}",
            *([f"  plugin for    {inspected.engine}, as {', '.join(inspected.plugins)}"] if inspected.engine else []),
            f"  torch         {inspected.torch or 'not required'}{_symbols(inspected)}",
        ]
    if inspected.kernel_variants:
        fits = "" if inspected.problems else "; it keeps the rules of kernel repositories"
        lines += wrapped("  variants      ", ", ".join(inspected.kernel_variants) + fits)
    lines += [
        f"  CUDA          {', '.join(inspected.cuda_libraries) or 'no CUDA libraries'}",
        f"  glibc         {inspected.glibc + ' or newer' if inspected.glibc else 'any'}",
    ]
    if inspected.transformers or inspected.dca_backend or inspected.index_ops or inspected.sparse_ops:
        lines += [
            *([f"  transformers  {inspected.transformers}"] if inspected.transformers else []),
            f"  DCA backend   {'present' if inspected.dca_backend else 'absent'}",
            f"  DCA index     {_present(inspected.index_ops)}",
            f"  sparse attn   {_present(inspected.sparse_ops)}; its Python {_present(inspected.sparse_functions)}",
        ]
    if record := inspected.recorded:
        lines.append(
            f"  made by dca   {record.recipe}, {': '.join(filter(None, (record.profile, ', '.join(record.groups))))}; "
            f"plan {record.plan}"
        )
        lines += wrapped("  attention     ", _attention(record)) if record.profile != PLUGIN else []
    if inspected.installs:
        some, rest = inspected.installs[:MOST_INSTALLS], len(inspected.installs) - MOST_INSTALLS
        more = f"; and {rest} more, which --json lists" if rest > 0 else ""
        lines += wrapped("  also installs ", "; ".join(some) + more)
    for left in inspected.unread:
        more = f" and {left.files - 1} more" if left.files > 1 else ""
        lines += wrapped("  not read      ", f"{left.what} ({left.why}): {left.some[0]}{more}, {_size(left.bytes)}")
    for module in inspected.modules:
        kind = "" if module.kind == "library" else f"{module.kind}, "
        kind += f"{module.files} files, " if module.files > 1 else ""
        in_wheel = f", {_size(module.stored)} in the wheel" if inspected.form == "wheel" else ""
        lines += ["", f"  {module.path}  {kind}{_size(module.bytes)}{in_wheel}"]
        if record and (made := record.rewritten.get(module.path)):
            text = (
                f"the official wheel's module with sha256 {made.official}; of its attention kernels {made.keeps.text}"
            )
            lines += wrapped(f"      {'from':<8}", text)
        for title, text in _module(module, verbose=verbose):
            lines += wrapped(f"      {title:<8}", text)
    return "\n".join(lines)


def _answer(inspected: Inspection) -> Iterator[str]:
    """The answer to what was asked, and what is wrong besides."""
    if answer := inspected.answer:
        yield f"{SAYS[answer.says]}: {inspected.file} {answer.asked}"
        for reason in [
            *answer.reasons[:MOST_PROBLEMS],
            *(f"Besides: {fault}" for fault in inspected.problems[:MOST_PROBLEMS]),
        ]:
            yield from wrapped("  - ", reason)
        yield ""


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
    if module.sections:
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
            ", ".join(f"{arch} ({count}, {_size(module.ptx_bytes[arch])})" for arch, count in module.ptx.items())
            + "".join(f"; version {version} for {arch}" for arch, version in module.ptx_versions.items()),
        )
    if module.relocatable:
        archs = ", ".join(f"{arch} ({count})" for arch, count in module.relocatable.items())
        yield "", f"relocatable, for a linker alone: {archs}"
    if module.unread:
        yield "not read", ", ".join(f"{count} {what}" for what, count in module.unread.items())
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
    if module.sections:
        yield "needs", ", ".join([*module.needed, *_required(module)]) or "nothing"
    if module.newer:
        yield "newer", f"than {OLDEST}: {', '.join(module.newer)}"
    yield from _ops(module, verbose=verbose)


def _required(module: InspectedModule) -> Iterator[str]:
    """What a module requires besides libraries: versions, symbols and the C++ ABI."""
    if module.glibc:
        yield f"glibc {module.glibc}"
    if module.torch_symbols:
        yield f"{module.torch_symbols} symbols of torch{', all of its stable ABI' if module.stable_abi else ''}"
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
