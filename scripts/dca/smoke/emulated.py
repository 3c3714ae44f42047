"""The emulated GPU of the levels `kernels` and `engine`: its architecture, and where the PTX of its kernels is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dca.catalogue import archs, kept_ptx
from dca.emulation import device
from dca.emulation.device import ARCHS, Settings
from dca.emulation.recording import Wish
from dca.foundation import environment
from dca.foundation.errors import DcaError
from dca.foundation.run import Run
from dca.smoke.subject import Subject

CHECKS = ("addresses", "shared", "races")
# In an engine each kernel runs many times with the same shapes.
CHECKS_OF_ENGINES = ("addresses",)
# What the device finds in a run of the cases, in its scratch folder.
FINDINGS = "findings.jsonl"


@dataclass(frozen=True)
class EmulatedGpu:
    """A GPU that the wheel's kernels can be run on.

    Args:
        arch: its compute capability.
        ptx: the file of kept PTX for modules without PTX; None if there is none.
    """

    arch: str
    ptx: Path | None


def choose(subject: Subject) -> EmulatedGpu:
    """The GPU to emulate for a wheel: the oldest for which each of its modules has PTX.

    Raises:
        DcaError: DCA-838 when a module has no PTX, nor is there a file with it, and DCA-839 when that file is damaged.
    """
    file = kept_ptx.beside(subject.wheel)
    kept = kept_ptx.read(file) if file.is_file() else None
    by_module = {}
    for module in subject.proven:
        own = kept is not None and kept.manifest.modules.get(module.path) == module.sha256
        texts = kept.manifest.texts if kept and own else ()
        by_module[module.path] = {*module.ptx, *(text.arch for text in texts if text.module == module.path)}
    for arch in ARCHS:
        if by_module and all(archs.compilable(arch, ptx) for ptx in by_module.values()):
            return EmulatedGpu(arch, file if kept else None)
    lacking = [path for path, ptx in by_module.items() if not archs.compilable(ARCHS[-1], ptx)] or list(by_module)
    beside = "has none for this wheel" if kept else "is not beside the wheel"
    raise DcaError(
        "DCA-838",
        f"the kernels of {subject.wheel.name} cannot be run on an emulated GPU.",
        why=f"{' and '.join(lacking) or 'no module'} has no PTX up to compute capability {ARCHS[-1]}, and {file.name} "
        f"{beside}.",
        remedy=f"make its PTX with `dca verify {subject.wheel} --rebuild`, or use `--level cpu`.",
    )


def variables(
    gpu: EmulatedGpu,
    python: Path,
    folder: Path,
    run: Run,
    record: Wish | None = None,
    checks: tuple[str, ...] = CHECKS,
) -> dict[str, str]:
    """The variables of a program behind the emulated GPU, besides those of every program.

    Args:
        gpu: to emulate.
        python: of the environment with torch, whose CUDA it stands in for.
        folder: a scratch folder, for what the device finds.
        run: whose cache keeps the device and the translated kernels.
        record: what to record of the launches; None for nothing.
        checks: what kernels are checked for.

    Raises:
        DcaError: DCA-836 when the device cannot be made.
    """
    settings = Settings(arch=gpu.arch, checks=checks, ptx=gpu.ptx, findings=folder / FINDINGS, record=record)
    return device.make(device.run_time(python), run).variables(settings, run.cache, environment.of("compiler"))
