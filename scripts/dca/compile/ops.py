"""Lists the ops of an extension module by loading it in a build environment, without a GPU."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection
from pathlib import Path

from dca.binaries import elf
from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.toolchain.environments import WORKERS
from dca.toolchain.stand_ins import StandIn

LOAD_SECONDS = 300.0
# The worker that loads a module.
LIST_OPS = "list_ops.py"


def schemas(module: Path, python: Path, log: Path | None = None) -> tuple[str, ...]:
    """Schemas that a module registers, sorted.

    Without a driver, the module is loaded with a stand-in for libcuda.so.1, which has the symbols that the module
    requires; nothing is run with it.

    Args:
        module: the extension module.
        python: of an environment with the torch that the module requires.
        log: for the output of the worker.

    Raises:
        DcaError: DCA-605 when the module does not load.
    """
    with store.scratch() as folder:
        stand_in = driver_stand_in(module, folder)
        answer = runner.run([python, "-I", WORKERS / LIST_OPS, module, stand_in], log=log, timeout=LOAD_SECONDS)
    if not answer.ok:
        raise DcaError(
            "DCA-605",
            f"{module.name} does not load.",
            why="\n".join(answer.tail[-3:]),
            output=answer.tail,
            remedy="use an environment with the torch that it requires, or add the missing source to its group.",
        )
    return tuple(json.loads(answer.tail[-1]))


def op_name(schema: str) -> str:
    """`namespace::name` of a schema, without its overload."""
    return schema.split("(")[0].split(".")[0]


def digest(schema: str) -> str:
    """A short identity of a schema as a recipe's torch prints it; recipes record them for the official wheel."""
    return hashlib.sha256(schema.encode()).hexdigest()[:16]


def driver_stand_in(module: Path, folder: Path) -> Path:
    """A library libcuda.so.1 with the driver's symbols that a module requires, each returning "no device"."""
    library = elf.read(module)
    names = [symbol.name for symbol in library.undefined if re.fullmatch(r"cu[A-Z]\w*", symbol.name)]
    return driver(names).write(folder / "libcuda.so.1", library.machine)


def driver(functions: Collection[str]) -> StandIn:
    """A stand-in for the driver's library, whose functions return "no device"."""
    return StandIn("libcuda.so.1", {"": functions}, "no device")
