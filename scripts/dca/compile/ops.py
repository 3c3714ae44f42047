"""Lists the ops of an extension module by loading it in a build environment, without a GPU."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from dca.binaries import elf
from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.toolchain.environments import WORKERS

LOAD_SECONDS = 300.0


def schemas(module: Path, python: Path, compiler: str, log: Path | None = None) -> tuple[str, ...]:
    """Schemas that a module registers, sorted.

    Where there is no driver, a stand-in for libcuda.so.1 is made on the spot from the symbols that the module wants:
    it is enough to load the module and is never used to run anything.

    Args:
        module: the extension module.
        python: of an environment with the torch that the module is for.
        compiler: a host C++ compiler, for the stand-in.

    Raises:
        DcaError: DCA-605 when the module does not load.
    """
    with store.scratch() as folder:
        stand_in = driver_stand_in(module, folder, compiler)
        answer = runner.run([python, "-I", WORKERS / "list_ops.py", module, stand_in], log=log, timeout=LOAD_SECONDS)
    if not answer.ok:
        raise DcaError(
            "DCA-605",
            f"{module.name} does not load.",
            why="\n".join(answer.tail[-3:]),
            output=answer.tail,
            remedy="it needs another torch than the environment has, or a source is missing from its group.",
        )
    return tuple(json.loads(answer.tail[-1]))


def op_name(schema: str) -> str:
    """`namespace::name` of a schema, without its overload."""
    return schema.split("(")[0].split(".")[0]


def digest(schema: str) -> str:
    """A short identity of a schema, as the torch of one recipe prints it; recipes hold these of the official wheel."""
    return hashlib.sha256(schema.encode()).hexdigest()[:16]


def driver_stand_in(module: Path, folder: Path, compiler: str) -> Path:
    """A library named libcuda.so.1 that defines the driver symbols a module wants, each returning "no device"."""
    names = [symbol.name for symbol in elf.read(module).undefined if re.fullmatch(r"cu[A-Z]\w*", symbol.name)]
    source = folder / "driver.cpp"
    source.write_text('extern "C" {\n' + "".join(f"int {name}() {{ return 100; }}\n" for name in names) + "}\n")
    library = folder / "libcuda.so.1"
    done = runner.run([compiler, "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", library, source], timeout=120.0)
    if not done.ok:
        raise DcaError(
            "DCA-605",
            "the stand-in for the driver could not be compiled.",
            why=done.text[-400:],
            output=done.tail,
            remedy="check the host compiler.",
        )
    return library
