"""`dca inspect`."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click

from dca import documents, inspection
from dca.cli import options
from dca.errors import DcaError
from dca.inspection import Inspection
from dca.plan import Plan


@click.command("inspect")
@click.argument("wheel", type=click.Path(path_type=Path))
@click.option(
    "--python",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A Python with the wheel's torch: modules are loaded, which runs their code, to list their ops.",
)
@click.option(
    "--plan",
    "planned",
    type=click.Path(path_type=Path),
    help="A plan.json to compare with; a difference is exit 7.",
)
@options.output
def command(wheel: Path, python: Path | None, planned: Path | None, as_json: bool, quiet: bool) -> None:
    """Show what is in a wheel: modules, GPU archs, ops, torch, sizes.

    Works on any vLLM wheel, without a GPU and without CUDA.
    """
    for flag, file in (("--python", python), ("--plan", planned)):
        if file is not None and not file.is_file():
            raise DcaError("DCA-204", f"{flag}: {file} is not a file.", remedy="check the path.")
    found = inspection.inspect(wheel, inspection.load_ops(python) if python else inspection.recorded_ops(wheel))
    if as_json:
        click.echo(documents.dumps(found).decode(), nl=False)
    elif not quiet:
        click.echo(render(found))
    different = inspection.compare(found, documents.read(Plan, planned)) if planned else list(found.problems)
    if different:
        raise DcaError(
            "DCA-702" if planned else "DCA-701",
            f"{wheel.name} is not right.",
            why="\n".join(different),
            remedy="do not install or publish it; `dca wheel` builds one that is right.",
        )


def render(found: Inspection) -> str:
    """An inspection as text."""
    lines = [
        f"{found.file}  {found.bytes / 1e6:.1f} MB, {found.files} files",
        f"  version       {found.version}",
        f"  tags          {', '.join(found.tags)}",
        f"  Python        {found.requires_python or 'any'}",
        f"  torch         {found.torch or 'not required'}",
        f"  transformers  {found.transformers or 'not required'}",
        f"  DCA backend   {'present' if found.dca_backend else 'absent'}",
        f"  sparse attn   {'present' if found.sparse_functions else 'absent'}",
    ]
    for module in found.modules:
        sass = ", ".join(
            f"sm_{arch.replace('.', '')} ({count}, {module.sass_bytes[arch] / 1e6:.1f} MB)"
            for arch, count in module.sass.items()
        )
        ptx = ", ".join(f"{arch} ({count})" for arch, count in module.ptx.items())
        lines.append(f"  {module.path}  {module.bytes / 1e6:.1f} MB")
        lines.append(f"      cubins  {sass or 'none'}")
        if ptx:
            lines.append(f"      PTX     {ptx}")
        lines.append(f"      needs   {', '.join(module.needed) or 'nothing'}")
        if module.ops is None:
            lines.append("      ops     not listed; --python FILE loads the module to find them")
        elif module.ops:
            listed = f"{len(module.ops)}: {', '.join(module.ops)}"
            lines += textwrap.wrap(
                listed, 100, initial_indent="      ops     ", subsequent_indent=" " * 14, break_on_hyphens=False
            )
    return "\n".join(lines)
