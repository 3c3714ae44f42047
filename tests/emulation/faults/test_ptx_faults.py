"""Single faults in PTX text, drawn by the commit: each is found, or gives the same bytes in every run.

In `make prove` they are put into the official sparse kernels and the wheel's index conversion; elsewhere into a small
kernel that has an instruction of each kind.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dca.catalogue import kept_ptx
from dca.foundation.store import Store
from tests.emulation import sparse, test_official
from tests.emulation.faults import examination, ptx_faults
from tests.emulation.faults.examination import Subject
from tests.support import launch

COUNT = 8
# Each thread copies two floats, adds a neighbour's product to its own, takes the larger of two and stores it as
# bfloat16.
SMALL = """\
.version 8.0
.target sm_80
.address_size 64
.visible .entry small(.param .u64 given, .param .u64 results, .param .u32 count)
{
.reg .pred %p<5>; .reg .b16 %h<4>; .reg .b32 %r<20>; .reg .f32 %f<12>; .reg .b64 %rd<9>;
.shared .align 16 .b8 s[1024];
ld.param.u64 %rd1, [given];
ld.param.u64 %rd2, [results];
ld.param.u32 %r1, [count];
mov.u32 %r2, %tid.x;
setp.ge.u32 %p1, %r2, %r1;
mul.wide.u32 %rd3, %r2, 8;
add.s64 %rd4, %rd1, %rd3;
shl.b32 %r3, %r2, 3;
mov.u32 %r4, s;
add.s32 %r5, %r4, %r3;
cp.async.ca.shared.global [%r5], [%rd4], 8;
cp.async.commit_group;
cp.async.wait_group 0;
bar.sync 0;
xor.b32 %r6, %r2, 33;
shl.b32 %r7, %r6, 3;
add.s32 %r8, %r4, %r7;
ld.shared.f32 %f1, [%r5];
ld.shared.f32 %f2, [%r8+4];
mul.f32 %f3, %f1, %f2;
mov.b32 %r9, %f3;
shfl.sync.bfly.b32 %r10, %r9, 5, 0x181f, -1;
mov.b32 %f4, %r10;
add.f32 %f5, %f3, %f4;
setp.lt.f32 %p2, %f5, %f1;
selp.f32 %f6, %f1, %f5, %p2;
and.b32 %r11, %r2, 3;
setp.ne.s32 %p3, %r11, 2;
@%p3 bra $L1;
sub.f32 %f6, %f6, %f2;
$L1:
cvt.rn.bf16.f32 %h1, %f6;
add.s32 %r12, %r2, -40;
shr.s32 %r13, %r12, 2;
max.s32 %r13, %r13, -7;
mul.wide.s32 %rd5, %r2, 4;
add.s64 %rd6, %rd2, %rd5;
@%p1 bra $L2;
st.global.u16 [%rd6], %h1;
cvt.u16.u32 %h2, %r13;
st.global.u16 [%rd6+2], %h2;
$L2:
ret;
}
"""
THREADS = 100


@dataclass(frozen=True)
class SmallRun:
    """The small kernel on drawn numbers."""

    given: bytes
    written: bytearray = field(default_factory=lambda: bytearray(4 * THREADS))

    def launch(self, seed: int, checks: int) -> launch.Launch:
        """As in Run."""
        self.written[:] = b"\xff" * len(self.written)
        arguments = (bytearray(self.given), self.written, struct.pack("<I", THREADS))
        return launch.Launch((1, 1, 1), (128, 1, 1), 0, arguments, seed, checks, (), 1 << 20)

    def wrong(self) -> str:
        """As in Run."""
        return "" if self.outputs() == self.expected() else "other bytes"

    def expected(self) -> bytes:
        """What it must write."""
        floats = struct.unpack(f"<{len(self.given) // 4}f", self.given)
        products = [_f32(floats[2 * t] * floats[2 * (t ^ 33) + 1]) for t in range(128)]
        out = b""
        for t in range(THREADS):
            value = max(floats[2 * t], _f32(products[t] + products[t ^ 5]))
            if t % 4 == 2:
                value = _f32(value - floats[2 * (t ^ 33) + 1])
            rounded = sparse.encoded(value, sparse.Case(bfloat16=True, causal=False))
            out += struct.pack("<Hh", rounded, max(t - 40 >> 2, -7))
        return out

    def outputs(self) -> bytes:
        """As in Run."""
        return bytes(self.written)


def _f32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def small() -> Subject:
    """The small kernel on three inputs, whose results are known, and on three more."""
    drawn = random.Random(5)
    runs = [SmallRun(struct.pack("<256f", *(drawn.gauss(0, 1) for _ in range(256)))) for _ in range(6)]
    return Subject("small", SMALL, "small", runs[:3], runs[3:])


def examine(subject: Subject, faults: list[ptx_faults.Fault], cache: Store) -> None:
    """Examine faults, and report each and how many there are of each state, for -s."""
    sound, missed = examination.written(subject, cache), []
    for fault in faults:
        verdict = examination.examined(subject, fault.apply(subject.text), cache, sound)
        why = f"{verdict.why}: {fault.harmless}" if verdict.state == "equivalent" else verdict.why
        line = f"{verdict.state} | {subject.name} | {fault} | {why}"
        print(line, flush=True)
        missed += [line] if verdict.state == "missed" else []
    assert not missed


def test_a_fault_of_each_kind_can_be_put_into_the_small_kernel() -> None:
    found = ptx_faults.faults(SMALL, "small")
    assert set(ptx_faults.KINDS) - set(found) == {"a matrix"}
    for each in found.values():
        for fault in each:
            assert fault.apply(SMALL) != SMALL


@pytest.mark.long
@pytest.mark.slow
def test_faults_of_the_small_kernel_are_found(faulty_cache: Store, chance: random.Random) -> None:
    # Each is a compile.
    examine(small(), ptx_faults.drawn(SMALL, "small", 3, chance), faulty_cache)


@pytest.mark.whole
def test_every_fault_of_the_small_kernel_is_found(faulty_cache: Store) -> None:
    every = [fault for each in ptx_faults.faults(SMALL, "small").values() for fault in each]
    examine(small(), every, faulty_cache)


@pytest.mark.whole
@pytest.mark.parametrize("case", test_official.CASES, ids=str)
def test_faults_of_an_official_sparse_kernel_are_found(
    case: sparse.Case, texts: dict[str, str], faulty_cache: Store, chance: random.Random
) -> None:
    name = test_official.symbol(case, texts)
    subject = examination.of_sparse(texts[name], name, case)
    examine(subject, ptx_faults.drawn(texts[name], name, COUNT, chance), faulty_cache)


@pytest.mark.whole
@pytest.mark.parametrize("merged", [False, True])
def test_faults_of_the_wheels_index_conversion_are_found(
    merged: bool, wheel: Path, faulty_cache: Store, chance: random.Random
) -> None:
    kept = kept_ptx.read(kept_ptx.beside(wheel))
    text, entry = next(
        (kept.read(one).decode(), entry)
        for one in kept.manifest.texts
        for entry in one.entries
        if "convert_vertical_slash_indexes_kernel" in entry and ("mergehead" in entry) == merged
    )
    examine(examination.of_conversion(text, entry), ptx_faults.drawn(text, entry, COUNT, chance), faulty_cache)
