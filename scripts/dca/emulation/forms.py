"""Which forms of instructions a PTX text has: opcode, modifiers and types as written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from dca.binaries import fatbin
from dca.emulation import images
from dca.emulation.ptx import parser
from dca.emulation.ptx.values import Instruction
from dca.emulation.translation import code
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


class Rounding(Value):
    """What lets a right compiler and a GPU compute other bits than the emulation.

    Args:
        forms: the instruction forms that do; empty if every result is defined to the bit.
        to: the type of 16 bits that results are rounded to, "bfloat16" or "float16"; empty if there is none.
        within: how much results may differ, relative to the larger of the expected value and the root mean square of
            the values that the launch wrote; 0 if bits must be equal.
    """

    forms: tuple[str, ...]
    to: str
    within: float


# Of products and of other operations, which compilers may make one of: only a rounding modifier forbids that
# (PTX ISA, "Floating Point Instructions: add").
_FUSED = re.compile(r"(mul|add|sub)(?:\.ftz)?(?:\.sat)?\.(f32|f64|f16|f16x2|bf16|bf16x2)")
_LOOSE = re.compile(
    r""".*\.approx\b                                # a documented error
    |div\.full\b
    |w?mma\..*\.(?:f16|f32|f64)\..*               # the order of sums is open
    |(?:atom|red)\..*\.add\b.*\.(?:f16|bf16|f16x2|bf16x2|f32|f64)  # the order of threads is open""",
    re.VERBOSE,
)
# What results round to, with the bound: two units in the last place, and in float32 64, for sums of that many products.
_ROUNDED = (
    ("bfloat16", re.compile(r"cvt\.r.*\.bf16(?:x2)?\.f32"), 2.0**-7),
    ("float16", re.compile(r"cvt\.r.*\.f16(?:x2)?\.f32"), 2.0**-10),
)
_TF32, _FLOAT32 = 2.0**-10, 2.0**-18


def rounding(text: str, kernel: str) -> Rounding:
    """Whether a kernel's results are defined to the bit, by the forms of its instructions.

    Args:
        text: PTX.
        kernel: its symbol.

    Raises:
        DcaError: DCA-830 or DCA-831 if the text cannot be read.
    """
    of = code.functions(parser.module(text), kernel)
    forms = {one.form for function in of for one in function.body if isinstance(one, Instruction)}
    loose = {form for form in forms if _LOOSE.match(form)}
    unrounded = {form: match for form in forms if (match := _FUSED.fullmatch(form))}
    products = {match[2] for match in unrounded.values() if match[1] == "mul"}
    sums = {match[2] for match in unrounded.values() if match[1] != "mul"}
    loose |= {form for form, match in unrounded.items() if match[2] in products & sums}
    to, within = next(
        ((name, bound) for name, pattern, bound in _ROUNDED if any(map(pattern.fullmatch, forms))), ("", _FLOAT32)
    )
    if not to and any(".tf32" in form for form in loose):
        within = _TF32
    return Rounding(forms=tuple(sorted(loose)), to=to, within=within if loose else 0.0)


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
    texts = [one for one in images.read(file).codes if one.kind == fatbin.PTX]
    if not texts:
        raise DcaError(
            "DCA-835",
            f"{file} has no PTX.",
            remedy="name a module with PTX, or a text of the zip file with PTX that lies beside a wheel.",
        )
    for one in texts:
        counted += forms_of(one.text)
        kernels.update(one.kernels)
    return Contents(kernels=tuple(sorted(kernels)), forms=dict(counted), unknown=tuple(sorted(set(counted) - KNOWN)))
