"""Every form of an instruction that is translated computes what the PTX ISA defines; all others are refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import pytest

from dca.emulation.kernels import compiled, translated
from dca.emulation.translation.table import FORMS
from dca.foundation.errors import DcaError
from dca.foundation.store import Store
from tests.emulation.forms import kernel, memory, trial, warp
from tests.emulation.forms.definition import Definition, UndefinedError
from tests.emulation.forms.definitions import define
from tests.emulation.forms.kernel import Body
from tests.emulation.forms.trial import Trial
from tests.support.launch import Launch, launch

# The forms in the PTX of the official wheels' flash-attention modules, of a lean build of each recipe's `_C` for 8.0
# and 9.0, and of tests/emulation/kernels.
USED = Path(__file__).with_name("used.txt").read_text(encoding="ascii").split()
# These end a kernel, and have a test of their own.
ENDS = {"exit", "trap"}
# Forms in one kernel: g++ takes some seconds for that many.
DEFINITIONS, TRIALS = 40, 80

Item = TypeVar("Item", Definition, Trial)


def is_tested(form: str, draw: random.Random) -> bool:
    """Whether something tries a form."""
    try:
        opcode = form.split(".")[0]
        if opcode in {"atom", "red"}:
            memory.atomic(form)
        elif opcode in {"ld", "st"} and not form.startswith("st.param"):
            memory.access(form)
        else:
            of_form(form, draw)
    except UndefinedError:
        return False
    return True


def of_form(form: str, draw: random.Random) -> tuple[list[Definition], list[Trial]]:
    """What tries a form.

    Raises:
        UndefinedError: if nothing does.
    """
    for trials in (memory.trials, warp.trials):
        try:
            return [], trials(form, draw)
        except UndefinedError:
            pass
    return list(define(form)), []


def of_all(forms: Sequence[str], draw: random.Random) -> tuple[list[Definition], list[Trial]]:
    definitions: list[Definition] = []
    trials: list[Trial] = []
    for form in forms:
        found = of_form(form, draw)
        definitions += found[0]
        trials += found[1]
    return definitions, trials


def groups(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


@pytest.fixture
def emulated(tmp_path: Path) -> Store:
    """A cache for kernels that no other run needs."""
    return Store(tmp_path / "cache")


def check(forms: Sequence[str], emulated: Store, chance: random.Random) -> None:
    """Try forms, many of them in a kernel."""
    seed = chance.getrandbits(32)
    print(f"seed {seed}")
    definitions, trials = of_all(forms, random.Random(seed))
    lines = [line for group in groups(definitions, DEFINITIONS) for line in kernel.wrong(group, emulated, seed)]
    lines += [line for group in groups(trials, TRIALS) for line in trial.wrong(group, emulated)]
    assert not lines, "\n".join(lines)


@pytest.mark.slow
def test_every_form_has_a_test() -> None:
    draw = random.Random(0)
    missing = [form for form in sorted(FORMS.keys() - ENDS) if not is_tested(form, draw)]
    assert not missing, f"no test defines {', '.join(missing)}"


def test_every_form_that_is_used_is_translated() -> None:
    assert not set(USED) - FORMS.keys()


@pytest.mark.long
@pytest.mark.slow
def test_some_forms_that_are_used_compute_what_they_should(emulated: Store, chance: random.Random) -> None:
    # `make prove` tries all.
    check(chance.sample(sorted(set(USED) - ENDS), 30), emulated, chance)


OPCODES = sorted({form.split(".")[0] for form in FORMS} - ENDS)


@pytest.mark.whole
@pytest.mark.parametrize("opcode", OPCODES)
def test_all_forms_compute_what_they_should(opcode: str, emulated: Store, chance: random.Random) -> None:
    check([form for form in FORMS if form.split(".")[0] == opcode], emulated, chance)


def guarded(last: str) -> str:
    """A kernel in which the threads with an odd word end in the middle."""
    body = Body()
    given, results = body.pointer("given", 8), body.pointer("results", 8)
    bit, odd = body.register("b32"), body.register("pred")
    body.add(f"and.b32 {bit}, {body.load('b32', given)}, 1;")
    body.add(f"setp.ne.s32 {odd}, {bit}, 0;")
    body.store("b32", bit, results)
    body.add(f"@{odd} {last};")
    body.store("b32", bit, f"{results}+4")
    return body.text()


@pytest.mark.slow
@pytest.mark.parametrize("last", ["exit", "ret"])
def test_a_lane_that_ends_does_nothing_more(last: str, emulated: Store) -> None:
    given = bytes(1 if i in {0, 24, 88, 504} else 0 for i in range(512))

    results = kernel.run(compiled(emulated, guarded(last), "forms"), given, 512, grid=1, block=64)

    for i in range(64):
        ended = given[8 * i]
        assert results[8 * i : 8 * i + 8] == bytes([ended, 0, 0, 0]) + (b"\xcc" * 4 if ended else b"\0" * 4)


@pytest.mark.slow
def test_a_trap_is_reported_with_its_lane_and_line(emulated: Store) -> None:
    text = guarded("trap")
    given, results = bytearray(512), bytearray(512)
    given[8 * 37] = 1

    ended = launch(
        compiled(emulated, text, "forms"), Launch((1, 1, 1), (64, 1, 1), arguments=(given, results, kernel.CONSTANTS))
    )

    (found,) = ended.findings
    assert (found.kind, found.warp, found.lane) == ("trap", 1, 5)
    assert text.splitlines()[found.ptx_line - 1].endswith("trap;")


# Forms of the PTX ISA next to those that are translated: a form with a modifier more, less or another one.
NEIGHBOURS = [
    ("add.s32", "add.sat.s32"),
    ("add.s32", "add.cc.s32"),
    ("add.u32", "addc.u32"),
    ("sub.s32", "sub.sat.s32"),
    ("mul.lo.u32", "mul24.lo.u32"),
    ("mad.lo.s32", "mad.lo.cc.s32"),
    ("mad.hi.s32", "mad.hi.sat.s32"),
    ("min.s32", "min.relu.s32"),
    ("prmt.b32", "prmt.b32.f4e"),
    ("add.f32", "add.rn.sat.ftz.f32"),
    ("fma.rn.f32", "fma.f32"),
    ("max.f32", "max.xorsign.abs.f32"),
    ("max.ftz.f32", "max.ftz.xorsign.abs.f32"),
    ("ex2.approx.ftz.f32", "ex2.approx.ftz.bf16"),
    ("tanh.approx.f32", "tanh.approx.ftz.f32"),
    ("cvt.rn.bf16.f32", "cvt.rn.satfinite.bf16.f32"),
    ("cvt.rn.bf16x2.f32", "cvt.rn.relu.satfinite.bf16x2.f32"),
    ("cvt.rn.f16.f32", "cvt.rs.f16.f32"),
    ("cvt.rn.f32.f64", "cvt.rna.tf32.f32"),
    ("cvt.rzi.s32.f32", "cvt.s32.f32"),
    ("setp.lt.f32", "setp.lt.bf16x2"),
    ("setp.lt.s32", "setp.lo.s32"),
    ("ld.global.u32", "ld.mmio.relaxed.sys.global.u32"),
    ("ld.global.u32", "ld.global.L2::cache_hint.u32"),
    ("ld.global.v4.u32", "ld.global.v8.b32"),
    ("ld.shared.u32", "ld.shared::cluster.u32"),
    ("st.global.u32", "st.async.u32"),
    ("red.global.add.u32", "red.global.add.v2.f32"),
    ("shfl.sync.bfly.b32", "shfl.bfly.b32"),
    ("vote.sync.ballot.b32", "vote.ballot.b32"),
    ("redux.sync.add.u32", "redux.sync.min.abs.f32"),
    ("ldmatrix.sync.aligned.x4.m8n8.shared.b16", "ldmatrix.sync.aligned.x4.m8n16.shared.b8"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", "mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16"),
    ("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32"),
    ("bar.sync", "bar.cluster.sync"),
    ("cp.async.cg.shared.global.L2::128B", "cp.async.cg.shared.global.L2::cache_hint"),
]
MODIFIERS = (
    "sat",
    "ftz",
    "rn",
    "rz",
    "rm",
    "rp",
    "rni",
    "relu",
    "satfinite",
    "NaN",
    "cc",
    "wide",
    "hi",
    "volatile",
    "nc",
)


def text_with(form: str, other: str) -> str:
    """A kernel of one form, in which another one is written in its place."""
    definitions, trials = of_form(form, random.Random(0))
    text = trial.text_of(trials[:1]) if trials else kernel.text_of(definitions[:1])
    replaced = text.replace(f"\t{form} ", f"\t{other} ")
    assert replaced != text
    return replaced


def refusal(form: str, other: str) -> DcaError:
    with pytest.raises(DcaError) as caught:
        translated(text_with(form, other), "forms")
    return caught.value


@pytest.mark.slow
@pytest.mark.parametrize(("form", "other"), NEIGHBOURS)
def test_a_form_that_is_not_known_is_refused_by_name(form: str, other: str) -> None:
    assert form in FORMS
    assert other not in FORMS
    error = refusal(form, other)
    assert error.code == "DCA-830"
    assert f"`{other}`" in error.what


def test_a_modifier_more_is_refused(chance: random.Random, scale: Callable[[int], int]) -> None:
    forms = sorted(form for form in USED if "." in form and not form.startswith(("call", "ret", "bra", "cp.async")))
    for _ in range(scale(3000)):
        form = chance.choice(forms)
        parts = form.split(".")
        parts.insert(chance.randint(1, len(parts) - 1), chance.choice(MODIFIERS))
        other = ".".join(parts)
        if other in FORMS:
            continue
        error = refusal(form, other)
        assert error.code == "DCA-830", other
        assert f"`{other}`" in error.what


def test_a_kernel_is_translated_the_same_each_time() -> None:
    text = kernel.text_of(define("fma.rn.f32"))
    assert translated(text, "forms") == translated(text, "forms")
