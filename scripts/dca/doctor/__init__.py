"""`dca doctor`: checks of a machine, its environments and a model, before hours are spent.

Nothing is changed or made, and no package of any environment is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from dca.doctor import compilers, cuda, gpus, host, model, network, python
from dca.doctor.values import Check, Purpose, Result, Status, Subject
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError

__all__ = ["CHECKS", "GROUPS", "Purpose", "Report", "Result", "Status", "Subject", "chosen", "examine"]


class Entry(NamedTuple):
    """A check: its code, what it looks at, and what for."""

    code: str
    about: str
    run: Check
    serving: bool = True
    building: bool = True


# Every check, in the order it is told. docs/doctor.md has the same table, and a test compares them.
CHECKS: tuple[Entry, ...] = (
    Entry("machine.system", "operating system, processor, glibc", host.system),
    Entry("machine.cores", "cores that this process may use", host.cores),
    Entry("machine.memory", "memory, and the limit of every control group above", host.ram),
    Entry("machine.disk", "room where the build will happen", host.disk, serving=False),
    Entry("machine.variables", "environment variables that change a build or a server", host.variables),
    Entry("compilers.gcc", "g++ against the newest that each CUDA takes", compilers.gcc, serving=False),
    Entry("compilers.cmake", "CMake, and releases known to be bad", compilers.cmake, serving=False),
    Entry("compilers.ninja", "ninja", compilers.ninja, serving=False),
    Entry("compilers.git", "git", compilers.git, serving=False),
    Entry("cuda.toolkits", "every CUDA toolkit found, and what it builds", cuda.found, serving=False),
    Entry("cuda.complete", "what those toolkits lack", cuda.complete, serving=False),
    Entry("cuda.headers", "CUDA's headers against glibc", cuda.headers, serving=False),
    Entry("cuda.torch", "nvcc against torch's CUDA", cuda.torch, serving=False),
    Entry("cuda.driver", "the driver against the toolkit", cuda.driver),
    Entry("python.version", "Python against the range of each recipe", python.version),
    Entry("python.transformers", "transformers of the run environment", python.transformers),
    Entry("python.packages", "other packages that have moved", python.packages),
    Entry("python.pynvml", "the deprecated package pynvml", python.pynvml),
    Entry("gpus.present", "name, compute capability and memory of each GPU", gpus.present),
    Entry("gpus.kernels", "GPUs that the kernels of dual chunk attention run on", gpus.kernels),
    Entry("gpus.bfloat16", "bfloat16", gpus.bfloat16),
    Entry("gpus.awq", "AWQ weights", gpus.awq),
    Entry("network.proxies", "proxies that are set", network.proxies),
    Entry("network.index", "the package index", network.package_index, serving=False),
    Entry("network.sources", "git repositories of sources and companions", network.sources, serving=False),
    Entry("network.toolkits", "places that CUDA toolkits are brought from", network.kits, serving=False),
    Entry("model.config", "the model's config.json", model.settings, building=False),
    Entry("model.table", "its sparse attention table", model.table, building=False),
    Entry("model.memory", "memory of all GPUs against the official minimum", model.memory, building=False),
    Entry("model.parallel", "GPUs that can share the model's heads", model.parallel, building=False),
)
GROUPS = tuple(dict.fromkeys(entry.code.split(".")[0] for entry in CHECKS))


class Report(Document):
    """What a machine is like.

    Args:
        purpose: what it was looked at for.
        recipes: that counted.
        results: of every check, in order; a check of several things gives several.
    """

    SCHEMA: ClassVar[str] = "dca.doctor/1"

    purpose: Purpose
    recipes: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def wrong(self) -> tuple[Result, ...]:
        """What must be mended first."""
        return tuple(result for result in self.results if result.status == "wrong")


def chosen(purpose: Purpose, only: Sequence[str] = (), skip: Sequence[str] = ()) -> tuple[Entry, ...]:
    """The checks of a purpose, by their codes or groups.

    Args:
        purpose: what is to be done on the machine.
        only: nothing else than these; all when empty.
        skip: not these.
    """
    return tuple(
        entry
        for entry in CHECKS
        if (entry.serving if purpose == "serve" else entry.building)
        and (not only or _named(entry.code, only))
        and not _named(entry.code, skip)
    )


def _named(code: str, names: Sequence[str]) -> bool:
    return code in names or code.split(".")[0] in names


def examine(subject: Subject, entries: Sequence[Entry]) -> Report:
    """Run some checks; one that fails itself is told as unknown, and hides no other."""
    results: list[Result] = []
    for entry in entries:
        results += _run(entry, subject)
    names = tuple(loaded.recipe.name for loaded in subject.recipes)
    return Report(purpose=subject.purpose, recipes=names, results=tuple(results))


def _run(entry: Entry, subject: Subject) -> list[Result]:
    try:
        return list(entry.run(subject))
    except (DcaError, OSError, ValueError, ArithmeticError, LookupError) as error:
        what = error.what if isinstance(error, DcaError) else f"{type(error).__name__}: {error}"
        return [Result(code=entry.code, status="unknown", found=what, remedy=f"dca doctor --skip {entry.code}")]
