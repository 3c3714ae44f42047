"""Single faults in PTX text: each changes one instruction; first a kind is drawn, then a place."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from dca.emulation.forms import KNOWN

_INSTRUCTION = re.compile(r"^(\s*(?:\{\s*)?)(?:(@!?%?\w+)\s+)?([a-z][\w.:]*)(\s*)([^;]*);(.*)$")
_OPPOSITE = {"lt": "le", "le": "lt", "gt": "ge", "ge": "gt", "eq": "ne", "ne": "eq", "lo": "ls", "ls": "lo"}
_OPPOSITE |= {
    "hi": "hs",
    "hs": "hi",
    "ltu": "leu",
    "leu": "ltu",
    "gtu": "geu",
    "geu": "gtu",
    "neu": "equ",
    "equ": "neu",
}


@dataclass(frozen=True)
class Line:
    """An instruction of a text, on a line of its own.

    Args:
        number: of the line, from 1.
        before: spaces and a brace.
        guard: such as "@!%p1", or "".
        form: opcode, modifiers and types.
        operands: as written.
        after: behind the semicolon.
    """

    number: int
    before: str
    guard: str
    form: str
    operands: str
    after: str

    def changed(self, *, guard: str | None = None, form: str | None = None, operands: str | None = None) -> str:
        """The line with another part."""
        words = [self.guard if guard is None else guard, form or self.form, operands or self.operands]
        return self.before + " ".join(word for word in words if word) + ";" + self.after

    @property
    def parts(self) -> list[str]:
        """Operands one by one; vectors and addresses are one."""
        return [one.strip() for one in re.findall(r"(?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+", self.operands)]

    def dropped(self) -> str:
        """The line without the instruction."""
        return self.before + self.after


def _replaced(form: str, swaps: dict[str, str], first: int = 1) -> str:
    """A form with its first modifier that is among some swapped for another; "" if it has none."""
    words = form.split(".")
    for i, word in enumerate(words[first:], start=first):
        if word in swaps:
            return ".".join((*words[:i], swaps[word], *words[i + 1 :]))
    return ""


def _guard(one: Line) -> str:
    if not one.guard:
        return ""
    return one.changed(guard="@" + one.guard[2:] if one.guard.startswith("@!") else "@!" + one.guard[1:])


def _comparison(one: Line) -> str:
    form = _replaced(one.form, _OPPOSITE) if one.form.startswith(("setp.", "set.")) else ""
    return one.changed(form=form) if form else ""


def _number(one: Line, opcodes: tuple[str, ...], at: int, change: Callable[[int], int]) -> str:
    parts = one.parts
    if not one.form.startswith(opcodes) or len(parts) <= at or not re.fullmatch(r"-?\d+", parts[at]):
        return ""
    return one.changed(operands=", ".join((*parts[:at], str(change(int(parts[at]))), *parts[at + 1 :])))


def _shift(one: Line) -> str:
    return _number(one, ("shl.", "shr."), 2, lambda by: by + 1 if by < 2 else by - 1)


def _constant(one: Line) -> str:
    return _number(one, ("add.", "and.", "or.", "sub.", "mul.lo", "mad.lo", "xor."), 2, lambda value: value + 1)


def _offset(one: Line) -> str:
    match = re.search(r"\[([%$\w]+)(?:\+(-?\d+))?\]", one.operands)
    if (
        not match
        or not one.form.startswith(("ld.", "st.", "cp.async.c", "ldmatrix", "red.", "atom."))
        or ".param" in one.form
    ):
        return ""
    size = 16 if one.form.startswith(("cp", "ldmatrix")) else int(re.findall(r"\d+", one.form)[-1]) // 8
    moved = f"[{match[1]}+{int(match[2] or 0) + size}]"
    return one.changed(operands=one.operands[: match.start()] + moved + one.operands[match.end() :])


def _wait(one: Line) -> str:
    if one.form == "cp.async.wait_all":
        return one.dropped()
    return _number(one, ("cp.async.wait_group",), 0, lambda groups: groups + 1)


def _dropped(*opcodes: str) -> Callable[[Line], str]:
    return lambda one: one.dropped() + " " if one.form.startswith(opcodes) else ""


def _lane(one: Line) -> str:
    return _number(one, ("shfl.sync",), 2, lambda lane: lane ^ 3)


def _conversion(one: Line) -> str:
    swaps = {"rn": "rz", "rzi": "rmi", "rmi": "rzi", "rz": "rn", "rni": "rzi", "rpi": "rzi"}
    if not one.form.startswith("cvt."):
        return ""
    form = _replaced(one.form, swaps) or _other_sign(one.form)
    return one.changed(form=form) if form != one.form else ""


def _other_sign(form: str) -> str:
    """A form with its last type signed instead of unsigned, or the other way around."""
    return re.sub(r"\.([us])(\d+)$", lambda m: f".{'s' if m[1] == 'u' else 'u'}{m[2]}", form)


def _sign(one: Line) -> str:
    signed = one.form.startswith(("shr.", "mul.wide", "mad.wide", "setp.", "min.", "max.", "div.", "rem."))
    # Equality has no sign.
    form = _other_sign(one.form) if signed and ".eq." not in one.form and ".ne." not in one.form else one.form
    return one.changed(form=form) if form != one.form else ""


def _order(one: Line) -> str:
    if not one.form.startswith(("sub.", "setp.", "selp.", "cvt.rn.bf16x2", "cvt.rn.f16x2", "div.", "prmt.")):
        return ""
    parts = one.parts
    # What is the same either way is no fault.
    same = len(parts) < 3 or parts[1] == parts[2] or one.form.startswith(("setp.eq", "setp.ne"))
    return "" if same else one.changed(operands=", ".join((parts[0], parts[2], parts[1], *parts[3:])))


def _operation(one: Line) -> str:
    swaps = {"add": "sub", "sub": "add", "min": "max", "max": "min", "and": "or", "or": "and", "neg": "mov"}
    opcode, _, rest = one.form.partition(".")
    form = f"{swaps.get(opcode, opcode)}.{rest}"
    return one.changed(form=form) if form != one.form else ""


def _matrix(one: Line) -> str:
    if one.form.startswith("ldmatrix"):
        form = one.form.replace(".trans", "") if ".trans" in one.form else one.form.replace(".shared", ".trans.shared")
        return one.changed(form=form)
    if not one.form.startswith("mma."):
        return ""
    vectors = re.findall(r"\{[^}]*\}", one.operands)
    first = [word.strip() for word in vectors[1].strip("{}").split(",")]
    swapped = "{" + ", ".join((first[1], first[0], *first[2:])) + "}"
    return one.changed(operands=one.operands.replace(vectors[1], swapped, 1))


KINDS: dict[str, Callable[[Line], str]] = {
    "a predicate turned": _guard,
    "a comparison": _comparison,
    "a shift": _shift,
    "a constant": _constant,
    "an offset": _offset,
    "a wait": _wait,
    "a barrier dropped": _dropped("bar.sync", "barrier.sync"),
    "a commit dropped": _dropped("cp.async.commit"),
    "a store dropped": _dropped("st.shared", "st.global", "st.v"),
    "a lane": _lane,
    "a conversion": _conversion,
    "a sign": _sign,
    "an order of operands": _order,
    "an operation": _operation,
    "a matrix": _matrix,
}


_HARMLESS = {
    **dict.fromkeys(("a sign", "a conversion"), "the numbers are not negative there, and both readings are the same"),
    "a comparison": "the two sides are never equal there, or both ways then lead to the same",
    "a predicate turned": "both ways lead to the same",
    **dict.fromkeys(
        ("a barrier dropped", "a wait", "a commit dropped"),
        "another one orders the same accesses: no race was found",
    ),
}


@dataclass(frozen=True)
class Fault:
    """One fault in a PTX text.

    Args:
        kind: of `KINDS`.
        line: its number, from 1.
        old: the line.
        new: what stands in its place.
    """

    kind: str
    line: int
    old: str
    new: str

    def apply(self, text: str) -> str:
        """The text with the fault."""
        lines = text.split("\n")
        assert lines[self.line - 1] == self.old
        lines[self.line - 1] = self.new
        return "\n".join(lines)

    @property
    def harmless(self) -> str:
        """Why it can be that it changes nothing that is written."""
        return _HARMLESS.get(self.kind, "nothing that is written depends on what it computes")

    def __str__(self) -> str:
        """The kind, the line and what is changed."""
        return (
            f"{self.kind}, line {self.line}: {' '.join(self.old.split())} -> {' '.join(self.new.split()) or 'nothing'}"
        )


def _lines(text: str, entry: str) -> Iterator[Line]:
    """The instructions of a kernel."""
    inside = False
    for number, line in enumerate(text.split("\n"), start=1):
        if ".entry" in line or ".func" in line:
            inside = ".entry" in line and re.search(rf"\b{re.escape(entry)}\b", line) is not None
        match = _INSTRUCTION.match(line) if inside else None
        if match:
            yield Line(number, match[1], match[2] or "", match[3], match[5].strip(), match[6])


def faults(text: str, entry: str) -> dict[str, list[Fault]]:
    """Every fault that can be put into a kernel, by kind; only those of which the emulator knows the form."""
    lines, found = text.split("\n"), {}
    for kind, change in KINDS.items():
        found[kind] = [
            Fault(kind, one.number, lines[one.number - 1], new)
            for one in _lines(text, entry)
            for new in [change(one)]
            if new and _known(new)
        ]
    return {kind: each for kind, each in found.items() if each}


def _known(line: str) -> bool:
    match = _INSTRUCTION.match(line)
    return match is None or match[3] in KNOWN


def drawn(text: str, entry: str, count: int, chance: random.Random) -> list[Fault]:
    """Some faults of a kernel: their kinds in turns, in a random order; of each kind a random place."""
    every = faults(text, entry)
    kinds = chance.sample(sorted(every), len(every))
    chosen: list[Fault] = []
    for number in range(count):
        left = [one for one in every[kinds[number % len(kinds)]] if one not in chosen]
        chosen += [chance.choice(left)] if left else []
    return chosen
