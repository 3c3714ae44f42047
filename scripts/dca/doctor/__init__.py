"""`dca doctor`: quick checks of a machine, its environments and a model, before a build or server that takes hours.

They change nothing, create nothing, and import no package of any environment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from dca.doctor import compilers, cuda, gpus, host, model, network, python
from dca.doctor.values import Check, Finding, Purpose, Result, Status, Subject
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError

__all__ = ["CHECKS", "GROUPS", "Purpose", "Report", "Result", "Status", "Subject", "chosen", "examine"]


class Entry(NamedTuple):
    """A check: its code, what it looks at, and whether it matters to a server, to a build, and to a plugin."""

    code: str
    about: str
    run: Check
    serving: bool = True
    building: bool = True
    plugin: bool = True


# Every check, in the order of the report. docs/doctor.md has the same table, and a test compares them.
CHECKS: tuple[Entry, ...] = (
    Entry("machine.system", "operating system, processor, glibc", host.system),
    Entry("machine.cores", "cores that this process may use", host.cores),
    Entry("machine.memory", "memory, and the limits of its control groups", host.ram, plugin=False),
    Entry("machine.disk", "free disk space for the build", host.disk, serving=False, plugin=False),
    Entry("machine.variables", "environment variables that change a build or a server", host.variables),
    Entry("compilers.gcc", "g++ against the newest that each CUDA accepts", compilers.gcc, serving=False, plugin=False),
    Entry("compilers.cmake", "CMake, and releases known to be bad", compilers.cmake, serving=False, plugin=False),
    Entry("compilers.ninja", "ninja", compilers.ninja, serving=False, plugin=False),
    Entry("compilers.git", "git", compilers.git, serving=False, plugin=False),
    Entry(
        "cuda.toolkits", "every CUDA toolkit found, and the recipes it builds", cuda.found, serving=False, plugin=False
    ),
    Entry("cuda.complete", "missing parts of those toolkits", cuda.complete, serving=False, plugin=False),
    Entry("cuda.headers", "CUDA's headers against glibc", cuda.headers, serving=False, plugin=False),
    Entry("cuda.torch", "nvcc against torch's CUDA", cuda.torch, serving=False, plugin=False),
    Entry("cuda.driver", "the NVIDIA driver against CUDA, and against the PTX of the official wheels", cuda.driver),
    Entry("python.version", "Python against the range of each recipe", python.version),
    Entry("python.transformers", "transformers of the run environment", python.transformers),
    Entry("python.packages", "other packages, against known failures", python.packages),
    Entry("python.pynvml", "the deprecated package pynvml", python.pynvml),
    Entry("python.plugins", "whether vLLM loads the wheel's guards", python.plugins, building=False),
    Entry("gpus.present", "name, compute capability and memory of each GPU", gpus.present),
    Entry("gpus.kernels", "GPUs that the kernels of dual chunk attention run on", gpus.kernels, plugin=False),
    Entry("gpus.bfloat16", "support for bfloat16", gpus.bfloat16),
    Entry("gpus.awq", "support for AWQ weights", gpus.awq),
    Entry("network.proxies", "proxy settings", network.proxies),
    Entry("network.index", "the package index", network.package_index, serving=False, plugin=False),
    Entry(
        "network.sources", "git repositories of sources and companions", network.sources, serving=False, plugin=False
    ),
    Entry("network.toolkits", "download servers of CUDA toolkits", network.kits, serving=False, plugin=False),
    Entry("model.config", "the model's config.json", model.settings, building=False),
    Entry("model.table", "its sparse attention table", model.table, building=False),
    Entry(
        "model.kernels",
        "whether the installed wheel has the model's kernels",
        model.kernels,
        building=False,
        plugin=False,
    ),
    Entry("model.memory", "total GPU memory against the official minimum", model.memory, building=False),
    Entry("model.parallel", "whether the GPUs can split the model's heads", model.parallel, building=False),
)
GROUPS = tuple(dict.fromkeys(entry.code.split(".")[0] for entry in CHECKS))


class Report(Document):
    """The results of the checks.

    Args:
        purpose: what the machine was checked for.
        recipes: the recipes that it was checked for.
        results: of every check, in order; a check of several things gives several.
    """

    SCHEMA: ClassVar[str] = "dca.doctor/1"

    purpose: Purpose
    recipes: tuple[str, ...]
    results: tuple[Result, ...]

    @property
    def wrong(self) -> tuple[Result, ...]:
        """What must be fixed first."""
        return tuple(result for result in self.results if result.status == "wrong")


def chosen(
    purpose: Purpose, only: Sequence[str] = (), skip: Sequence[str] = (), *, plugin: bool = False
) -> tuple[Entry, ...]:
    """The checks of a purpose, by their codes or groups.

    Args:
        only: the checks to run; all when empty.
        skip: the checks to leave out.
        plugin: whether they are for a plugin, which compiles nothing and has no kernels.
    """
    return tuple(
        entry
        for entry in CHECKS
        if (entry.serving if purpose == "serve" else entry.building)
        and (entry.plugin or not plugin)
        and (not only or _named(entry.code, only))
        and not _named(entry.code, skip)
    )


def _named(code: str, names: Sequence[str]) -> bool:
    return code in names or code.split(".")[0] in names


def examine(subject: Subject, entries: Sequence[Entry]) -> Report:
    """Run some checks; one that fails itself is reported as unknown and does not stop the others."""
    results = tuple(
        Result(code=entry.code, **finding._replace(remedy="" if finding.status == "fine" else finding.remedy)._asdict())
        for entry in entries
        for finding in _run(entry, subject)
    )
    names = tuple(loaded.recipe.name for loaded in subject.recipes)
    return Report(purpose=subject.purpose, recipes=names, results=results)


def _run(entry: Entry, subject: Subject) -> list[Finding]:
    try:
        return list(entry.run(subject))
    except (DcaError, OSError, ValueError, ArithmeticError, LookupError) as error:
        what = error.what if isinstance(error, DcaError) else f"{type(error).__name__}: {error}"
        return [Finding("unknown", what, remedy=f"dca doctor --skip {entry.code}")]
