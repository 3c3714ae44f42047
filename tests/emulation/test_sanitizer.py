"""Each fault that a launch is checked for is found in a kernel that has it, and not in its near twin that has not."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from dca.emulation.kernels import compiled
from dca.foundation.store import Store
from tests.support.launch import ADDRESSES, RACES, SHARED, Finding, Launch, launch

# Kind of finding, the words of the faulty line, the faulty instructions, the sound ones. Each of 64 threads has a word
# of `given` (%rd1), of `results` (%rd2) and of shared memory (%r2); %r3 is that of the other warp, %r4 the first one.
WRITTEN = "st.shared.u32 [%r2], %r1; bar.sync 0;"
FLAG = (
    "st.volatile.shared.u32 [%r4], 0; bar.sync 0; setp.lt.u32 %p3, %r1, 32; @%p3 st.volatile.shared.u32 [%r4], {}; "
    "@%p3 ret; $L_skip: ld.volatile.shared.u32 %r5, [%r4]; setp.eq.s32 %p3, %r5, 0; @%p3 bra $L_skip;"
)
# Each lane has its own word, and the next one's address.
OWN = "st.shared.u32 [%r2], %r1; xor.b32 %r5, %r1, 1; mad.lo.s32 %r3, %r5, 4, %r4;"
HALVES = f"{OWN} mov.u32 %r6, 0x55555555; and.b32 %r7, %r1, 1; shl.b32 %r6, %r6, %r7; bar.warp.sync %r6;"
COPY = "cp.async.ca.shared.global [%r2], [%rd1], 4; cp.async.commit_group;"
CASES = {
    "global-read": ("address", "ld.global", "ld.global.u32 %r5, [%rd1+4];", "ld.global.u32 %r5, [%rd1];"),
    "global-write": ("address", "st.global", "st.global.u32 [%rd2+4], %r1;", "st.global.u32 [%rd2], %r1;"),
    "alignment": ("alignment", "ld.global", "ld.global.u32 %r5, [%rd1+2];", "ld.global.u16 %rs1, [%rd1+2];"),
    "shared-write": ("address", "st.shared", "st.shared.u32 [%r2+256], %r1;", "st.shared.u32 [%r2], %r1;"),
    "shared-unwritten": (
        "uninitialized",
        "ld.shared",
        "ld.shared.u32 %r5, [%r2];",
        f"{WRITTEN} ld.shared.u32 %r5, [%r2];",
    ),
    "copy-not-waited": (
        "asynchronous",
        "ld.shared",
        f"{COPY} ld.shared.u32 %r5, [%r2]; cp.async.wait_all;",
        f"{COPY} cp.async.wait_all; ld.shared.u32 %r5, [%r2];",
    ),
    "missing-barrier": (
        "race",
        ".shared",
        f"{WRITTEN} st.shared.u32 [%r2], 7; ld.shared.u32 %r5, [%r3]; bar.sync 0;",
        f"{WRITTEN} st.shared.u32 [%r2], 7; bar.sync 0; ld.shared.u32 %r5, [%r3]; bar.sync 0;",
    ),
    "two-writers": (
        "race",
        "st.shared",
        "shr.u32 %r6, %r1, 5; st.shared.u32 [%r4], %r6;",
        "mov.u32 %r6, 5; st.shared.u32 [%r4], %r6;",
    ),
    # Lanes of one warp: what brings them together is the same as between warps, or bar.warp.sync.
    "lanes-without-a-warp-barrier": (
        "race",
        "ld.shared",
        f"{OWN} ld.shared.u32 %r5, [%r3];",
        f"{OWN} bar.warp.sync -1; ld.shared.u32 %r5, [%r3];",
    ),
    "lanes-that-a-vote-brings-together": (
        "race",
        "st.shared",
        f"{OWN} bar.warp.sync -1; ld.shared.u32 %r5, [%r3]; st.shared.u32 [%r2], 9;",
        f"{OWN} bar.warp.sync -1; ld.shared.u32 %r5, [%r3]; vote.sync.all.pred %p3, %p1, -1; st.shared.u32 [%r2], 9;",
    ),
    # A barrier of the odd lanes and one of the even ones.
    "lanes-of-another-barrier": (
        "race",
        "ld.shared",
        f"{HALVES} ld.shared.u32 %r5, [%r3];",
        f"{HALVES} xor.b32 %r5, %r1, 2; mad.lo.s32 %r3, %r5, 4, %r4; ld.shared.u32 %r5, [%r3];",
    ),
    "volatile-lanes-without-a-warp-barrier": (
        "race",
        "ld.volatile.shared",
        f"{OWN.replace('st.', 'st.volatile.')} ld.volatile.shared.u32 %r5, [%r3];",
        f"{OWN.replace('st.', 'st.volatile.')} bar.warp.sync -1; ld.volatile.shared.u32 %r5, [%r3];",
    ),
    "lanes-of-one-store": (
        "race",
        "st.shared",
        "and.b32 %r5, %r1, 31; setp.eq.s32 %p3, %r1, %r5; @%p3 st.shared.u32 [%r4], %r5;",
        "setp.lt.u32 %p3, %r1, 32; @%p3 st.shared.u32 [%r4], 5;",
    ),
    # The odd lanes go on to the barrier.
    "lanes-missing": (
        "collective",
        "",
        "@%p1 bra $L_skip; shfl.sync.bfly.b32 %r5, %r1, 2, 31, -1; $L_skip: bar.sync 0;",
        "@%p1 bra $L_skip; shfl.sync.bfly.b32 %r5, %r1, 2, 31, 0x55555555; $L_skip: bar.sync 0;",
    ),
    # A mask may name lanes that have ended (PTX ISA, shfl.sync: all non-exited threads), but they have no value.
    "value-of-an-ended-lane": (
        "collective",
        "shfl.sync",
        "@%p1 ret; shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1;",
        "@%p1 ret; shfl.sync.bfly.b32 %r5, %r1, 2, 31, -1;",
    ),
    "value-of-a-lane-outside-of-the-mask": (
        "collective",
        "shfl.sync",
        "mov.u32 %r6, 0x55555555; shl.b32 %r6, %r6, %r5; shfl.sync.bfly.b32 %r5, %r1, 1, 31, %r6;",
        "mov.u32 %r6, 0x55555555; shl.b32 %r6, %r6, %r5; shfl.sync.bfly.b32 %r5, %r1, 2, 31, %r6;",
    ),
    # Warp 1 waits for a flag that warp 0 sets to 0 or to 1.
    "deadlock": (
        "deadlock",
        "ld.volatile.shared",
        FLAG.format(0),
        FLAG.format(1),
    ),
}
ALL = ADDRESSES | SHARED | RACES
# Warp instructions after which a kernel of these has not ended: they have some ten.
BOUND = 1 << 21


def text() -> str:
    """One kernel with every case, sound and faulty, of which its last parameter chooses one."""
    bodies = [line for case, (_, _, faulty, sound) in enumerate(CASES.values()) for line in _cases(case, faulty, sound)]
    return "\n".join(
        [
            ".version 8.4\n.target sm_80\n.address_size 64",
            '.file 1 "cases.cu"',
            ".visible .entry cases(.param .u64 given, .param .u64 results, .param .u32 which)",
            "{",
            ".reg .pred %p<4>; .reg .b16 %rs<4>; .reg .b32 %r<10>; .reg .b64 %rd<8>;",
            ".shared .align 16 .b8 buffer[256];",
            "ld.param.u64 %rd1, [given];",
            "ld.param.u64 %rd2, [results];",
            "ld.param.u32 %r9, [which];",
            "mov.u32 %r1, %tid.x;",
            "mul.wide.u32 %rd3, %r1, 4;",
            "add.s64 %rd1, %rd1, %rd3;",
            "add.s64 %rd2, %rd2, %rd3;",
            "mov.u32 %r4, buffer;",
            "mad.lo.s32 %r2, %r1, 4, %r4;",
            "xor.b32 %r5, %r1, 32;",
            "mad.lo.s32 %r3, %r5, 4, %r4;",
            "and.b32 %r5, %r1, 1;",
            "setp.ne.s32 %p1, %r5, 0;",
            *bodies,
            "ret;",
            "}",
            "",
        ]
    )


def _cases(case: int, *instructions: str) -> list[str]:
    lines = []
    for which, body in enumerate(instructions):
        number = 2 * case + which
        lines += [f"setp.ne.s32 %p2, %r9, {number};", f"@%p2 bra $L_{number};", f".loc 1 {number + 1} 1"]
        lines += body.replace("$L_skip", f"$L_skip{number}").replace("; ", ";\n").split("\n")
        lines += ["ret;", f"$L_{number}:"]
    return lines


@pytest.fixture(scope="module")
def library(cache: Store) -> Path:
    """The kernel, compiled."""
    return compiled(cache, text(), "cases")


def findings(library: Path, number: int, seed: int = 0, checks: int = ALL) -> tuple[Finding, ...]:
    arguments = (bytearray(256), bytearray(256), number.to_bytes(4, "little"))
    wanted = Launch((1, 1, 1), (64, 1, 1), arguments=arguments, seed=seed, checks=checks, bound=BOUND)
    return launch(library, wanted).findings


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_fault_is_found_with_its_place_and_its_twin_is_sound(name: str, library: Path, chance: random.Random) -> None:
    kind, words, _, _ = CASES[name]
    number = 2 * list(CASES).index(name)

    (found,) = findings(library, number)
    assert (found.kind, found.kernel, found.block) == (kind, "cases", (0, 0, 0))
    assert words in text().splitlines()[found.ptx_line - 1]
    assert found.source.endswith(f"cases.cu:{number + 1}")

    for seed in (0, *(chance.getrandbits(60) | 1 for _ in range(50))):
        assert findings(library, number + 1, seed) == (), f"seed {seed}"


@pytest.mark.slow
def test_checks_that_are_off_find_nothing(library: Path) -> None:
    for name, off in (("shared-unwritten", ADDRESSES), ("missing-barrier", ADDRESSES | SHARED)):
        assert findings(library, 2 * list(CASES).index(name), checks=off) == ()
