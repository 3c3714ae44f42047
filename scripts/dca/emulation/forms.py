"""Which forms of instructions a PTX text has: opcode, modifiers and types as written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from pathlib import Path

from dca.binaries import fatbin
from dca.emulation import images
from dca.emulation.ptx import parser
from dca.emulation.ptx.values import Instruction
from dca.emulation.translation.table import FORMS
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError

KNOWN: frozenset[str] = frozenset(FORMS)
"""The forms that are emulated."""


def forms_of(text: str, kernels: Collection[str] | None = None) -> Counter[str]:
    """How often each form occurs in a PTX text, in its functions that have a body.

    Args:
        text: PTX.
        kernels: the only functions that are counted; all when not given.

    Raises:
        DcaError: DCA-831 if the text cannot be read.
    """
    module = parser.module(text)
    return Counter(
        one.form
        for name in module.functions
        if kernels is None or name in kernels
        for one in parser.function(module, name).body
        if isinstance(one, Instruction)
    )


class Contents(Value):
    """What the PTX in a file has.

    Args:
        kernels: names of its entry points.
        forms: how often each form of an instruction occurs.
        unknown: those that are not emulated.
    """

    kernels: tuple[str, ...]
    forms: dict[str, int]
    unknown: tuple[str, ...]


def contents(file: Path) -> Contents:
    """The kernels and forms of the PTX in a module or a PTX text.

    Raises:
        DcaError: DCA-831 if a text cannot be read, DCA-835 if there is none, DCA-836 if the module is damaged.
    """
    counted: Counter[str] = Counter()
    kernels: set[str] = set()
    texts = [code for code in images.read(file).codes if code.kind == fatbin.PTX]
    if not texts:
        raise DcaError(
            "DCA-835",
            f"{file} has no PTX.",
            remedy="name a module with PTX, or a text of the zip file with PTX that lies beside a wheel.",
        )
    for code in texts:
        counted += forms_of(code.text)
        kernels.update(code.kernels)
    return Contents(kernels=tuple(sorted(kernels)), forms=dict(counted), unknown=tuple(sorted(set(counted) - KNOWN)))
