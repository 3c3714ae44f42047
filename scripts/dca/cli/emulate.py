"""`dca emulate`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import click

from dca.cli import options
from dca.cli.packing import packed
from dca.emulation import device, forms, recording
from dca.emulation.device import Settings
from dca.foundation import runner
from dca.foundation.errors import DcaError
from dca.foundation.run import Run


@dataclass(frozen=True)
class Wish:
    """How to emulate.

    Args:
        arch: the device's compute capability.
        checks: what kernels are checked for.
        seed: the order of the warps.
        ptx: of modules that contain none.
        findings: file for what the checks find.
        cudart: the run time to stand in for; None for the program's own.
        record: folder for the launches; None for no recording.
        record_limit: MiB that the recording has at most.
        record_shapes: whether kernels are not run, and only sizes recorded.
    """

    arch: str
    checks: tuple[str, ...]
    seed: int
    ptx: Path | None
    findings: Path | None
    cudart: Path | None
    record: Path | None
    record_limit: int
    record_shapes: bool

    def settings(self) -> Settings:
        """The same for the device.

        Raises:
            DcaError: DCA-840 when the folder of a recording is in use.
        """
        checks = tuple(one for one in device.CHECKS if one in self.checks)
        findings = self.findings.absolute() if self.findings else None
        recorded = None
        if self.record:
            recorded = recording.Wish(self.record, self.record_limit << 20, self.record_shapes).prepared()
        return Settings(self.arch, checks, self.seed, self.ptx.resolve() if self.ptx else None, findings, recorded)


@click.command("emulate", context_settings={"allow_interspersed_args": False})
@packed(
    Wish,
    "wish",
    click.option(
        "--arch",
        type=click.Choice(device.ARCHS),
        default=device.ARCHS[0],
        show_default=True,
        help="Compute capability of the device.",
    ),
    click.option(
        "--check",
        "checks",
        type=click.Choice([*device.CHECKS, "none"]),
        multiple=True,
        default=Settings().checks,
        show_default=" and ".join(Settings().checks),
        help="What to check kernels for; can be repeated.",
    ),
    click.option(
        "--seed",
        type=click.IntRange(min=0),
        default=0,
        show_default=True,
        help="Seed for the order in which warps run; with 0 they run in the order of their numbers.",
    ),
    click.option(
        "--ptx",
        type=options.PATH,
        metavar="FILE|DIR",
        help="The PTX that a build kept beside its wheel, or a folder of such files, for modules that contain none.",
    ),
    click.option("--findings", type=options.PATH, metavar="FILE", help="Append each finding to a file, as JSON."),
    click.option(
        "--cudart",
        type=options.PATH,
        metavar="FILE",
        show_default="that of the program's environment, else of a toolkit",
        help="libcudart.so.N to stand in for.",
    ),
    click.option(
        "--record",
        type=options.PATH,
        metavar="DIR",
        help="Record the launches in a new folder, to replay them on a GPU with `make gpu-proof`.",
    ),
    click.option(
        "--record-limit",
        type=click.IntRange(min=1),
        default=recording.LIMIT,
        show_default=True,
        metavar="MIB",
        help="Size of the recording at most; launches that do not fit are left out.",
    ),
    click.option(
        "--record-shapes",
        is_flag=True,
        help="With --record: run no kernel, and record sizes without contents, to measure times on a GPU.",
    ),
)
@click.option(
    "--list",
    "listed",
    type=options.PATH,
    metavar="FILE",
    help="Run nothing; list the kernels and the instruction forms of the PTX in a module or a PTX file.",
)
@options.cache
@options.output
@click.argument("words", nargs=-1, metavar="-- PROGRAM [ARGS]...", type=click.UNPROCESSED)
def command(
    wish: Wish, words: tuple[str, ...], listed: Path | None, cache_dir: Path | None, output: options.Output
) -> None:
    """Run a program on an emulated CUDA device: its kernels run on this CPU.

    The kernels of its modules are translated from their PTX; torch's own operators run on the CPU. A launch of a kernel
    without PTX ends the program. No GPU and no driver is needed, and none is used.
    """
    if listed is not None:
        options.check_file("--list", listed)
        contents = forms.contents(listed)
        output.show(contents, _lines(contents))
        return
    if not words:
        raise click.UsageError("Name a program: dca emulate -- PROGRAM ARGS.")
    options.check_file("--cudart", wish.cudart)
    if wish.record_shapes and not wish.record:
        raise click.UsageError("--record-shapes requires --record DIR.")
    if wish.ptx and not wish.ptx.exists():
        raise DcaError("DCA-204", f"--ptx: {wish.ptx} does not exist.", remedy="check the path.")
    program = options.program("PROGRAM", words[0])
    cache = options.open_cache(cache_dir).open()
    wanted = device.named_run_time(wish.cudart.resolve()) if wish.cudart else device.run_time(program)
    with output.terminal() as reporter:
        built = device.make(wanted, Run(cache, reporter, cache.folder("run", "emulate") / "emulate.log"))
    runner.become([program, *words[1:]], built.variables(wish.settings(), cache, os.environ))


def _lines(contents: forms.Contents) -> str:
    """Kernels, then forms with their counts, the most frequent first."""
    lines = [f"{len(contents.kernels)} kernels", *(f"  {kernel}" for kernel in contents.kernels)]
    lines.append(f"{len(contents.forms)} instruction forms")
    for form, count in sorted(contents.forms.items(), key=lambda one: (-one[1], one[0])):
        lines.append(f"  {count:9}  {form}{'  NOT EMULATED' if form in contents.unknown else ''}")
    return "\n".join(lines)
