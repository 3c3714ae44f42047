"""PTX in, a shared object out; and what is not PTX that is emulated."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet
from pytest_subprocess import FakeProcess

from dca.emulation import forms, kernels
from dca.foundation.errors import DcaError
from dca.foundation.store import Store
from tests.support import launch

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"


def kernel(body: str, before: str = "", parameters: str = ".param .u64 out") -> str:
    """A PTX text with one kernel, `test`, and enough registers."""
    registers = ".reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .f32 %f<9>; .reg .b64 %d<20>;"
    return f"{HEADER}{before}\n.visible .entry test({parameters})\n{{\n{registers}\n{body}\n}}\n"


# Every thread stores %r9 at its number in `out`.
STORE = """
ld.param.u64 %d9, [out];
mov.u32 %r30, %tid.x;
mul.wide.u32 %d8, %r30, 4;
add.s64 %d9, %d9, %d8;
st.global.u32 [%d9], %r9;
ret;
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A cache of this file's own."""
    return Store(tmp_path_factory.mktemp("cache")).open()


def sampled(names: Iterable[str]) -> list[ParameterSet]:
    """A parameter for each name; each is a compile, so that all but two are left to `make prove`."""
    return [pytest.param(name, marks=[pytest.mark.whole] if i > 1 else []) for i, name in enumerate(names)]


def ran(store: Store, text: str, threads: int = 64, checks: int = 7) -> tuple[list[int], tuple[launch.Finding, ...]]:
    """What the threads of one block stored, and what was found."""
    out = bytearray(4 * threads)
    outcome = launch.launch(
        kernels.compiled(store, text, "test"), launch.Launch((1, 1, 1), (threads, 1, 1), 0, (out,), checks=checks)
    )
    return list(struct.unpack(f"<{threads}I", out)), outcome.findings


@pytest.mark.parametrize(
    ("instruction", "form"),
    [
        ("add.rn.rz.f32 %f1, %f2, %f3;", "add.rn.rz.f32"),
        ("ld.global.L3::512B.u32 %r1, [%d1];", "ld.global.L3::512B.u32"),
        ("cvt.rn.relu.satfinite.f16.f32 %h1, %f1;", "cvt.rn.relu.satfinite.f16.f32"),
        ("wgmma.fence.sync.aligned;", "wgmma.fence.sync.aligned"),
        ("atom.global.weird.add.u32 %r1, [%d1], 1;", "atom.global.weird.add.u32"),
    ],
)
def test_a_form_that_is_not_known_is_named_with_its_place(instruction: str, form: str) -> None:
    with pytest.raises(DcaError) as caught:
        kernels.translated(kernel(f"mov.u32 %r1, 1;\n{instruction}\nret;"), "test")

    assert caught.value.code == "DCA-830"
    assert f"`{form}` of test, line 9 " in caught.value.what


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("tex.1d.v4.f32.s32 {%f1, %f2, %f3, %f4}, [%d1, {%r1}];", "`tex.1d.v4.f32.s32` of test, line 8 "),
        ("sust.b.2d.b32.trap [%d1, {%r1, %r2}], {%r3};", "`sust.b.2d.b32.trap` of test, line 8 "),
        (
            "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%d1, {%r2}], [%r4];",
            "`cp.async.bulk.tensor.1d",
        ),
        (
            "{ .param .b32 a; p: .callprototype (.param .b32 _) _ (.param .b32 _); call (a), %d1, (a), p; }",
            "test calls a function through a pointer, at line 8 ",
        ),
        ("call nothing, ();", "the function nothing, which test calls, "),
        ("mov.u32 %r1, %cluster_ctarank;", "the special register %cluster_ctarank, which test reads at line 8 "),
    ],
    ids=["texture", "surface", "tensor", "pointer", "function", "register"],
)
def test_what_is_right_but_not_emulated_is_named(body: str, named: str) -> None:
    text = kernel(f"{body}\nret;")
    with pytest.raises(DcaError) as caught:
        kernels.translated(text, "test")

    assert caught.value.code == "DCA-830"
    assert named in caught.value.what
    # The other forms of such a text can be listed.
    assert forms.forms_of(text)["ret"] == 1


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no .version"),
        (".target sm_80\n", "does not begin with .version"),
        (".version 1.4\n.target sm_10\n", "the version 1.4"),
        (".version 42.0\n.target sm_80\n", "the version 42.0"),
        (HEADER.replace("64", "32"), "addresses of 32 bits"),
        (HEADER + "\x01", "unexpected"),
        (HEADER + ".surface x;", "is not known"),
        (kernel("bra $L9;"), "the label $L9 is not there"),
        (kernel("add.s32 %r1, %r2;"), "has 2 operands"),
        (kernel("add.s32 %r1, %d2, 1;"), ".b64 where a .s32"),
        (kernel("add.f32 %f1, %f2, 1;"), "an integer where a float"),
        (kernel("st.global.u32 [nowhere], %r1;"), "the name nowhere is not known"),
        (kernel("ld.global.u32 %r1, [%d1, {%r2}];"), "is no address"),
        (kernel("ld.param.u64 %d1, [out+8];"), "after the kernel's parameters"),
        (kernel("@%r1 ret;"), "no predicate register"),
    ],
)
def test_damaged_text_ends_with_its_line(text: str, why: str) -> None:
    with pytest.raises(DcaError) as caught:
        kernels.translated(text, "test")

    assert caught.value.code == "DCA-831"
    assert why in caught.value.what


def test_a_text_cut_anywhere_ends_with_one_error() -> None:
    text = kernel(
        "$L1: add.s32 %r1, %r2, 3;\n@%p1 bra $L1;\nst.shared.u32 [s+4], %r1;" + STORE, ".shared .align 4 .b8 s[8];"
    )
    for end in range(0, text.rindex("}"), 3):
        with pytest.raises(DcaError) as caught:
            kernels.translated(text[:end], "test")
        assert caught.value.code in ("DCA-830", "DCA-831", "DCA-832"), text[:end]


def test_a_kernel_that_is_not_there_is_named() -> None:
    with pytest.raises(DcaError) as caught:
        kernels.translated(kernel("ret;"), "other")

    assert (caught.value.code, caught.value.what) == ("DCA-832", "the PTX has no kernel other.")


def test_recursion_is_refused() -> None:
    text = kernel("call f, ();\nret;", ".func f()\n{\ncall f, ();\nret;\n}")
    with pytest.raises(DcaError) as caught:
        kernels.translated(text, "test")

    assert caught.value.code == "DCA-830"


def test_forms_are_counted_as_they_are_written() -> None:
    text = kernel("add.s32 %r1, %r2, 3; @%p1 add.s32 %r1, %r2, 4; foo.bar.u32 %r1; { mov.b32 %r1, {%h1, %h2}; } ret;")

    assert forms.forms_of(text) == {"add.s32": 2, "foo.bar.u32": 1, "mov.b32": 1, "ret": 1}
    assert forms.forms_of(text, ["other"]) == {}
    assert "add.s32" in forms.KNOWN
    assert "foo.bar.u32" not in forms.KNOWN


def test_a_compiler_that_fails_leaves_nothing_behind(
    fp: FakeProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path / "cache").open()
    broken = tmp_path / "g++"
    broken.write_text(
        "#!/bin/sh\ncase $1 in --version) echo broken 1.0;; *) echo cc1plus: out of memory; exit 4;; esac\n"
    )
    broken.chmod(0o755)
    fp.allow_unregistered(allow=True)
    monkeypatch.setattr(kernels, "_compiler", lambda: (broken, "broken 1.0"))

    with pytest.raises(DcaError) as caught:
        kernels.compiled(store, kernel("ret;"), "test")

    assert (caught.value.code, caught.value.why) == ("DCA-833", "cc1plus: out of memory")
    assert not list((store.root / "emulated").iterdir())


def test_without_a_compiler_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._compiler.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DcaError) as caught:
        kernels.compiled(Store(tmp_path / "cache").open(), kernel("ret;"), "test")

    assert caught.value.code == "DCA-103"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "block", "shared", "arguments"),
    [
        ((1, 1, 1), (65, 1, 1), 0, 1),
        ((1, 1, 1), (8, 9, 1), 0, 1),
        ((0, 1, 1), (32, 1, 1), 0, 1),
        ((1, 70000, 1), (32, 1, 1), 0, 1),
        ((1, 1, 1), (1, 1, 65), 0, 1),
        ((1, 1, 1), (32, 1, 1), 233_000, 1),
        ((1, 1, 1), (32, 1, 1), 0, 2),
    ],
)
def test_a_launch_over_the_limits_is_refused(
    store: Store, grid: tuple[int, int, int], block: tuple[int, int, int], shared: int, arguments: int
) -> None:
    text = kernel("ret;").replace("out)\n{", "out)\n.maxntid 64, 1, 1\n{")
    wanted = launch.Launch(grid, block, shared, (bytearray(4),) * arguments)
    with pytest.raises(DcaError) as caught:
        launch.launch(kernels.compiled(store, text, "test"), wanted)

    assert caught.value.code == "DCA-832"


CONTROL: dict[str, tuple[str, str, Callable[[int], int]]] = {
    # Odd lanes take three rounds, even ones one; together again they vote.
    "a loop that lanes leave apart": (
        """
        mov.u32 %r30, %tid.x; and.b32 %r1, %r30, 1; mov.u32 %r9, 0;
        $L1: add.s32 %r9, %r9, 1; setp.ge.u32 %p1, %r9, 3; setp.eq.u32 %p2, %r1, 0; or.pred %p1, %p1, %p2;
        @%p1 bra $L2; bra $L1;
        $L2: vote.sync.ballot.b32 %r2, %p2, 0xffffffff; add.s32 %r9, %r9, %r2;
        """,
        "",
        lambda t: 0x55555555 + (3 if t % 2 else 1),
    ),
    # Each half of a warp shuffles by itself, with its mask in a register.
    "a shuffle of a half": (
        """
        mov.u32 %r30, %tid.x; and.b32 %r1, %r30, 16; mov.u32 %r2, 0xffff; shl.b32 %r2, %r2, %r1;
        setp.eq.u32 %p1, %r1, 0; @%p1 bra $L1;
        shfl.sync.bfly.b32 %r9, %r30, 1, 31, %r2; bra $L2;
        $L1: shfl.sync.bfly.b32 %r9, %r30, 3, 31, %r2;
        $L2:
        """,
        "",
        lambda t: t ^ (1 if t & 16 else 3),
    ),
    # The lanes come to the same vote at different times, through a function for some of them.
    "a vote that waits": (
        """
        mov.u32 %r30, %tid.x; and.b32 %r1, %r30, 3; setp.eq.u32 %p1, %r1, 2; mov.u32 %r9, 7;
        @!%p1 bra $L1;
        { .param .b32 in; st.param.b32 [in], %r30; .param .b32 back;
        call.uni (back), f, (in); ld.param.b32 %r9, [back]; }
        $L1: vote.sync.ballot.b32 %r2, %p1, 0xffffffff; add.s32 %r9, %r9, %r2;
        """,
        """.func (.param .b32 got) f(.param .b32 in)
        { .reg .b32 %r<3>; ld.param.b32 %r1, [in]; mul.lo.s32 %r2, %r1, 10; st.param.b32 [got], %r2; ret; }""",
        lambda t: (10 * t if t % 4 == 2 else 7) + 0x44444444,
    ),
    # The odd lanes end while the even ones wait for them.
    "a vote of those that are left": (
        """
        mov.u32 %r30, %tid.x; and.b32 %r1, %r30, 1; setp.ne.u32 %p1, %r1, 0; setp.lt.u32 %p2, %r30, 40;
        @%p1 bra $L1;
        vote.sync.ballot.b32 %r9, %p2, 0xffffffff; bra $L2;
        $L1: add.s32 %r9, %r1, 1; ret;
        $L2:
        """,
        "",
        lambda t: 0 if t % 2 else 0x55555555 if t < 32 else 0x55,
    ),
    # Lanes in one function that come from two calls of it are not active together.
    "a function that is called from two places": (
        """
        mov.u32 %r30, %tid.x; and.b32 %r1, %r30, 1; setp.ne.u32 %p1, %r1, 0; { .param .b32 back;
        @%p1 bra $L1;
        call.uni (back), f, (); ld.param.b32 %r9, [back]; bra $L2;
        $L1: call.uni (back), f, (); ld.param.b32 %r9, [back];
        $L2: }
        """,
        ".func (.param .b32 got) f()\n{ .reg .b32 %r<2>; activemask.b32 %r1; st.param.b32 [got], %r1; ret; }",
        lambda t: 0xAAAAAAAA if t % 2 else 0x55555555,
    ),
    "clocks that go on": (
        """
        mov.u64 %d1, %clock64; mov.u32 %r1, %clock; mov.u32 %r2, 0;
        $L1: add.s32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 20; @%p1 bra $L1;
        mov.u64 %d2, %clock64; sub.s64 %d3, %d2, %d1; setp.gt.s64 %p1, %d3, 20; selp.u32 %r9, 1, 0, %p1;
        """,
        "",
        lambda t: 1,
    ),
    "a branch by a table": (
        """
        mov.u32 %r30, %tid.x; and.b32 %r1, %r30, 1; ts: .branchtargets $A, $B; brx.idx %r1, ts;
        $A: mov.u32 %r9, 5; bra $C;
        $B: mov.u32 %r9, 6;
        $C:
        """,
        "",
        lambda t: 5 + t % 2,
    ),
    "variables with initial values": (
        """
        mov.u32 %r30, %tid.x; and.b32 %r1, %r30, 3; mul.wide.u32 %d1, %r1, 4;
        mov.u64 %d2, table; add.s64 %d2, %d2, %d1; ld.const.u32 %r9, [%d2];
        mov.u64 %d3, place; ld.global.u64 %d4, [%d3]; ld.u32 %r2, [%d4]; add.s32 %r9, %r9, %r2;
        """,
        ".const .align 4 .u32 table[4] = {1, 20, 300, -4};\n.global .align 8 .u64 place = generic(table)+4;",
        lambda t: (1, 20, 300, 0xFFFFFFFC)[t % 4] + 20 & 0xFFFFFFFF,
    ),
    # Warp 1 waits in a loop for a flag that warp 0 sets after it.
    "warps that wait for one another": (
        """
        mov.u32 %r30, %tid.x; setp.lt.u32 %p1, %r30, 32; mov.u32 %r9, 1; mov.u32 %r3, 0;
        st.volatile.shared.u32 [flag], %r3; bar.sync 0;
        @!%p1 bra $L1;
        mov.u32 %r4, 0; $L0: add.s32 %r4, %r4, 1; setp.lt.u32 %p2, %r4, 9000; @%p2 bra $L0;
        st.volatile.shared.u32 [flag], %r9; bra $L2;
        $L1: ld.volatile.shared.u32 %r3, [flag]; setp.eq.u32 %p3, %r3, 0; @%p3 bra $L1;
        mov.u32 %r9, 2;
        $L2:
        """,
        ".shared .align 4 .u32 flag;",
        lambda t: 1 if t < 32 else 2,
    ),
    "memory of each thread's own, through a generic address": (
        """
        .local .align 8 .b8 depot[16];
        mov.u32 %r30, %tid.x; mov.u64 %d1, depot; cvta.local.u64 %d2, %d1; st.u32 [%d2+4], %r30;
        ld.local.u32 %r9, [depot+4]; isspacep.local %p1, %d2; @!%p1 trap;
        """,
        "",
        lambda t: t,
    ),
    "a register of an inner scope": (
        """
        mov.u32 %r1, 1; { .reg .b32 %r<2>; .reg .b16 low, high; mov.u32 %r1, 0x50003; mov.b32 {low, high}, %r1;
        cvt.u32.u16 %r9, high; } add.s32 %r9, %r9, %r1;
        """,
        "",
        lambda t: 6,
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(CONTROL))
def test_control_and_addresses(name: str, store: Store) -> None:
    body, before, expected = CONTROL[name]
    results, findings = ran(store, kernel(body + STORE, before))

    assert findings == ()
    assert results == [expected(thread) for thread in range(64)]


@pytest.mark.slow
def test_kernels_without_a_device_have_variables_of_their_own(store: Store) -> None:
    for value in (5, 6):
        text = kernel(f"ld.global.u32 %r9, [one];{STORE}", f".global .align 4 .u32 one = {value};")
        assert ran(store, text) == ([value] * 64, ())


FINDINGS = {
    # The other lanes wait at the barrier, or end.
    "a collective without some of its lanes": (
        "mov.u32 %r30, %tid.x; setp.lt.u32 %p1, %r30, 16; @!%p1 bra $L1; "
        "vote.sync.ballot.b32 %r9, %p1, 0xffffffff; $L1: bar.sync 0;",
        "collective",
    ),
    "a lane that is not in its mask": ("mov.u32 %r1, 1; shfl.sync.idx.b32 %r9, %r1, 0, 31, 0xff;", "collective"),
    "a matrix product of a part of a warp": (
        "mov.u32 %r30, %tid.x; setp.ge.u32 %p1, %r30, 40; @%p1 bra $L1; "
        "mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r2}, {%r3}, {%f1,%f2,%f3,%f4}; $L1:",
        "collective",
    ),
    "lanes at two barriers": (
        "mov.u32 %r30, %tid.x; and.b32 %r1, %r30, 1; setp.eq.u32 %p1, %r1, 0; "
        "@%p1 bra $L1; bar.sync 0; bra $L2; $L1: bar.sync 0; $L2:",
        "barrier",
    ),
    "a barrier that a warp misses": (
        "mov.u32 %r30, %tid.x; setp.lt.u32 %p1, %r30, 32; @!%p1 bra $L1; "
        "bar.sync 1, 64; bra $L2; $L1: bar.sync 2, 64; $L2:",
        "barrier",
    ),
    "a read outside": ("mov.u64 %d1, 0x1000; ld.global.u32 %r9, [%d1];", "address"),
    "an address that is not aligned": ("ld.param.u64 %d1, [out]; ld.global.u32 %r9, [%d1+2];", "alignment"),
    "shared memory past its end": ("ld.shared.u32 %r9, [s+256];", "address"),
    "shared memory that nothing wrote": ("ld.shared.u32 %r9, [s];", "uninitialized"),
    "a copy that is not waited for": (
        "ld.param.u64 %d1, [out]; mov.u32 %r30, %tid.x; shl.b32 %r1, %r30, 2; mov.u32 %r2, s; add.s32 %r2, %r2, %r1; "
        "cp.async.ca.shared.global [%r2], [%d1], 4; cp.async.commit_group; ld.shared.u32 %r9, [%r2];",
        "asynchronous",
    ),
    "a missing barrier": (
        "mov.u32 %r30, %tid.x; shl.b32 %r1, %r30, 2; mov.u32 %r2, s; add.s32 %r3, %r2, %r1; st.shared.u32 [%r3], %r30; "
        "xor.b32 %r1, %r1, 128; add.s32 %r3, %r2, %r1; @%p8 bar.sync 0; st.shared.u32 [%r3], %r1;",
        "race",
    ),
    "two warps that write one place": (
        "ld.param.u64 %d1, [out]; mov.u32 %r9, %tid.x; st.global.u32 [%d1], %r9;",
        "race",
    ),
    "two lanes of a warp": (
        "mov.u32 %r30, %tid.x; and.b32 %r3, %r30, 32; setp.ne.u32 %p1, %r3, 0; @%p1 ret; shl.b32 %r1, %r30, 2; "
        "mov.u32 %r2, s; add.s32 %r3, %r2, %r1; st.shared.u32 [%r3], %r30; xor.b32 %r1, %r1, 4; add.s32 %r3, %r2, %r1; "
        "ld.shared.u32 %r9, [%r3];",
        "race",
    ),
    "lanes of one store": ("mov.u32 %r30, %laneid; st.shared.u32 [s], %r30;", "race"),
    "an assertion": (
        "{ .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e; mov.u64 %d1, words; "
        "st.param.b64 [a], %d1; st.param.b64 [b], %d1; st.param.b32 [c], 5; st.param.b64 [d], %d1; "
        "st.param.b64 [e], 1; "
        "call.uni __assertfail, (a, b, c, d, e); }",
        "assertion",
    ),
    "a trap": ("trap;", "trap"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sampled(FINDINGS))
def test_a_fault_is_found_with_its_line(name: str, store: Store) -> None:
    body, kind = FINDINGS[name]
    before = ".shared .align 16 .b8 s[256]; .global .align 1 .b8 words[6] = {119, 111, 114, 100, 115};"
    _, findings = ran(store, kernel("setp.ne.u32 %p8, 0, 0;\n" + body + STORE, before))

    assert [(one.kind, one.ptx_line) for one in findings] == [(kind, 9)], findings


@pytest.mark.whole
@pytest.mark.parametrize(
    "body",
    [
        "ld.param.u64 %d1, [out]; mov.u32 %r9, 3; st.global.u32 [%d1], %r9;",
        "mov.u32 %r30, %tid.x; shl.b32 %r1, %r30, 2; mov.u32 %r2, s; add.s32 %r3, %r2, %r1; st.shared.u32 [%r3], %r30;"
        "xor.b32 %r1, %r1, 128; add.s32 %r3, %r2, %r1; bar.sync 0; ld.shared.u32 %r9, [%r3];",
        "ld.param.u64 %d1, [out]; atom.global.add.u32 %r9, [%d1], 1; bar.sync 0;",
    ],
    ids=["one value by two warps", "a barrier between", "atomic"],
)
def test_what_is_ordered_or_the_same_is_no_race(body: str, store: Store) -> None:
    _, findings = ran(store, kernel(body + STORE, ".shared .align 16 .b8 s[256];"))

    assert findings == ()
