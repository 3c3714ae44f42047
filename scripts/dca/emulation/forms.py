"""Which forms of instructions a PTX text has: opcode, modifiers and types as written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection

from dca.emulation.ptx import parser
from dca.emulation.ptx.values import Instruction
from dca.emulation.translation.table import FORMS

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
