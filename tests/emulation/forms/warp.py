"""What lanes of a warp and warps of a block do together, and what changes addresses or the order of instructions."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from fractions import Fraction

from tests.emulation.forms import numbers
from tests.emulation.forms.definition import Form, UndefinedError
from tests.emulation.forms.integers import number, width, wrapped
from tests.emulation.forms.kernel import CONSTANTS, Body
from tests.emulation.forms.memory import KINDS, filled_buffer, shared_buffer
from tests.emulation.forms.trial import PART, THREADS, Trial, thread_index

WARP = 32
ALL = 0xFFFFFFFF
_WORDS = PART // 4

Make = Callable[[str, random.Random], list[Trial]]
# A block's words, by thread and index, and a warp's first thread.
Words = Sequence[Sequence[int]]


def _words(data: bytes) -> list[tuple[int, ...]]:
    return [struct.unpack_from(f"<{_WORDS}I", data, thread * PART) for thread in range(THREADS)]


def _left(results: Sequence[Sequence[int]]) -> bytes:
    """Results of a word each; the rest of each thread's part is not written."""
    return b"".join(struct.pack(f"<{len(each)}I", *each).ljust(PART, b"\xcc") for each in results)


def _trial(
    form: str,
    write: Callable[[Body, str, str], None],
    data: bytes,
    expected: Callable[[list[tuple[int, ...]], int, int], Sequence[int]],
) -> Trial:
    """A trial whose results follow from the words of a warp: expected(words of its lanes, lane, thread)."""
    words = _words(data)
    results = []
    for thread in range(THREADS):
        first = thread // WARP * WARP
        results.append(expected(words[first : first + WARP], thread - first, thread))
    return Trial(form, write, data, _left(results))


def _plain(draw: random.Random) -> bytes:
    return draw.randbytes(THREADS * PART)


def _shuffled(how: str, lane: int, by: int, control: int) -> tuple[int, bool]:
    """The lane that a lane reads, and whether it is inside of its segment."""
    by, clamp, segment = by & 31, control & 31, control >> 8 & 31
    most = (lane & segment) | (clamp & ~segment & 31)
    least = lane & segment
    source = {
        "up": lane - by,
        "down": lane + by,
        "bfly": lane ^ by,
        "idx": least | (by & ~segment & 31),
    }[how]
    inside = source >= most if how == "up" else source <= most
    return (source if inside else lane), inside


def _shuffles(text: str, draw: random.Random) -> list[Trial]:
    form = Form(text)
    form.need("sync")
    how = form.need("up", "down", "bfly", "idx")
    form.need("b32")
    trials = []
    # Segments of the whole warp, and of 8 and 16 lanes; distances that are the same in a warp, and that are not.
    for control in (0x1F, 0x181F, 0x100F, 0) if how != "up" else (0, 0x1800, 0x1000):
        for same in (True, False):

            def write(body: Body, given: str, results: str, control: int = control, same: bool = same) -> None:
                value = body.load("b32", given)
                by = "5" if same else body.load("u32", f"{given}+4")
                found, inside = body.register("b32"), body.register("pred")
                body.add(f"{text} {found}|{inside}, {value}, {by}, {control}, -1;")
                body.store("b32", found, results)
                body.store("pred", inside, f"{results}+4")

            def expected(
                words: list[tuple[int, ...]], lane: int, thread: int, control: int = control, same: bool = same
            ) -> Sequence[int]:
                source, inside = _shuffled(how, lane, 5 if same else words[lane][1], control)
                return words[source][0], int(inside)

            trials.append(_trial(text, write, _plain(draw), expected))
    return trials


def _predicates(draw: random.Random) -> bytes:
    """Words whose first is odd in all, none or some lanes of a warp."""
    data = bytearray(_plain(draw))
    kind = draw.choice(["all", "none", "some", "one"])
    for thread in range(THREADS):
        bit = {"all": 1, "none": 0, "some": draw.getrandbits(1), "one": int(thread % WARP == 7)}[kind]
        data[thread * PART] = data[thread * PART] & 0xFE | bit
    return bytes(data)


def _odd(body: Body, given: str) -> str:
    bit, odd = body.register("b32"), body.register("pred")
    body.add(f"and.b32 {bit}, {body.load('b32', given)}, 1;")
    body.add(f"setp.ne.s32 {odd}, {bit}, 0;")
    return odd


def _votes(text: str, draw: random.Random) -> list[Trial]:
    form = Form(text)
    # cub writes .sync after the mode.
    first = form.flag("sync")
    mode = form.need("all", "any", "uni", "ballot")
    if not first:
        form.need("sync")
    form.need("b32" if mode == "ballot" else "pred")
    kind = "b32" if mode == "ballot" else "pred"
    trials = []
    # All lanes; and two groups of lanes that vote apart.
    for halves in (False, True):
        for _ in range(4):

            def write(body: Body, given: str, results: str, halves: bool = halves) -> None:
                odd, found = _odd(body, given), body.register(kind)
                mask = "-1"
                if halves:
                    lane, low, mask = body.register("u32"), body.register("pred"), body.register("u32")
                    body.add(f"and.b32 {lane}, {thread_index(body)}, 16;")
                    body.add(f"setp.eq.s32 {low}, {lane}, 0;")
                    body.add(f"selp.b32 {mask}, 0xFFFF, 0xFFFF0000, {low};")
                body.add(f"{text} {found}, {odd}, {mask};")
                body.store(kind, found, results)

            def expected(words: list[tuple[int, ...]], lane: int, thread: int, halves: bool = halves) -> Sequence[int]:
                group = [i for i in range(WARP) if not halves or i // 16 == lane // 16]
                odd = [words[i][0] & 1 for i in group]
                if mode == "ballot":
                    return [sum((words[i][0] & 1) << i for i in group)]
                return [int({"all": all(odd), "any": any(odd), "uni": len(set(odd)) == 1}[mode])]

            trials.append(_trial(text, write, _predicates(draw), expected))
    return trials


def _few_values(draw: random.Random, same: bool) -> bytes:
    data = bytearray(_plain(draw))
    values = [draw.randbytes(8) for _ in range(1 if same else 3)]
    for thread in range(THREADS):
        data[thread * PART : thread * PART + 8] = draw.choice(values)
    return bytes(data)


def _matches(text: str, draw: random.Random) -> list[Trial]:
    form = Form(text)
    mode = form.need("any", "all")
    form.need("sync")
    kind = form.need("b32", "b64")

    def write(body: Body, given: str, results: str) -> None:
        value, found = body.load(kind, given), body.register("b32")
        if mode == "any":
            body.add(f"{text} {found}, {value}, -1;")
        else:
            agreed = body.register("pred")
            body.add(f"{text} {found}|{agreed}, {value}, -1;")
            body.store("pred", agreed, f"{results}+4")
        body.store("b32", found, results)

    def expected(words: list[tuple[int, ...]], lane: int, thread: int) -> Sequence[int]:
        count = 1 if kind == "b32" else 2
        same = sum((words[i][:count] == words[lane][:count]) << i for i in range(WARP))
        return [same] if mode == "any" else [same if same == ALL else 0, int(same == ALL)]

    return [_trial(text, write, _few_values(draw, same), expected) for same in (True, False, False)]


def _reductions(text: str, draw: random.Random) -> list[Trial]:
    form = Form(text)
    form.need("sync")
    operation = form.need("add", "min", "max", "and", "or", "xor")
    kind = form.need(*(("b32",) if operation in {"and", "or", "xor"} else ("u32", "s32")))

    def write(body: Body, given: str, results: str) -> None:
        found = body.register(kind)
        body.add(f"{text} {found}, {body.load(kind, given)}, -1;")
        body.store(kind, found, results)

    def expected(words: list[tuple[int, ...]], lane: int, thread: int) -> Sequence[int]:
        values = [number(each[0], kind) for each in words]
        total = values[0]
        for value in values[1:]:
            total = {
                "add": total + value,
                "min": min(total, value),
                "max": max(total, value),
                "and": total & value,
                "or": total | value,
                "xor": total ^ value,
            }[operation]
        return [wrapped(total, kind)]

    return [_trial(text, write, _plain(draw), expected)]


def _active(text: str, draw: random.Random) -> list[Trial]:
    """Which lanes are active is not specified where a warp may diverge; a lane that asks is among them."""

    def write(body: Body, given: str, results: str) -> None:
        mask, lane, own, on = (body.register("u32") for _ in range(4))
        body.add(f"{text} {mask};")
        body.add(f"and.b32 {lane}, {thread_index(body)}, 31;")
        body.add(f"shr.u32 {own}, {mask}, {lane};")
        body.add(f"and.b32 {on}, {own}, 1;")
        body.store("u32", on, results)

    return [_trial(text, write, _plain(draw), lambda words, lane, thread: [1])]


def _passed_on(form: str, draw: random.Random, synchronize: Callable[[Body], None], shift: int) -> Trial:
    """Each thread writes a word to shared memory, and after a barrier reads another thread's."""

    def write(body: Body, given: str, results: str) -> None:
        address = shared_buffer(body)
        body.add(f"st.shared.u32 [{address}], {body.load('u32', given)};")
        synchronize(body)
        thread, other, base, place, found = (body.register("u32") for _ in range(5))
        body.add(f"xor.b32 {thread}, {thread_index(body)}, {shift};")
        body.add(f"mov.u32 {base}, buffer;")
        body.add(f"mad.lo.s32 {place}, {thread}, 16, {base};")
        body.add(f"mov.u32 {other}, {place};")
        body.add(f"ld.shared.u32 {found}, [{other}];")
        body.store("u32", found, results)
        body.add("bar.sync 0;")

    data = _plain(draw)
    words = _words(data)
    return _trial(form, write, data, lambda _, lane, thread: [words[thread ^ shift][0]])


def _barriers(text: str, draw: random.Random) -> list[Trial]:
    def written(operands: str) -> Callable[[Body], None]:
        return lambda body: body.add(f"{text} {operands};")

    return [_passed_on(text, draw, written(each), 33) for each in ("0", f"1, {THREADS}")]


def _warp_barriers(text: str, draw: random.Random) -> list[Trial]:
    return [_passed_on(text, draw, lambda body: body.add(f"{text} -1;"), 17)]


def _arrivals(text: str, draw: random.Random) -> list[Trial]:
    """The first warp writes and arrives; the second one waits and reads."""

    def write(body: Body, given: str, results: str) -> None:
        address = shared_buffer(body)
        body.add(f"st.shared.u32 [{address}], {body.load('u32', given)};")
        first, early, end = body.register("pred"), body.label(), body.label()
        sync = "barrier.sync" if text.startswith("barrier") else "bar.sync"
        place, found = body.register("u32"), body.register("u32")
        body.add(f"setp.lt.u32 {first}, {thread_index(body)}, 32;")
        body.add(f"@{first} bra {early};")
        body.add(f"{sync} 1, {THREADS};")
        body.add(f"sub.s32 {place}, {address}, 512;")
        body.add(f"ld.shared.u32 {found}, [{place}];")
        body.store("u32", found, results)
        body.add(f"bra.uni {end};")
        body.lines.append(f"{early}:")
        body.add(f"{text} 1, {THREADS};")
        body.lines.append(f"{end}:")
        body.add("bar.sync 0;")

    data = _plain(draw)
    words = _words(data)
    return [_trial(text, write, data, lambda _, lane, thread: [] if thread < WARP else [words[thread - WARP][0]])]


def _barrier_reductions(text: str, draw: random.Random) -> list[Trial]:
    operation = text.split(".")[2]

    def write(body: Body, given: str, results: str) -> None:
        kind = "u32" if operation == "popc" else "pred"
        odd, found = _odd(body, given), body.register(kind)
        body.add(f"{text} {found}, 0, {odd};")
        body.store(kind, found, results)

    trials = []
    for _ in range(4):
        data = _predicates(draw)
        odd = [each[0] & 1 for each in _words(data)]
        total = {"popc": sum(odd), "and": int(all(odd)), "or": int(any(odd))}[operation]
        right = struct.pack("<I", total).ljust(PART, b"\xcc")
        trials.append(Trial(text, write, data, THREADS * right))
    return trials


def _matrices(text: str, draw: random.Random) -> list[Trial]:
    """ldmatrix: each lane's 16 bytes are a row of a matrix of 8 by 8; stmatrix is the inverse."""
    form = Form(text)
    form.need("sync")
    form.need("aligned")
    form.choice("m8n8")
    count = int(form.need("x1", "x2", "x4")[1:])
    transposed = form.flag("trans")
    form.choice("m8n8")
    form.need("shared", "shared::cta")
    form.need("b16")
    loads = form.opcode == "ldmatrix"

    def write(body: Body, given: str, results: str) -> None:
        address = filled_buffer(body, given)
        body.add("bar.sync 0;")
        names = [body.register("b32") for _ in range(count)]
        listed = "{" + ", ".join(names) + "}"
        if loads:
            body.add(f"{text} {listed}, [{address}];")
            for i, name in enumerate(names):
                body.store("b32", name, f"{results}+{4 * i}")
        else:
            for i, name in enumerate(names):
                body.add(f"ld.global.u32 {name}, [{given}+{16 + 4 * i}];")
            body.add(f"{text} [{address}], {listed};")
            body.add("bar.sync 0;")
            for i in range(0, 16, 4):
                word = body.register("u32")
                body.add(f"ld.shared.u32 {word}, [{address}+{i}];")
                body.store("u32", word, f"{results}+{i}")
        body.add("bar.sync 0;")

    def element(words: list[tuple[int, ...]], matrix: int, row: int, column: int) -> int:
        return words[8 * matrix + row][column // 2] >> 16 * (column % 2) & 0xFFFF

    def loaded(words: list[tuple[int, ...]], lane: int, thread: int) -> Sequence[int]:
        found = []
        for i in range(count):
            places = [(lane // 4, 2 * (lane % 4) + k) for k in range(2)]
            low, high = (element(words, i, *(reversed(each) if transposed else each)) for each in places)
            found.append(high << 16 | low)
        return found

    def stored(words: list[tuple[int, ...]], lane: int, thread: int) -> Sequence[int]:
        if lane >= 8 * count:
            return words[lane][:4]
        matrix, row = divmod(lane, 8)
        elements = []
        for column in range(8):
            r, c = (column, row) if transposed else (row, column)
            register = words[4 * r + c // 2][4 + matrix]
            elements.append(register >> 16 * (c % 2) & 0xFFFF)
        return [elements[2 * i + 1] << 16 | elements[2 * i] for i in range(4)]

    return [_trial(text, write, _plain(draw), loaded if loads else stored)]


def _product(text: str) -> tuple[int, str]:
    """The depth of a product, and the type of its factors."""
    form = Form(text)
    for each in ("sync", "aligned"):
        form.need(each)
    depth = 16 if form.need("m16n8k16", "m16n8k8") == "m16n8k16" else 8
    for each in ("row", "col", "f32"):
        form.need(each)
    kind = form.need("f16", "bf16")
    form.need(kind)
    form.need("f32")
    return depth, kind


def _products(text: str, draw: random.Random) -> list[Trial]:
    """mma: small integers, whose sums are exact in any order, then numbers whose sums may be rounded differently."""
    depth, kind = _product(text)
    of_a, of_b = depth // 4, depth // 8

    def write(body: Body, given: str, results: str) -> None:
        a = [body.load("b32", f"{given}+{4 * i}") for i in range(of_a)]
        b = [body.load("b32", f"{given}+{16 + 4 * i}") for i in range(of_b)]
        c = [body.load("f32", f"{given}+{32 + 4 * i}") for i in range(4)]
        d = [body.register("f32") for _ in range(4)]
        body.add(f"{text} " + ", ".join("{" + ", ".join(each) + "}" for each in (d, a, b, c)) + ";")
        for i, name in enumerate(d):
            body.store("f32", name, f"{results}+{4 * i}")

    def element(word: int, half: int) -> Fraction:
        return numbers.decode(word >> 16 * half & 0xFFFF, kind).exact

    def exact(words: list[tuple[int, ...]], lane: int) -> list[tuple[Fraction, Fraction]]:
        """The four sums of a lane, and the sums of the magnitudes of their terms."""
        found = []
        for i in range(4):
            row, column = lane // 4 + 8 * (i // 2), 2 * (lane % 4) + i % 2
            terms = [numbers.decode(words[lane][8 + i], "f32").exact]
            for k in range(depth):
                of_row = words[4 * (row % 8) + k % 8 // 2][row // 8 + 2 * (k // 8)]
                of_column = words[4 * column + k % 8 // 2][4 + k // 8]
                terms.append(element(of_row, k % 2) * element(of_column, k % 2))
            found.append((sum(terms, Fraction(0)), sum(map(abs, terms), Fraction(0))))
        return found

    def expected(words: list[tuple[int, ...]], lane: int, thread: int) -> Sequence[int]:
        return [numbers.encode(numbers.of(total), "f32") for total, _ in exact(words, lane)]

    integers = _halves(draw, kind, lambda: Fraction(draw.randrange(-12, 13)))
    rounded = _halves(draw, kind, lambda: Fraction(draw.randrange(-2000, 2000), 1 << draw.randrange(16)))

    def near(found: bytes) -> str:
        words, got = _words(rounded), _words(found)
        for thread in range(THREADS):
            first = thread // WARP * WARP
            for i, (total, most) in enumerate(exact(words[first : first + WARP], thread - first)):
                # Each of the sums may be rounded once, down or to the nearest.
                allowed = most * (depth + 1) / (1 << 23)
                value = numbers.decode(got[thread][i], "f32")
                if value.nan or value.infinite or abs(value.exact - total) > allowed:
                    return f"thread {thread} left {float(value.exact)}, expected {float(total)} within {float(allowed)}"
        return ""

    return [_trial(text, write, integers, expected), Trial(text, write, rounded, b"", near)]


def _halves(draw: random.Random, kind: str, value: Callable[[], Fraction]) -> bytes:
    """Eight words of pairs of 16-bit numbers, then eight of f32, for each thread."""
    data = b""
    for _ in range(THREADS):
        for _ in range(16):
            data += numbers.encode(numbers.of(value()), kind).to_bytes(2, "little")
        for _ in range(8):
            data += numbers.encode(numbers.of(value()), "f32").to_bytes(4, "little")
    return data


def _copies(text: str, draw: random.Random) -> list[Trial]:
    """cp.async of each size, whole and with fewer bytes to read; the rest is zeros."""
    form = Form(text)
    form.need("async")
    if form.choice("commit_group", "wait_group", "wait_all"):
        return [_copy("cp.async.ca.shared.global", text, 16, 16, draw)]
    cache = form.need("ca", "cg")
    form.need("shared", "shared::cta")
    form.need("global")
    form.choice("L2::64B", "L2::128B", "L2::256B")
    form.definition((), (), lambda: 0)
    trials = []
    for size in (16,) if cache == "cg" else (4, 8, 16):
        trials += [_copy(text, text, size, read, draw) for read in (size, size // 2, 0)]
    return trials


def _copy(text: str, form: str, size: int, read: int, draw: random.Random) -> Trial:
    def write(body: Body, given: str, results: str) -> None:
        address = filled_buffer(body, f"{given}") if size < 16 else shared_buffer(body)
        source = body.register("u64")
        body.add(f"add.s64 {source}, {given}, 32;")
        limit = f", {read}" if read < size else ""
        body.add(f"{text} [{address}], [{source}], {size}{limit};")
        if form.endswith("wait_all"):
            body.add("cp.async.wait_all;")
        else:
            # A later group need not have ended.
            body.add("cp.async.commit_group;")
            body.add("cp.async.commit_group;")
            body.add("cp.async.wait_group 1;")
        for i in range(0, 16, 4):
            word = body.register("u32")
            body.add(f"ld.shared.u32 {word}, [{address}+{i}];")
            body.store("u32", word, f"{results}+{i}")
        body.add("cp.async.wait_all;")

    data = _plain(draw)
    right = b""
    for thread in range(THREADS):
        part = data[thread * PART : (thread + 1) * PART]
        right += (part[32 : 32 + read].ljust(size, b"\0") + part[size:16]).ljust(PART, b"\xcc")
    return Trial(form, write, data, right)


def _address_spaces(text: str, draw: random.Random) -> list[Trial]:
    """cvta: to a generic address, or back from it; what lies there is read through both."""
    form = Form(text)
    to = form.flag("to")
    space = form.need("global", "shared", "local", "const", "param")
    form.need("u64")

    def write(body: Body, given: str, results: str) -> None:
        if space.startswith("shared") or space == "local":
            here = filled_buffer(body, given) if space != "local" else _local(body, given)
        elif space == "global":
            here = given
        else:
            here = "table" if space == "const" else "constants"
            if space == "const":
                body.module[f".const .align 16 .b8 table[16] = {{{', '.join(map(str, CONSTANTS))}}};"] = None
        start, generic, found = body.register("u64"), body.register("u64"), body.register("u32")
        body.add(f"{'cvt.u64.u32' if space.startswith('shared') else 'mov.b64'} {start}, {here};")
        body.add(f"cvta.{space}.u64 {generic}, {start};")
        if to:
            back = body.register("u64")
            body.add(f"{text} {back}, {generic};")
            body.add(f"ld.{space}.u32 {found}, [{back}+4];")
        else:
            body.add(f"ld.u32 {found}, [{generic}+4];")
        body.store("u32", found, results)

    constant = int.from_bytes(CONSTANTS[4:8], "little")
    inside = space in {"const", "param"}
    return [_trial(text, write, _plain(draw), lambda words, lane, thread: [constant if inside else words[lane][1]])]


def _local(body: Body, given: str) -> str:
    body.declarations["\t.local .align 16 .b8 depot[16];"] = None
    address = body.register("u64")
    body.add(f"mov.u64 {address}, depot;")
    for i in range(0, 16, 4):
        body.add(f"st.local.u32 [{address}+{i}], {body.load('u32', f'{given}+{i}')};")
    return address


def _space_tests(text: str, draw: random.Random) -> list[Trial]:
    space = text.split(".")[1].removesuffix("::cta")

    def write(body: Body, given: str, results: str) -> None:
        shared, local = filled_buffer(body, given), _local(body, given)
        generic = [body.register("u64") for _ in range(4)]
        body.add(f"cvt.u64.u32 {generic[3]}, {shared};")
        body.add(f"cvta.shared.u64 {generic[0]}, {generic[3]};")
        body.add(f"cvta.local.u64 {generic[1]}, {local};")
        body.add(f"cvta.global.u64 {generic[2]}, {given};")
        for i in range(3):
            inside = body.register("pred")
            body.add(f"{text} {inside}, {generic[i]};")
            body.store("pred", inside, f"{results}+{4 * i}")

    right = [int(space == each) for each in ("shared", "local", "global")]
    return [_trial(text, write, _plain(draw), lambda words, lane, thread: right)]


def _no_effect(text: str, draw: random.Random) -> list[Trial]:
    """Fences, hints and waits, after which everything is as before."""
    operands = {"prefetch": "[{given}]", "nanosleep": "20"}

    def write(body: Body, given: str, results: str) -> None:
        value = body.load("u32", given)
        operand = operands.get(text.split(".")[0], "").format(given=given)
        body.add(f"{text} {operand};" if operand else f"{text};")
        body.store("u32", value, results)

    return [_trial(text, write, _plain(draw), lambda words, lane, thread: [words[lane][0]])]


def _branches(text: str, draw: random.Random) -> list[Trial]:
    """A loop that each lane leaves at another time, or all lanes together."""
    uniform = text.endswith("uni")

    def write(body: Body, given: str, results: str) -> None:
        count, left, total, done = (*(body.register("u32") for _ in range(3)), body.register("pred"))
        top, end = body.label(), body.label()
        body.add(f"and.b32 {count}, {body.load('u32', given)}, 15;")
        body.add(f"mov.u32 {left}, {'9' if uniform else count};")
        body.add(f"mov.u32 {total}, 0;")
        body.lines.append(f"{top}:")
        body.add(f"setp.eq.s32 {done}, {left}, 0;")
        body.add(f"@{done} {text} {end};")
        body.add(f"add.s32 {total}, {total}, {left};")
        body.add(f"sub.s32 {left}, {left}, 1;")
        body.add(f"{text} {top};")
        body.lines.append(f"{end}:")
        body.store("u32", total, results)

    def expected(words: list[tuple[int, ...]], lane: int, thread: int) -> Sequence[int]:
        count = 9 if uniform else words[lane][0] & 15
        return [count * (count + 1) // 2]

    return [_trial(text, write, _plain(draw), expected)]


def _switches(text: str, draw: random.Random) -> list[Trial]:
    uniform = text.endswith("uni")

    def write(body: Body, given: str, results: str) -> None:
        index, found = body.register("u32"), body.register("u32")
        targets, name, end = [body.label() for _ in range(4)], body.label(), body.label()
        body.add(f"and.b32 {index}, {body.load('u32', given)}, 3;")
        if uniform:
            body.add(f"mov.u32 {index}, 2;")
        body.lines.append(f"{name}: .branchtargets {', '.join(targets)};")
        body.add(f"{text} {index}, {name};")
        for i, target in enumerate(targets):
            body.lines.append(f"{target}:")
            body.add(f"mov.u32 {found}, {100 + i};")
            body.add(f"bra {end};")
        body.lines.append(f"{end}:")
        body.store("u32", found, results)

    return [
        _trial(text, write, _plain(draw), lambda words, lane, thread: [102 if uniform else 100 + (words[lane][0] & 3)])
    ]


def _function(returns: str) -> str:
    """A device function that returns early for odd numbers."""
    return f""".func (.param .b32 result) mixed_{returns.replace(".", "_")}(.param .b32 first, .param .b64 second)
{{
	.reg .pred %p<2>;
	.reg .b32 %r<6>;
	.reg .b64 %rd<3>;
	ld.param.u32 %r1, [first];
	ld.param.u64 %rd1, [second];
	cvt.u32.u64 %r2, %rd1;
	and.b32 %r3, %r1, 1;
	setp.eq.s32 %p1, %r3, 0;
	@%p1 bra $L_even;
	add.s32 %r4, %r1, %r2;
	st.param.b32 [result], %r4;
	{returns};
$L_even:
	xor.b32 %r5, %r1, %r2;
	st.param.b32 [result], %r5;
	{returns};
}}
"""


def _calls(text: str, draw: random.Random) -> list[Trial]:
    opcode = text.split(".")[0]
    call, returns = (text, "ret") if opcode == "call" else ("call.uni", text)

    def write(body: Body, given: str, results: str) -> None:
        body.module[_function(returns)] = None
        first, second, found = body.load("b32", given), body.load("b64", f"{given}+8"), body.register("b32")
        body.add("{")
        body.add(".param .b32 a0; .param .b64 a1; .param .b32 back;")
        body.add(f"st.param.b32 [a0], {first};")
        body.add(f"st.param.b64 [a1], {second};")
        body.add(f"{call} (back), mixed_{returns.replace('.', '_')}, (a0, a1);")
        body.add(f"ld.param.b32 {found}, [back];")
        body.add("}")
        body.store("b32", found, results)

    def expected(words: list[tuple[int, ...]], lane: int, thread: int) -> Sequence[int]:
        first, second = words[lane][0], words[lane][2]
        return [(first + second) & ALL if first & 1 else first ^ second]

    # Whether the lanes of a warp return together: ret.uni says so.
    data = bytearray(_plain(draw))
    for thread in range(THREADS):
        if returns.endswith("uni"):
            data[thread * PART] |= 1
    return [_trial(text, write, bytes(data), expected)]


def _arguments(text: str, draw: random.Random) -> list[Trial]:
    """st.param: an argument of a function that gives its bytes back."""
    form = Form(text)
    form.need("param")
    vector = form.choice("v2", "v4")
    count, kind = int(vector[1:]) if vector else 1, form.need(*KINDS)
    size = count * width(kind) // 8
    register = f"{kind[0]}16" if width(kind) == 8 else kind

    def write(body: Body, given: str, results: str) -> None:
        body.module[_ECHO] = None
        names = [body.load(register, f"{given}+{32 + 8 * i}") for i in range(count)]
        listed = names[0] if count == 1 else "{" + ", ".join(names) + "}"
        body.add("{")
        body.add(".param .align 16 .b8 a0[16]; .param .align 16 .b8 back[16];")
        for i in range(0, 16, 4):
            body.add(f"st.param.b32 [a0+{i}], {body.load('b32', f'{given}+{i}')};")
        body.add(f"{text} [a0], {listed};")
        body.add("call.uni (back), echo, (a0);")
        for i in range(0, 16, 4):
            word = body.register("b32")
            body.add(f"ld.param.b32 {word}, [back+{i}];")
            body.store("b32", word, f"{results}+{i}")
        body.add("}")

    def expected(words: list[tuple[int, ...]], lane: int, thread: int) -> Sequence[int]:
        whole = struct.pack(f"<{_WORDS}I", *words[lane])
        stored = b"".join(whole[32 + 8 * i : 32 + 8 * i + size // count] for i in range(count))
        return struct.unpack("<4I", stored + whole[size:16])

    return [_trial(text, write, _plain(draw), expected)]


_ECHO = """.func (.param .align 16 .b8 result[16]) echo(.param .align 16 .b8 first[16])
{
	.reg .b32 %r<5>;
	ld.param.u32 %r1, [first];
	ld.param.u32 %r2, [first+4];
	ld.param.u32 %r3, [first+8];
	ld.param.u32 %r4, [first+12];
	st.param.b32 [result], %r1;
	st.param.b32 [result+4], %r2;
	st.param.b32 [result+8], %r3;
	st.param.b32 [result+12], %r4;
	ret;
}
"""


MAKERS: dict[str, Make] = {
    "shfl": _shuffles,
    "vote": _votes,
    "match": _matches,
    "redux": _reductions,
    "activemask": _active,
    "ldmatrix": _matrices,
    "stmatrix": _matrices,
    "mma": _products,
    "cp": _copies,
    "cvta": _address_spaces,
    "isspacep": _space_tests,
    **dict.fromkeys(("membar", "fence", "nanosleep", "griddepcontrol", "prefetch"), _no_effect),
    "bra": _branches,
    "brx": _switches,
    "call": _calls,
    "ret": _calls,
}


def trials(text: str, draw: random.Random) -> list[Trial]:
    """The trials of a form.

    Raises:
        UndefinedError: if it is none of these.
    """
    opcode, *modifiers = text.split(".")
    if text.startswith("st.param."):
        return _arguments(text, draw)
    if opcode in {"bar", "barrier"}:
        if modifiers[0] == "warp":
            return _warp_barriers(text, draw)
        if "arrive" in modifiers:
            return _arrivals(text, draw)
        return (_barrier_reductions if "red" in modifiers else _barriers)(text, draw)
    if opcode not in MAKERS:
        raise UndefinedError(text)
    return MAKERS[opcode](text, draw)
