"""Writes stand-ins for shared libraries that are not there, so that the loader finds every name that others import.

A stand-in is only loaded: whatever calls one of its functions ends with an error, or at once. No compiler is needed.
"""

from __future__ import annotations

import json
import platform
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dca.binaries import elf, elf_writer
from dca.catalogue.targets import FIRST
from dca.foundation import data, documents, runner, store
from dca.foundation.errors import DcaError

LOAD_SECONDS = 120.0


Does = Literal["trap", "no device", "return"]
"""What a function does: an illegal instruction, return the driver's error for no device (100), or just return."""
CODE: Mapping[str, Mapping[Does, bytes]] = {
    "x86_64": {"trap": b"\x0f\x0b", "no device": b"\xb8\x64\x00\x00\x00\xc3", "return": b"\xc3"},
    "aarch64": {
        "trap": b"\x00\x00\x00\x00",
        "no device": b"\x80\x0c\x80\x52\xc0\x03\x5f\xd6",
        "return": b"\xc0\x03\x5f\xd6",
    },
}
"""The machine code of that, by processor as `uname -m` prints it."""


@dataclass(frozen=True)
class StandIn:
    """A shared library with functions of the same names as another's.

    Args:
        soname: its name for the loader.
        functions: their names, by symbol version; "" is the key of those without one.
        does: each function.
    """

    soname: str
    functions: Mapping[str, Collection[str]]
    does: Does = "trap"

    def write(self, path: Path, processor: str = "") -> Path:
        """Write it, unless the file is the same already, and return its path.

        Args:
            path: of the file.
            processor: that it is for, as `uname -m` prints it; this machine's by default.
        """
        # Nothing is built on or for any other processor.
        known = next(name for name in (processor, platform.machine(), FIRST) if name in CODE)
        content = elf_writer.shared_library(self.soname, self.functions, CODE[known][self.does], known)
        store.write_if_changed(path, content)
        return path


def of_torch(site: Path, absent: Sequence[Path], python: Path, log: Path) -> dict[Path, StandIn]:
    """Stand-ins for absent libraries: what torch's libraries import from them, and what their headers declare.

    A symbol with a version is of the library that the version is of. One without may be of any: if no library that is
    there defines it, an absent one must. Extension modules import functions of the headers, some without requiring the
    library: torch does.

    Args:
        site: folder of an environment's packages.
        absent: where the libraries would be; those that torch does not require get no stand-in.
        python: of the environment.
        log: for the output of programs.

    Raises:
        DcaError: DCA-407.
    """
    paths = {path.name: path for path in absent}
    own = sorted((site / "torch/lib").glob("lib*.so*"))
    here = {path.name: path for pattern in ("*", "nvidia/*") for path in site.glob(f"{pattern}/lib/lib*.so*")}
    defined = {name for path in own for name in elf.defined(path)}
    functions: dict[str, dict[str, set[str]]] = {}
    for library in own:
        imports = elf.imports(library)
        required = [name for name in imports.needed if name in paths]
        for name in required:
            functions.setdefault(name, defaultdict(set))
        for symbol in imports.undefined:
            if symbol.file in required:
                functions[symbol.file][symbol.version].add(symbol.name)
        loose = {symbol.name for symbol in imports.undefined if not symbol.version and not symbol.weak} - defined
        if required and loose:
            others = [str(here.get(name, name)) for name in imports.needed if here.get(name) not in own]
            missing = _undefined(sorted(loose), [name for name in others if name not in paths], python, log)
            # The loader searches all that are required, so any of them may define these.
            soname = min(required, key=lambda candidate: len(functions[candidate]))
            functions[soname][min(functions[soname], default="")].update(missing)
    for soname, versions in functions.items():
        versions[min(versions, default="")].update(_declared(paths[soname]) - set().union(*versions.values()))
    return {paths[soname]: StandIn(soname, versions) for soname, versions in functions.items()}


def _declared(library: Path) -> set[str]:
    """The functions of a library's headers that begin with its name, as all of them do."""
    prefix = library.name.removeprefix("lib").split(".")[0]
    function = re.compile(rf"\b{re.escape(prefix)}\w*(?=\s*\()")
    headers = (file for file in (library.parent.parent / "include").rglob("*") if file.is_file())
    return {name for file in headers for name in function.findall(file.read_text(errors="replace"))}


def _undefined(names: Sequence[str], libraries: Sequence[str], python: Path, log: Path) -> tuple[str, ...]:
    """The names that neither a Python nor any of these libraries defines, according to the loader.

    None if one of the libraries is not there, such as that of the driver, because it may define them.

    Raises:
        DcaError: DCA-407.
    """
    with store.scratch() as folder:
        question = folder / "names.json"
        store.write_bytes(question, documents.canonical({"names": names, "libraries": libraries}))
        worker = data.IN_WHEEL_ENV / "workers/undefined_names.py"
        answer = runner.run([python, "-I", worker, question], log=log, timeout=LOAD_SECONDS)
    if not answer.ok:
        raise DcaError(
            "DCA-407",
            "the libraries that torch requires could not be examined.",
            why="\n".join(answer.tail[-4:]),
            output=answer.tail,
            remedy=f"see {log}.",
        )
    return tuple(json.loads(answer.tail[-1]))
