"""A function's instructions as blocks: each runs to its last instruction, and then says which block is next."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from dca.emulation.ptx.tokens import damaged
from dca.emulation.ptx.values import Function, Group, Immediate, Instruction, Label, Operand, Symbol
from dca.emulation.translation.table import FORMS, Form
from dca.foundation.errors import DcaError

WHOLE = 0xFFFFFFFF
_ENDS = frozenset(("branch", "switch", "ret", "exit", "trap", "barrier", "barrier_reduction", "call"))
GATHERED = {
    "shuffle": 4,
    "vote": 2,
    "ballot": 2,
    "match": 2,
    "redux": 2,
    "warp_barrier": 0,
    "ldmatrix": None,
    "stmatrix": None,
    "mma": None,
    "arrive": -1,
}
"""Kinds whose lanes must come together: where their mask is among the operands, None where it is the whole warp, or -1
where it is all lanes that have not ended."""
# Of those that are run around where their guard is false: what ends a block has no mask of its own.
_AROUND = frozenset((*GATHERED, "barrier", "barrier_reduction", "trap", "call", "switch"))


@dataclass(frozen=True)
class Gathering:
    """What a block's first instruction waits for: the mask's operand, or all lanes of the warp."""

    line: int
    mask: Operand
    aligned: bool


@dataclass
class Block:
    """A block of a function.

    Args:
        number: in the function; the entry is 0.
        body: its instructions; the last may end it.
        gathering: set where it begins with a collective.
        around: the guard of the only instruction of the next block; lanes without it go on after that.
        results: values of the call before it that it takes over, as (to, from).
    """

    number: int
    body: list[Instruction] = field(default_factory=list)
    gathering: Gathering | None = None
    around: Instruction | None = None
    results: Instruction | None = None


@dataclass(frozen=True)
class Flow:
    """The blocks of a function and where its labels are."""

    blocks: tuple[Block, ...]
    labels: dict[str, int]
    targets: dict[str, tuple[str, ...]]

    def block_of(self, candidates: str, line: int) -> int:
        """The block of a label, of the innermost scope that has it.

        Raises:
            DcaError: DCA-831 when no scope has it.
        """
        for name in candidates.split("\0"):
            if name in self.labels:
                return self.labels[name]
        raise damaged(line, f"the label {candidates.split(chr(0))[-1]} is not there; the text is cut off")


def unknown(form: str, entry: str, line: int) -> DcaError:
    """The error for a form that is not in the table."""
    return DcaError(
        "DCA-830",
        f"the instruction `{form}` of {entry}, line {line} of its PTX, is not emulated.",
        why="no form is taken for a similar one, as its result would be wrong in rare cases.",
        remedy="prove this kernel on a GPU, or report the form.",
    )


def form_of(one: Instruction, entry: str) -> Form:
    """How an instruction is translated.

    Raises:
        DcaError: DCA-830 when it is not in the table.
    """
    form = FORMS.get(one.form)
    if form is None:
        raise unknown(one.form, entry, one.line)
    return form


class _Builder:
    def __init__(self, function: Function) -> None:
        self.function = function
        self.blocks = [Block(0)]
        self.labels: dict[str, int] = {}
        self.targets: dict[str, tuple[str, ...]] = {}
        self.here: Operand | None = None
        self.whole = False

    def new(self) -> Block:
        self.blocks.append(Block(len(self.blocks)))
        self.here, self.whole = None, False
        return self.blocks[-1]

    def fresh(self) -> Block:
        """A block in which nothing has run yet."""
        block = self.blocks[-1]
        return self.new() if block.body or block.gathering or block.around or block.results else block

    def add(self, one: Instruction) -> None:
        form = form_of(one, self.function.name)
        if one.guard is not None and form.kind in _AROUND:
            block = self.blocks[-1]
            block.around = one
            self.new()
            self.plain(one._replace(guard=None), form)
            self.fresh()
        else:
            self.plain(one, form)

    def plain(self, one: Instruction, form: Form) -> None:
        if form.kind in GATHERED:
            self.collective(one, form)
        self.blocks[-1].body.append(one)
        if form.kind in _ENDS:
            following = self.new()
            if form.kind == "call":
                following.results = one

    def collective(self, one: Instruction, form: Form) -> None:
        at = GATHERED[form.kind]
        aligned = at is None
        if at is not None and at >= len(one.operands):
            raise damaged(one.line, f"`{one.form}` has too few operands")
        mask = Immediate("int", WHOLE) if at is None or at < 0 else one.operands[at]
        # Nobody leaves in the middle of a block, so that a second collective of the same lanes finds them here.
        same = isinstance(mask, Immediate) and mask == self.here and (self.whole or not aligned)
        if not same:
            block = self.fresh()
            block.gathering = Gathering(one.line, mask, aligned)
            self.here, self.whole = mask, aligned


def flow(function: Function) -> Flow:
    """The blocks of a function.

    Raises:
        DcaError: DCA-830 for a form that is not known, DCA-831 where the text is damaged.
    """
    builder = _Builder(function)
    for one in function.body:
        if isinstance(one, Label):
            if one.targets:
                builder.targets[one.name] = one.targets
            else:
                builder.labels[one.name] = builder.fresh().number
        else:
            builder.add(one)
    last = builder.blocks[-1]
    # Nothing follows the last return, unless a label there is branched to.
    empty = not (last.body or last.results or last.around or last.number in builder.labels.values())
    if empty and len(builder.blocks) > 1:
        builder.blocks.pop()
    return Flow(tuple(builder.blocks), builder.labels, builder.targets)


def ends_with(block: Block) -> str:
    """The kind of the instruction that ends a block; "" when it goes on to the next."""
    if block.around is not None or not block.body:
        return ""
    kind = FORMS[block.body[-1].form].kind
    return kind if kind in _ENDS else ""


def only_returns(block: Block) -> bool:
    """Whether a block does nothing but end its lanes."""
    return (
        len(block.body) == 1
        and not block.around
        and block.body[0].guard is None
        and not block.results
        and (FORMS[block.body[0].form].kind in ("ret", "exit"))
    )


def callee(one: Instruction, entry: str) -> str:
    """The name of the function that a call names.

    Raises:
        DcaError: DCA-830 for a call through a pointer.
    """
    target = next((operand for operand in one.operands if not isinstance(operand, Group)), None)
    if isinstance(target, Symbol):
        return target.name
    raise DcaError(
        "DCA-830",
        f"{entry} calls a function through a pointer, at line {one.line} of its PTX, which is not emulated.",
        why="virtual functions are called so, too.",
        remedy="prove this kernel on a GPU, or let it call the function by its name.",
    )


def calls(function: Function) -> Iterator[Instruction]:
    """The calls of a function."""
    return (one for one in function.body if isinstance(one, Instruction) and one.form.split(".")[0] == "call")
