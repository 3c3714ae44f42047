"""Names what the user has set and a build leaves out, and what on this machine does not start without it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from dca.catalogue import machine
from dca.catalogue.machine import Machine, Python
from dca.foundation import environment, ignored, runner, user_config
from dca.foundation.errors import DcaError
from dca.foundation.ignored import Ignored
from dca.sources import index

LIBRARIES = "LD_LIBRARY_PATH"
_MISSING = re.compile(r"error while loading shared libraries: ([^:]+):")


def ignored_now() -> tuple[Ignored, ...]:
    """What the user has set and no program of a build gets, although it would change the build."""
    own = index.endpoint()
    # An index that is named twice is used.
    used = [name for name in os.environ if name.endswith("INDEX_URL") and os.environ[name] == own]
    settings = [setting for setting in user_config.read() if setting.value != own]
    others = ignored.of(settings, (*used, index.named_by(), "CUDA_HOME"))
    return tuple(sorted((*_cuda_home(), *others, *_compilers()), key=lambda one: one.name))


def _compilers() -> Iterator[Ignored]:
    for path, library in _broken().items():
        yield Ignored(name=LIBRARIES, changes=f"which g++ is used: {_says(path, library)}")


def _cuda_home() -> Iterator[Ignored]:
    """CUDA_HOME, unless it names one folder with a toolkit, as it should."""
    value = os.environ.get("CUDA_HOME", "")
    toolkits = [folder for folder in environment.folders("CUDA_HOME") if (folder / "bin/nvcc").is_file()]
    if value and not toolkits:
        text = "which toolkit is used, but it names no folder with bin/nvcc"
        yield Ignored(name=f"CUDA_HOME={value}", changes=text, instead="--toolkit DIR")
    elif value and value.rstrip("/") != str(toolkits[0]):
        text = f"which toolkit is used; it is not the name of one folder, and {toolkits[0]} is taken from it"
        yield Ignored(name=f"CUDA_HOME={value}", changes=text, instead="--toolkit DIR")


def check_python(python: Python | None) -> None:
    """Reject a Python that does not start without LD_LIBRARY_PATH.

    Raises:
        DcaError: DCA-306.
    """
    if python is not None and (library := _lacks([python.path, "-I", "-c", ""])):
        raise DcaError(
            "DCA-306",
            f"Python {python.version} at {python.path} does not start without {LIBRARIES}.",
            why=f"it requires {library}; {LIBRARIES}, which can replace any library of a program, is not passed on.",
            remedy="use a Python that starts by itself, such as the distribution's: make wheel PYTHON=/usr/bin/python3",
        )


def without_broken(host: Machine) -> Machine:
    """The machine without those compilers that do not start without LD_LIBRARY_PATH."""
    broken = _broken()
    return host.model_copy(update={"compilers": tuple(one for one in host.compilers if one.path not in broken)})


def explained(error: DcaError) -> DcaError:
    """An error about a plan that is not possible, with the compilers that `without_broken` left out."""
    broken = [f"{_says(path, library)}." for path, library in _broken().items()]
    if not broken:
        return error
    return DcaError(error.code, error.what, why="\n".join([error.why, *broken]), remedy=error.remedy)


def _says(path: str, library: str) -> str:
    return f"g++ at {path} requires {library} of {LIBRARIES}, which is not passed on, and is not used"


def _broken() -> dict[str, str]:
    """Paths of the compilers that do not start without LD_LIBRARY_PATH, and the library that each lacks."""
    if not os.environ.get(LIBRARIES):
        return {}
    # The driver shows its version by itself; this starts the compiler proper.
    words = ["-fsyntax-only", "-x", "c++", os.devnull]
    lacking = {path: _lacks([path, *words]) for path in machine.compilers_on_path()}
    return {path: library for path, library in lacking.items() if library}


def _lacks(argv: list[str]) -> str:
    """The shared library for want of which a program does not start; empty if LD_LIBRARY_PATH cannot be the reason."""
    if not os.environ.get(LIBRARIES):
        return ""
    done = runner.probe(argv)
    found = _MISSING.search(done.text)
    return found[1] if found and not done.ok else ""
