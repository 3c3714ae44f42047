"""The definitions of all forms whose result depends on the bits of their operands alone."""

from __future__ import annotations

from functools import cache

from tests.emulation.forms.definition import Definition, Form, UndefinedError
from tests.emulation.forms.floats import FLOATS
from tests.emulation.forms.integers import INTEGERS

FLOATING = ("f16", "f16x2", "bf16", "bf16x2", "f32", "f64")


@cache
def define(text: str) -> tuple[Definition, ...]:
    """The definitions of a form, one for each way of writing its operands.

    Raises:
        UndefinedError: if the PTX ISA has no such form, or none is written down here.
    """
    form = Form(text)
    # The same opcode means different things for numbers of the two kinds.
    tables = (FLOATS, INTEGERS) if text.rsplit(".", 1)[-1] in FLOATING else (INTEGERS, FLOATS)
    for table in tables:
        if form.opcode in table:
            return tuple(table[form.opcode](form))
    raise UndefinedError(text)
