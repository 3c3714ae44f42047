"""A kernel of a PTX text as C++ for the run time."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from dca.emulation.ptx import parser
from dca.emulation.ptx.tokens import damaged
from dca.emulation.ptx.values import (
    BYTES,
    Address,
    Function,
    Group,
    Immediate,
    Instruction,
    Module,
    Negated,
    Operand,
    Pair,
    Register,
    Symbol,
    Variable,
    Vector,
)
from dca.emulation.translation.blocks import (
    GATHERED,
    Block,
    Flow,
    callee,
    calls,
    ends_with,
    flow,
    form_of,
    only_returns,
)
from dca.emulation.translation.table import Form, cpp
from dca.foundation.errors import DcaError

_ALIGN_OF_LOCAL = 16
_MOST_SHARED = 227 << 10
# Blocks are calls of functions with a loop over lanes: optimizing the calls takes g++ longer than all else, and saves
# nothing that is felt.
_CALLS_ONLY = ("#pragma GCC push_options", '#pragma GCC optimize("O0")')
_CALLS_END = "#pragma GCC pop_options"
_MOST_THREADS = 1024
_LOCAL = 8
# CUDA's own functions that are emulated: the C++ function, and how many parameters it takes.
_OF_CUDA = {"vprintf": ("print_text", 2), "__assertfail": ("assertion_failed", 5)}
# Scalars and rows of a warp that instructions read by name; %clock counts instructions.
_SPECIAL = {
    **{f"%tid.{axis}": f"w.tid[{i}]" for i, axis in enumerate("xyz")},
    **{f"%ntid.{axis}": f"K{{w.cta->grid->launch.block[{i}]}}" for i, axis in enumerate("xyz")},
    **{f"%ctaid.{axis}": f"K{{w.cta->id[{i}]}}" for i, axis in enumerate("xyz")},
    **{f"%nctaid.{axis}": f"K{{w.cta->grid->launch.grid[{i}]}}" for i, axis in enumerate("xyz")},
    "%laneid": "lane_ids",
    "%warpid": "K{w.index}",
    "%nwarpid": "K{w.cta->grid->warps}",
    "%smid": "K{0}",
    "%nsmid": "K{1}",
    "%gridid": "K{0}",
    "%lanemask_eq": "lane_masks[0]",
    "%lanemask_le": "lane_masks[1]",
    "%lanemask_lt": "lane_masks[2]",
    "%lanemask_ge": "lane_masks[3]",
    "%lanemask_gt": "lane_masks[4]",
    "%clock": "K{clock(w)}",
    "%clock64": "K{clock(w)}",
    "%globaltimer": "K{clock(w)}",
    "%dynamic_smem_size": "K{w.cta->grid->launch.dynamic_shared}",
    "%total_smem_size": "K{w.cta->grid->shared_bytes}",
    "WARP_SZ": "K{32}",
}


def _round_up(value: int, to: int) -> int:
    return (value + to - 1) // to * to


@dataclass
class _Layout:
    """Where variables and parameters are."""

    globals: dict[str, int] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    dynamic: set[str] = field(default_factory=set)
    dynamic_align: int = 16
    local_bytes: int = 0
    local_align: int = _ALIGN_OF_LOCAL


class _Kernel:
    """A kernel with the functions that it calls."""

    def __init__(self, source: Module, name: str) -> None:
        self.source, self.entry = source, name
        self.functions: dict[str, Function] = {}
        self._gather(name, ())
        self.layout = _Layout()
        self.variables: list[Variable] = []
        self.flows = {one: flow(function) for one, function in self.functions.items()}
        self.first: dict[str, int] = {}
        count = 0
        for one, its in self.flows.items():
            self.first[one] = count
            count += len(its.blocks)

    def _gather(self, name: str, callers: tuple[str, ...]) -> None:
        if name in callers:
            raise DcaError(
                "DCA-830",
                f"{name}, which {self.entry} runs, calls itself; recursion is not emulated.",
                remedy="prove this kernel on a GPU.",
            )
        if name not in self.source.functions:
            raise DcaError(
                "DCA-830",
                f"the function {name}, which {self.entry} calls, is not emulated: this PTX has no code of it.",
                why="it is one of CUDA's own, such as malloc, or is linked to the kernel later (nvcc's -rdc=true).",
                remedy="prove this kernel on a GPU.",
            )
        if name not in self.functions:
            self.functions[name] = parser.function(self.source, name)
        for one in sorted({callee(call, self.entry) for call in calls(self.functions[name])} - _OF_CUDA.keys()):
            self._gather(one, (*callers, name))


class _Writer:
    """The C++ of one function of a kernel."""

    def __init__(self, kernel: _Kernel, name: str, rows: dict[int, int], first_predicate: int) -> None:
        self.kernel, self.function = kernel, kernel.functions[name]
        self.flow: Flow = kernel.flows[name]
        self.first = kernel.first[name]
        self.number = list(kernel.functions).index(name)
        self.rows: list[int] = []
        for kind in self.function.registers:
            if kind == "pred":
                self.rows.append(first_predicate)
                first_predicate += 1
            else:
                width = max(2, BYTES[kind])
                self.rows.append(rows[width])
                rows[width] += 1
        self.predicates = first_predicate
        self.local: dict[str, int] = {}
        layout = kernel.layout
        places = [*self.function.variables]
        if not self.function.kernel:
            places += [*self.function.parameters, *self.function.results]
        for one in places:
            if one.space in ("local", "param"):
                layout.local_bytes = _round_up(layout.local_bytes, one.align)
                layout.local_align = max(layout.local_align, one.align)
                self.local[one.name] = layout.local_bytes
                layout.local_bytes += one.size
        self.parameters: dict[str, int] = {}
        if self.function.kernel:
            self.parameters = {
                one.name: at for one, at in zip(self.function.parameters, _offsets(self.function), strict=True)
            }
        self.mask = "m"

    # Operands.

    def row(self, register: Register) -> str:
        """A register's row."""
        if register.type == "pred":
            return f"w.p[{self.rows[register.number]}]"
        return f"{ {2: 'h', 4: 'r', 8: 'd'}[max(2, BYTES[register.type])] }(w, {self.rows[register.number]})"

    def predicate(self, operand: Operand, line: int) -> str:
        """A mask of the lanes in which a predicate is true."""
        if isinstance(operand, Negated):
            return f"~{self.predicate(operand.register, line)}"
        if isinstance(operand, Register) and operand.type == "pred":
            return self.row(operand)
        if isinstance(operand, Immediate) and operand.kind == "int":
            return "ALL" if operand.value else "0u"
        raise damaged(line, "an operand is no predicate")

    def guarded(self, one: Instruction) -> str:
        """The lanes that run an instruction."""
        return "m" if one.guard is None else f"m & {self.predicate(one.guard, one.line)}"

    def value(self, operand: Operand, kind: str, one: Instruction, *, wider: bool = False) -> str:
        """A source operand of a type."""
        size = BYTES[kind]
        if isinstance(operand, Register):
            if operand.type == "pred" or (BYTES[operand.type] != size and not (wider and BYTES[operand.type] > size)):
                raise damaged(one.line, f"`{one.form}` has a register of type .{operand.type} where a .{kind} belongs")
            return self.row(operand)
        if isinstance(operand, Immediate):
            return f"K{{{_bits(operand, kind, one):#x}ull}}"
        if isinstance(operand, Symbol):
            return self.symbol(operand.name, one)
        raise damaged(one.line, f"an operand of `{one.form}` is of a wrong kind")

    def symbol(self, name: str, one: Instruction) -> str:
        """A special register, or an address."""
        if name in _SPECIAL:
            return _SPECIAL[name]
        layout = self.kernel.layout
        if name in self.parameters:
            return f"K{{reinterpret_cast<u64>(w.cta->grid->parameters.data()) + {self.parameters[name]}}}"
        if name in self.local:
            return f"LocalRow(w, {self.local[name]}).row"
        if name in layout.shared:
            return f"K{{{layout.shared[name]}}}"
        if name in layout.dynamic:
            return "K{dynamic_start()}"
        if name in layout.globals:
            return f"K{{w.cta->grid->variables[{layout.globals[name]}]}}"
        if name.startswith("%"):
            raise DcaError(
                "DCA-830",
                f"the special register {name}, which {self.kernel.entry} reads at line {one.line} of its PTX, is not "
                "emulated.",
                remedy="prove this kernel on a GPU, or report the register.",
            )
        raise damaged(one.line, f"the name {name} is not known; the text is cut off")

    def target(self, operand: Operand, one: Instruction, *, wider: bool = False, kind: str = "") -> str:
        """A destination."""
        if not isinstance(operand, Register) or operand.type == "pred":
            raise damaged(one.line, f"the destination of `{one.form}` is no register")
        if kind and BYTES[operand.type] != BYTES[kind] and not (wider and BYTES[operand.type] > BYTES[kind]):
            # There are no registers of 8 bits: those of 16 hold them.
            raise damaged(one.line, f"`{one.form}` has a destination of type .{operand.type}")
        return self.row(operand)

    def address(self, operand: Operand, one: Instruction) -> str:
        """Base and offset of an address."""
        if not isinstance(operand, Address):
            raise damaged(one.line, f"an operand of `{one.form}` is no address")
        if operand.base is None:
            return f"K{{{operand.offset & (1 << 64) - 1}ull}}, 0"
        if isinstance(operand.base, Register):
            if operand.base.type == "pred" or BYTES[operand.base.type] < 4:
                raise damaged(one.line, f"the address of `{one.form}` is in a register of type .{operand.base.type}")
            return f"{self.row(operand.base)}, {operand.offset}"
        return f"{self.symbol(operand.base.name, one)}, {operand.offset}"

    def items(self, operand: Operand, count: int, one: Instruction) -> tuple[Operand, ...]:
        """The elements of a vector, or a single one."""
        items = operand.items if isinstance(operand, Vector) else (operand,)
        if len(items) != count:
            raise damaged(one.line, f"`{one.form}` has {len(items)} values where {count} belong")
        return items

    # Blocks.

    def blocks(self) -> Iterator[tuple[str, str]]:
        """The C++ of each block, and what the table of blocks says of it."""
        for block in self.flow.blocks:
            lines = [*self._beginning(block), *self._body(block)]
            number = self.first + block.number
            body = "\n  ".join(lines)
            first = next(iter((*block.body, *filter(None, (block.around, block.results)))), self.function)
            facts = f"{{b{number}, {max(1, len(block.body))}, {first.line}, {self.number}}}"
            yield f"static u32 b{number}(Warp &w, u32 m) {{\n  {body}\n}}\n", facts

    def _beginning(self, block: Block) -> Iterator[str]:
        if (gathering := block.gathering) is not None:
            mask = self.value(gathering.mask, "u32", block.body[0])
            aligned = "true" if gathering.aligned else "false"
            number = self.first + block.number
            yield f"if (!(m = together(w, m, {number}, {gathering.line}, {mask}, {aligned}))) return DIVERGED;"
        if (call := block.results) is not None and callee(call, self.kernel.entry) not in _OF_CUDA:
            function = self._callee(call)
            results = self._arguments(call, 0) if self._has_results(call) else ()
            for to, source in zip(results, function.results, strict=True):
                place = self.kernel_local(function, source.name)
                yield f"copy_local(w, m, {self._own(to, call)}, {place}, {source.size});"

    def _body(self, block: Block) -> Iterator[str]:
        ending = ends_with(block)
        plain = block.body[:-1] if ending else block.body
        for one in plain:
            form = form_of(one, self.kernel.entry)
            _check_operands(one, form)
            if form.kind in GATHERED:
                at = GATHERED[form.kind]
                yield f"met(w, m, {'K{ALL}' if at is None or at < 0 else self.value(one.operands[at], 'u32', one)});"
            yield from _WRITERS[form.kind](self, one, form)
        following = self.first + block.number + 1
        if block.around is not None:
            guard = self.predicate(block.around.guard, block.around.line)  # type: ignore[arg-type]
            yield f"return branch(w, m, {guard}, {following}, {following + 1});"
        elif ending:
            yield from self._ending(block.body[-1], ending, block)
        elif block.number + 1 == len(self.flow.blocks):
            yield f"return trapped(w, m, {block.body[-1].line if block.body else self.function.line});"
        else:
            yield f"return {following};"

    def _ending(self, one: Instruction, kind: str, block: Block) -> Iterator[str]:
        following = self.first + block.number + 1
        form = form_of(one, self.kernel.entry)
        guard = self.predicate(one.guard, one.line) if one.guard is not None else ""
        if kind == "branch":
            if len(one.operands) != 1 or not isinstance(one.operands[0], Symbol):
                raise damaged(one.line, "a branch has no label")
            to = self.flow.block_of(one.operands[0].name, one.line)
            if guard and self.function.kernel and only_returns(self.flow.blocks[to]):
                yield f"return leaving(w, m, {guard}, {one.line}, {following});"
            elif guard:
                yield f"return branch(w, m, {guard}, {self.first + to}, {following});"
            else:
                yield f"return {self.first + to};"
        elif kind == "exit" or (kind == "ret" and self.function.kernel):
            if guard:
                yield f"return leaving(w, m, {guard}, {one.line}, {following});"
            else:
                yield f"leave(w, m, {one.line});"
                yield "return LEFT;"
        elif kind == "ret":
            if guard:
                yield f"returned(w, m & {guard}, {self.number});"
                yield f"go(w, m & ~({guard}), {following});"
                yield "return DIVERGED;"
            else:
                yield f"return returned(w, m, {self.number});"
        else:
            yield from {
                "switch": self._switch,
                "trap": self._trap,
                "barrier": self._barrier,
                "barrier_reduction": self._barrier_reduction,
                "call": self._call,
            }[kind](one, form, self.first + block.number)

    def _switch(self, one: Instruction, form: Form, number: int) -> Iterator[str]:
        del form, number
        names = self._targets(one)
        blocks = [self.first + self.flow.block_of(name, one.line) for name in names]
        yield f"static const u32 targets[] = {{{', '.join(map(str, blocks))}}};"
        yield f"return switched(w, m, {one.line}, {self.value(one.operands[0], 'u32', one)}, targets, {len(blocks)});"

    def _targets(self, one: Instruction) -> tuple[str, ...]:
        if len(one.operands) == 2 and isinstance(one.operands[1], Symbol):
            for candidate in one.operands[1].name.split("\0"):
                if candidate in self.flow.targets:
                    return self.flow.targets[candidate]
        raise damaged(one.line, "brx.idx has no list of targets")

    def _trap(self, one: Instruction, form: Form, number: int) -> Iterator[str]:
        del form, number
        yield f"return trapped(w, m, {one.line});"

    def _barrier(self, one: Instruction, form: Form, number: int) -> Iterator[str]:
        values = [self.value(operand, "u32", one) for operand in one.operands]
        count = values[1] if len(values) > 1 else "K{0}"
        yield f"return barrier(w, m, At{{{one.line}, {number}, {number + 1}}}, {values[0]}, {count}, {form.op});"

    def _barrier_reduction(self, one: Instruction, form: Form, number: int) -> Iterator[str]:
        *_, source = one.operands
        number_and_count = [self.value(operand, "u32", one) for operand in one.operands[1:-1]]
        count = number_and_count[1] if len(number_and_count) > 1 else "K{0}"
        to, mask = one.operands[0], self.predicate(source, one.line)
        counted = form.op == "RED_POPC"
        row = self.target(to, one, kind="u32") if counted else "nullptr"
        predicate = "nullptr" if counted else f"&{self.predicate(to, one.line)}"
        at = f"At{{{one.line}, {number}, {number + 1}}}"
        values = f"{number_and_count[0]}, {count}, {form.op}, {mask}, {row}, {predicate}"
        yield f"return barrier_reduction(w, m, {at}, {values});"

    def _callee(self, one: Instruction) -> Function:
        return self.kernel.functions[callee(one, self.kernel.entry)]

    def _has_results(self, one: Instruction) -> bool:
        return isinstance(one.operands[0], Group)

    def _arguments(self, one: Instruction, at: int) -> tuple[Operand, ...]:
        groups = [operand for operand in one.operands if isinstance(operand, Group)]
        return groups[at].names if at < len(groups) else ()

    def _own(self, operand: Operand, one: Instruction) -> int:
        if isinstance(operand, Symbol) and operand.name in self.local:
            return self.local[operand.name]
        raise damaged(one.line, "an argument of a call is no parameter")

    def kernel_local(self, function: Function, name: str) -> int:
        """Where a parameter of a called function is."""
        return self.kernel_locals[function.name][name]

    kernel_locals: dict[str, dict[str, int]]

    def _call(self, one: Instruction, form: Form, number: int) -> Iterator[str]:
        del form
        name = callee(one, self.kernel.entry)
        given = self._arguments(one, 1 if self._has_results(one) else 0)
        wanted = _OF_CUDA[name][1] if name in _OF_CUDA else len(self.kernel.functions[name].parameters)
        if len(given) != wanted:
            raise damaged(one.line, f"{name} takes {wanted} parameters, not {len(given)}")
        if name in _OF_CUDA:
            results = self._arguments(one, 0) if self._has_results(one) else ()
            places = [self._own(operand, one) for operand in (*given, *results)]
            yield f"{_OF_CUDA[name][0]}(w, m, {one.line}, {', '.join(map(str, places))});"
            yield f"return {number + 1};"
            return
        function = self.kernel.functions[name]
        for source, to in zip(given, function.parameters, strict=True):
            yield f"copy_local(w, m, {self.kernel_local(function, to.name)}, {self._own(source, one)}, {to.size});"
        yield f"called(w, m, {list(self.kernel.functions).index(name)}, {number + 1});"
        yield f"return {self.kernel.first[name]};"


def _bits(operand: Immediate, kind: str, one: Instruction) -> int:
    if operand.kind == "int":
        if kind.startswith(("f", "bf")):
            raise damaged(one.line, f"`{one.form}` has an integer where a float belongs")
        return operand.value & (1 << 64) - 1
    if operand.kind == "f64" and BYTES[kind] == 4:
        value = struct.unpack("<d", struct.pack("<Q", operand.value))[0]
        return int(struct.unpack("<I", struct.pack("<f", value))[0])
    if BYTES[kind] != (4 if operand.kind == "f32" else 8):
        raise damaged(one.line, f"`{one.form}` has a float of another width")
    return operand.value


_LEAST = {"each": None, "load": 2, "store": 2, "compare": 3, "select": 4}


def _check_operands(one: Instruction, form: Form) -> None:
    """One operand for each type, for the kinds that have no optional ones.

    Raises:
        DcaError: DCA-831.
    """
    least = len(form.types) if form.kind in ("each", "set_number") else _LEAST.get(form.kind)
    if least is not None and len(one.operands) < least:
        raise damaged(one.line, f"`{one.form}` has {len(one.operands)} operands")
    if form.kind == "each" and len(one.operands) != len(form.types):
        raise damaged(one.line, f"`{one.form}` has {len(one.operands)} operands, not {len(form.types)}")


def _each(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    wider = one.form.startswith("cvt.")
    to = self.target(one.operands[0], one, wider=wider, kind=form.types[0])
    sources = ", ".join(
        self.value(operand, kind, one, wider=wider)
        for operand, kind in zip(one.operands[1:], form.types[1:], strict=True)
    )
    yield f"each<{form.op}>({self.guarded(one)}, {to}, {sources});"


def _move(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    if len(one.operands) != 2:
        raise damaged(one.line, f"`{one.form}` has {len(one.operands)} operands")
    to, source = one.operands
    kind = form.types[0]
    size = BYTES[kind]
    mask = self.guarded(one)
    if isinstance(source, Vector):
        part = _part(source.items, size, one)
        values = ", ".join(self.value(item, part, one) for item in source.items)
        name = f"Pack{len(source.items)}<{_unsigned(size)}, {cpp(part)}>"
        yield f"each<{name}>({mask}, {self.target(to, one, kind=kind)}, {values});"
    elif isinstance(to, Vector):
        part = _part(to.items, size, one)
        value = self.value(source, kind, one)
        # A part may be the register that is taken apart.
        yield f"{{ {_unsigned(size)} whole[32]; each<Same<{_unsigned(size)}>>(ALL, whole, {value});"
        for at, item in enumerate(to.items):
            if item != Symbol("_"):
                row = self.target(item, one, kind=part)
                yield f"  each<Part<{_unsigned(size)}, {cpp(part)}, {at}>>({mask}, {row}, whole);"
        yield "}"
    else:
        bits = _unsigned(size)
        value = self.value(source, kind, one) if not _is_bits(source, kind) else self.value(source, f"b{8 * size}", one)
        yield f"each<Same<{bits}>>({mask}, {self.target(to, one, kind=kind)}, {value});"


def _is_bits(operand: Operand, kind: str) -> bool:
    return isinstance(operand, Register) and operand.type != "pred" and BYTES[operand.type] == BYTES[kind]


def _unsigned(size: int) -> str:
    return f"u{8 * size}"


def _part(items: tuple[Operand, ...], size: int, one: Instruction) -> str:
    if len(items) not in (2, 4) or size // len(items) < 1:
        raise damaged(one.line, f"`{one.form}` has a vector of {len(items)}")
    return f"b{8 * size // len(items)}"


def _compare(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    combine, kind = form.types
    to = one.operands[0]
    wanted = 4 if combine else 3
    if len(one.operands) != wanted:
        raise damaged(one.line, f"`{one.form}` has {len(one.operands)} operands")
    values = ", ".join(self.value(operand, kind, one) for operand in one.operands[1:3])
    mask = self.guarded(one)
    sign = {"and": "&", "or": "|", "xor": "^", "": ""}[combine]
    other = f" {sign} {self.predicate(one.operands[3], one.line)}" if combine else ""
    first, second = (to.first, to.second) if isinstance(to, Pair) else (to, None)
    yield f"{{ u32 is = compared<{form.op}>({values}), lanes = {mask};"
    yes, no = f"is{other}", f"~is{other}"
    if second is not None:
        yield f"  u32 yes = {yes}, no = {no};"
        yes, no = "yes", "no"
    if first != Symbol("_"):
        yield f"  put({self.predicate(first, one.line)}, lanes, {yes});"
    if second is not None and second != Symbol("_"):
        yield f"  put({self.predicate(second, one.line)}, lanes, {no});"
    yield "}"


def _select(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, a, b, chosen = one.operands
    kind = form.types[0]
    values = f"{self.value(a, kind, one)}, {self.value(b, kind, one)}, {self.predicate(chosen, one.line)}"
    yield f"select<{form.op}>({self.guarded(one)}, {self.target(to, one, kind=kind)}, {values});"


def _set(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    d, t = form.types
    to, *sources = one.operands
    values = ", ".join(self.value(operand, t, one) for operand in sources)
    yes = "1.0f" if d == "f32" else "0xffffffffu"
    yield f"set_number<{form.op}>({self.guarded(one)}, {self.target(to, one, kind=d)}, {yes}, {values});"


def _logic(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, *sources = one.operands
    values = [f"({self.predicate(operand, one.line)})" for operand in sources]
    if len(values) != (2 if form.op in ("&", "|", "^") else 1):
        raise damaged(one.line, f"`{one.form}` has {len(one.operands)} operands")
    value = f" {form.op} ".join(values) if len(values) == 2 else form.op + values[0]
    yield f"put({self.predicate(to, one.line)}, {self.guarded(one)}, {value});"


def _load(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    kind, lanes, access = form.types
    to, address = one.operands[0], one.operands[1]
    items = self.items(to, int(lanes), one)
    rows = [self.target(item, one, wider=True, kind=kind) for item in items if item != Symbol("_")]
    if len(rows) != len(items):
        raise damaged(one.line, f"`{one.form}` leaves out a destination, which is not supported")
    destination = f"Rows{{{', '.join(rows)}}}"
    mask = self.guarded(one)
    space = form.op
    if space == "PARAM" and isinstance(address, Address) and isinstance(address.base, Symbol):
        if address.base.name in self.parameters:
            offset = self.parameters[address.base.name] + address.offset
            size = BYTES[kind] * len(items)
            if not 0 <= offset <= _parameter_bytes(self.function) - size:
                raise damaged(one.line, f"`{one.form}` reads after the kernel's parameters")
            yield f"load_parameter<{cpp(kind)}>(w, {mask}, {destination}, {offset});"
            return
        space = "LOCAL"
    yield f"load<{space}, {cpp(kind)}, {access}>(w, {mask}, {one.line}, {destination}, {self.address(address, one)});"


def _sources(self: _Writer, items: tuple[Operand, ...], kind: str, one: Instruction) -> str:
    values = [self.value(item, kind, one, wider=True) for item in items]
    constant = [value.startswith("K{") for value in values]
    if any(constant) and not all(constant):
        size = next(max(2, BYTES[item.type]) for item in items if isinstance(item, Register))
        values = [f"Filled<u{8 * size}>({v}).row" if is_k else v for v, is_k in zip(values, constant, strict=True)]
    return f"Sources{{{', '.join(values)}}}"


def _store(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    kind, lanes, access = form.types
    address, source = one.operands[0], one.operands[1]
    items = self.items(source, int(lanes), one)
    space = "LOCAL" if form.op == "PARAM" else form.op
    values = _sources(self, items, kind, one)
    to = f"w, {self.guarded(one)}, {one.line}, {self.address(address, one)}"
    yield f"store<{space}, {cpp(kind)}, {access}>({to}, {values});"


def _atomic(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    kind, space, op = form.types
    reduction = form.kind == "reduction"
    operands = one.operands if not reduction else (Symbol("_"), *one.operands)
    if len(operands) != (4 if op == "cas" else 3):
        raise damaged(one.line, f"`{one.form}` has {len(one.operands)} operands")
    bits = _unsigned(BYTES[kind])
    to = f"static_cast<{bits} *>(nullptr)" if operands[0] == Symbol("_") else self.target(operands[0], one, kind=kind)
    second = self.value(operands[3], kind, one) if op == "cas" else "K{0}"
    values = f"{self.address(operands[1], one)}, {self.value(operands[2], kind, one)}, {second}"
    yield f"atomic<{space}, {cpp(kind)}, {form.op}>(w, {self.guarded(one)}, {one.line}, {to}, {values});"


def _copy(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, source, size, *rest = one.operands
    if not isinstance(size, Immediate) or size.value not in ((16,) if form.op == "cg" else (4, 8, 16)) or len(rest) > 1:
        raise damaged(one.line, f"`{one.form}` copies a number of bytes that it cannot")
    amount, ignored = f"K{{{size.value}}}", "0u"
    if rest and isinstance(rest[0], Register | Negated) and (isinstance(rest[0], Negated) or rest[0].type == "pred"):
        ignored = self.predicate(rest[0], one.line)
    elif rest:
        amount = self.value(rest[0], "u32", one)
    addresses = f"{self.address(to, one)}, {self.address(source, one)}"
    yield f"copy_async<{size.value}>(w, {self.guarded(one)}, {one.line}, {addresses}, {amount}, {ignored});"


def _commit(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    yield f"{form.op}(w, {self.guarded(one)});"


def _wait(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    if len(one.operands) != 1 or not isinstance(one.operands[0], Immediate):
        raise damaged(one.line, f"`{one.form}` has no number of groups")
    yield f"{form.op}(w, {self.guarded(one)}, {one.operands[0].value});"


def _cvta(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, source = one.operands
    row, value = self.target(to, one, kind="u64"), self.value(source, "u64", one)
    if form.op:
        op = "Add<u64>" if form.op == "+" else "Sub<u64>"
        yield f"each<{op}>({self.guarded(one)}, {row}, {value}, K{{SHARED_WINDOW}});"
    else:
        yield f"each<Same<u64>>({self.guarded(one)}, {row}, {value});"


def _isspacep(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, source = one.operands
    value = self.value(source, "u64", one)
    is_it = {
        "shared": f"is_shared({value})",
        "local": f"is_local(w, {value})",
        "global": f"~(is_shared({value}) | is_local(w, {value}))",
    }[form.op.removeprefix(".")]
    yield f"put({self.predicate(to, one.line)}, {self.guarded(one)}, {is_it});"


def _shuffle(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, *sources = one.operands
    first, second = (to.first, to.second) if isinstance(to, Pair) else (to, None)
    predicate = f"&{self.predicate(second, one.line)}" if second not in (None, Symbol("_")) else "nullptr"
    values = ", ".join(self.value(operand, "b32", one) for operand in sources)
    target = self.target(first, one, kind="b32")
    yield f"shuffle<{form.op}>(w, m, {one.line}, {target}, {predicate}, {values});"


def _vote(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, source, mask = one.operands
    values = f"{self.predicate(source, one.line)}, {self.value(mask, 'u32', one)}"
    yield f"vote_predicate(m, &{self.predicate(to, one.line)}, {form.op}, {values});"


def _ballot(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    del form
    to, source, mask = one.operands
    values = f"{self.predicate(source, one.line)}, {self.value(mask, 'u32', one)}"
    yield f"vote_ballot(m, {self.target(to, one, kind='b32')}, {values});"


def _match(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, source, mask = one.operands
    kind = form.types[1]
    values = f"{self.value(source, kind, one)}, {self.value(mask, 'u32', one)}"
    if form.op == "any":
        yield f"match_any<{cpp(kind)}>(m, {self.target(to, one, kind='b32')}, {values});"
    else:
        first, second = (to.first, to.second) if isinstance(to, Pair) else (to, None)
        predicate = f"&{self.predicate(second, one.line)}" if second not in (None, Symbol("_")) else "nullptr"
        yield f"match_all<{cpp(kind)}>(m, {self.target(first, one, kind='b32')}, {predicate}, {values});"


def _redux(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, source, mask = one.operands
    kind = form.types[0]
    values = f"{self.value(source, kind, one)}, {self.value(mask, 'u32', one)}"
    yield f"reduce<{form.op}, {cpp(kind)}>(m, {self.target(to, one, kind=kind)}, {values});"


def _activemask(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    del form
    yield f"each<Same<u32>>({self.guarded(one)}, {self.target(one.operands[0], one, kind='b32')}, K{{m}});"


def _nothing(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    del self, one, form
    yield from ()


def _ldmatrix(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    to, address = one.operands
    rows = ", ".join(self.target(item, one, kind="b32") for item in self.items(to, int(form.types[0]), one))
    yield f"load_matrices<{form.op}>(w, {one.line}, Rows{{{rows}}}, {self.address(address, one)});"


def _stmatrix(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    address, source = one.operands
    rows = ", ".join(self.value(item, "b32", one) for item in self.items(source, int(form.types[0]), one))
    yield f"store_matrices<{form.op}>(w, {one.line}, {self.address(address, one)}, Rows{{{rows}}});"


def _mma(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    depth = int(form.types[0])
    rows = []
    for operand, count in zip(one.operands, (4, depth // 4, depth // 8, 4), strict=True):
        items = self.items(operand, count, one)
        rows.append(f"Rows{{{', '.join(self.target(item, one, kind='b32') for item in items)}}}")
    yield f"multiply_matrices<{form.op}>({', '.join(rows)});"


def _arrive(self: _Writer, one: Instruction, form: Form) -> Iterator[str]:
    del form
    values = ", ".join(self.value(operand, "u32", one) for operand in one.operands)
    yield f"arrive(w, m, {one.line}, {values});"


_WRITERS: dict[str, Callable[[_Writer, Instruction, Form], Iterator[str]]] = {
    "each": _each,
    "move": _move,
    "compare": _compare,
    "select": _select,
    "set": _set,
    "logic": _logic,
    "load": _load,
    "store": _store,
    "atomic": _atomic,
    "reduction": _atomic,
    "copy": _copy,
    "commit": _commit,
    "wait": _wait,
    "cvta": _cvta,
    "isspacep": _isspacep,
    "shuffle": _shuffle,
    "vote": _vote,
    "ballot": _ballot,
    "match": _match,
    "redux": _redux,
    "activemask": _activemask,
    "warp_barrier": _nothing,
    "nothing": _nothing,
    "ldmatrix": _ldmatrix,
    "stmatrix": _stmatrix,
    "mma": _mma,
    "arrive": _arrive,
}


def _offsets(function: Function) -> list[int]:
    offsets, end = [], 0
    for one in function.parameters:
        offsets.append(_round_up(end, one.align))
        end = offsets[-1] + one.size
    return offsets


def _parameter_bytes(function: Function) -> int:
    return _offsets(function)[-1] + function.parameters[-1].size if function.parameters else 0


def translated(source: Module, name: str) -> str:
    """A kernel as C++.

    Args:
        source: the PTX that has it.
        name: of the entry point.

    Raises:
        DcaError: DCA-832 when the text has no such kernel, DCA-830 for an instruction that is not emulated, DCA-831 for
            damaged text.
    """
    if name not in source.kernels:
        raise DcaError(
            "DCA-832",
            f"the PTX has no kernel {name}.",
            why=f"it has {len(source.kernels)} others." if source.kernels else "it has none.",
            remedy="`dca emulate --list FILE` shows the kernels of a file.",
        )
    kernel = _Kernel(source, name)
    _place_variables(kernel)
    rows, predicates = {2: 0, 4: 0, 8: 0}, 0
    writers: list[_Writer] = []
    locals_of: dict[str, dict[str, int]] = {}
    for one in kernel.functions:
        writer = _Writer(kernel, one, rows, predicates)
        predicates = writer.predicates
        locals_of[one] = writer.local
        writer.kernel_locals = locals_of
        writers.append(writer)
    blocks = [block for writer in writers for block in writer.blocks()]
    return _file(kernel, writers, blocks, (rows, predicates))


def functions(source: Module, name: str) -> tuple[Function, ...]:
    """A kernel and the functions that it calls.

    Raises:
        DcaError: DCA-830 for a function that calls itself, DCA-831 for damaged text.
    """
    return tuple(_Kernel(source, name).functions.values())


def _place_variables(kernel: _Kernel) -> None:
    layout = kernel.layout
    used = {operand for function in kernel.functions.values() for operand in _names(function)}
    everywhere = {
        **kernel.source.variables,
        **{one.name: one for function in kernel.functions.values() for one in function.variables},
    }
    for name, one in everywhere.items():
        if one.space == "shared" and name in used:
            if one.size:
                layout.shared_bytes = _round_up(layout.shared_bytes, one.align)
                layout.shared[name] = layout.shared_bytes
                layout.shared_bytes += one.size
            else:
                layout.dynamic.add(name)
                layout.dynamic_align = max(layout.dynamic_align, one.align)
    pending = [name for name in everywhere if name in used and everywhere[name].space in ("global", "const")]
    while pending:
        name = pending.pop()
        if name in layout.globals:
            continue
        if everywhere[name].extern and not everywhere[name].size:
            raise damaged(1, f"the variable {name} is in another module, which is not supported")
        layout.globals[name] = len(layout.globals)
        pending += [target for _, target, _ in everywhere[name].pointers]
    kernel.variables = [everywhere[name] for name in layout.globals]


def _asks_who_is_active(function: Function) -> bool:
    return any(isinstance(one, Instruction) and one.form == "activemask.b32" for one in function.body)


def _names(function: Function) -> Iterator[str]:
    for one in function.body:
        if isinstance(one, Instruction):
            for operand in one.operands:
                if isinstance(operand, Symbol):
                    yield operand.name
                elif isinstance(operand, Address) and isinstance(operand.base, Symbol):
                    yield operand.base.name
                elif isinstance(operand, Vector):
                    yield from (item.name for item in operand.items if isinstance(item, Symbol))


def _file(
    kernel: _Kernel, writers: list[_Writer], blocks: list[tuple[str, str]], counts: tuple[dict[int, int], int]
) -> str:
    entry = kernel.functions[kernel.entry]
    layout, (rows, predicates) = kernel.layout, counts
    offsets = _offsets(entry)
    exact = entry.directives.get("reqntid", ())
    most = entry.directives.get("maxntid", exact)
    threads = _MOST_THREADS
    if most:
        threads = math.prod(most)
    exact3 = [*exact, 1, 1][:3] if exact else [0, 0, 0]
    local = _round_up(layout.local_bytes, layout.local_align)
    apart = "false" if any(map(_asks_who_is_active, kernel.functions.values())) else "true"
    places = sorted(place for function in kernel.functions.values() for place in function.places)
    pieces = ['#include "grid.h"', "", "namespace dca {", *_CALLS_ONLY, *(code for code, _ in blocks), _CALLS_END]
    pieces.append(_table("Block", "blocks", [facts for _, facts in blocks]))
    for i, variable in enumerate(kernel.variables):
        if variable.initial:
            pieces.append(f"static const unsigned char initial_{i}[] = {{{', '.join(map(str, variable.initial))}}};")
    variables = [
        f'{{"{one.name}", {one.size}, {one.align}, {f"initial_{i}" if one.initial else "nullptr"}}}'
        for i, one in enumerate(kernel.variables)
    ]
    pointers = [
        f"{{{i}, {offset}, {layout.globals[target]}, {addend & (1 << 64) - 1}ull}}"
        for i, one in enumerate(kernel.variables)
        for offset, target, addend in one.pointers
    ]
    pieces.append(_table("Variable", "variables", variables))
    pieces.append(_table("Pointer", "pointers", pointers))
    pieces.append(_table("Place", "places", [f'{{{line}, "{_escaped(text)}"}}' for line, text in places]))
    pieces.append(_table("uint32_t", "offsets", [str(one) for one in offsets]))
    pieces.append(_table("uint32_t", "sizes", [str(one.size) for one in entry.parameters]))
    pieces.append(
        "const Code code = {&dca_kernel, blocks, "
        f"{rows[2]}, {rows[4]}, {rows[8]}, {predicates}, {len(writers)}, {local}, {layout.dynamic_align}, "
        f"{threads}, {_MOST_SHARED}, {{{exact3[0]}, {exact3[1]}, {exact3[2]}}}, {apart}, "
        f"variables, {len(variables)}, pointers, {len(pointers)}, places, {len(places)}}};"
    )
    pieces.append("}  // namespace dca")
    names = f'"{kernel.entry}", {len(offsets)}, dca::offsets, dca::sizes'
    facts = f'{_parameter_bytes(entry)}, {layout.shared_bytes}, {threads}, "{_escaped(kernel.source.target)}"'
    pieces.append(f'extern "C" const DcaKernel dca_kernel = {{DCA_EMULATION_ABI, {names}, {facts}}};')
    return "\n".join(pieces) + "\n"


def _table(kind: str, name: str, rows: list[str]) -> str:
    """A constant array; C++ has none without elements."""
    return f"static const {kind} {name}[] = {{{', '.join(rows) or '{}'}}};"


def _escaped(text: str) -> str:
    return "".join(
        letter if letter.isalnum() or letter in "_.,:/+- ()" else f"\\{ord(letter) & 0xFF:03o}" for letter in text
    )
