"""Known faults of kernels that no GPU notices: accesses that end in the gap behind an allocation."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dca.foundation import data, datafile
from dca.foundation.documents import Value

# What an allocation begins at a multiple of, on a GPU: no other one is nearer to its end (SLACK in device/memory.h).
GAP = 256


class Fault(Value):
    """A known fault: the emulated device reports it and goes on. Other accesses outside of an allocation are failures.

    Args:
        kernels: what the symbols of the kernels begin with.
        access: what they do behind an allocation.
        bytes: how far behind its end at most.
        text: what they do, and why it does no harm, in a sentence.
        source: the lines that do it, and where they were read.
    """

    kernels: Annotated[str, Field(pattern=r"^\w+$")]
    access: Literal["read", "write"]
    bytes: Annotated[int, Field(gt=0, le=GAP)]
    text: Annotated[str, Field(pattern=r"^[^\t\n]+$")]
    source: str


class Faults(Value):
    """build/kernels/faults.toml."""

    schema_: Literal["dca.kernel-faults/1"] = Field(alias="schema")
    faults: tuple[Fault, ...]


@cache
def load(path: Path | None = None) -> tuple[Fault, ...]:
    """The known faults.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(Faults, path or data.kernel_faults_file()).faults


def lines() -> str:
    """The faults as the device reads them: a line for each, its fields separated by tabs."""
    return "".join(f"{one.access}\t{one.bytes}\t{one.kernels}\t{one.text}\n" for one in load())
