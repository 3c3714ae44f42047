"""Every form of an instruction that is translated: opcode, modifiers and types as written.

A form that is not in the table is refused; nothing is taken for its plain neighbour. Each names the structure of
runtime/*.h that computes it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple


class Form(NamedTuple):
    """How a form is translated.

    Args:
        kind: which function of code.py writes it.
        op: the C++ structure, or another word that the kind needs.
        types: of the operands, the result first; "pred" for predicates.
    """

    kind: str
    op: str
    types: tuple[str, ...] = ()


_GROUP = re.compile(r"\{([^{}]*)\}")
_SIGNED = {"s16", "s32", "s64"}
INTEGERS = ("u16", "s16", "u32", "s32", "u64", "s64")
_ALL_INTEGERS = ("u8", "s8", *INTEGERS)
_MEMORY = "b8,u8,s8,b16,u16,s16,b32,u32,s32,f32,b64,u64,s64,f64"
_ROUNDINGS = {"": "rn", ".rn": "rn", ".rz": "rz", ".rm": "rm", ".rp": "rp"}
_TO_INTEGRAL = {".rni": "rn", ".rzi": "rz", ".rmi": "rm", ".rpi": "rp"}
_WIDE = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}
_ELEMENT = {"f16": "f16", "bf16": "bf16", "f16x2": "f16", "bf16x2": "bf16"}


def expanded(pattern: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The forms of a pattern such as "ld{.global,.shared}.{u32,f32}", each with its choices."""
    pieces = _GROUP.split(pattern)
    for choice in itertools.product(*(piece.split(",") for piece in pieces[1::2])):
        yield "".join(a + b for a, b in itertools.zip_longest(pieces[::2], choice, fillvalue="")), choice


def _yes(word: str | bool) -> str:
    return "true" if word else "false"


def cpp(kind: str) -> str:
    """The C++ type for bits of a PTX type: those without arithmetic are unsigned integers."""
    return "u" + kind[1:] if kind.startswith("b") and kind[1:].isdigit() else kind


def _fits(source: str, result: str) -> bool:
    """Whether an integer type has every value of another one."""
    bits, of_result = int(source[1:]), int(result[1:])
    return bits <= of_result if source[0] == result[0] else source[0] == "u" and bits < of_result


def _integers() -> Iterator[tuple[str, Form]]:
    names = {"add": "Add", "sub": "Sub", "div": "Div", "rem": "Rem", "min": "Min", "max": "Max"}
    for form, (op, t) in expanded("{add,sub,div,rem,min,max}.{u16,s16,u32,s32,u64,s64}"):
        yield form, Form("each", f"{names[op]}<{t}>", (t, t, t))
    for form, (op, part, t) in expanded("{mul,mad}.{lo,hi}.{u16,s16,u32,s32,u64,s64}"):
        yield form, Form("each", f"{op.title()}{part.title()}<{t}>", (t,) * (3 if op == "mul" else 4))
    for form, (op, t) in expanded("{mul,mad}.wide.{u16,s16,u32,s32}"):
        wide = _WIDE[t]
        yield form, Form("each", f"{op.title()}Wide<{t}>", (wide, t, t) if op == "mul" else (wide, t, t, wide))
    for form, (op, t) in expanded("{abs,neg}.{s16,s32,s64}"):
        yield form, Form("each", f"{op.title()}<{t}>", (t, t))


def _bits() -> Iterator[tuple[str, Form]]:
    for form, (op, t) in expanded("{and,or,xor}.{b16,b32,b64}"):
        yield form, Form("each", f"{op.title()}<{cpp(t)}>", (t, t, t))
    for form, (op, t) in expanded("{not,cnot}.{b16,b32,b64}"):
        yield form, Form("each", f"{op.title()}<{cpp(t)}>", (t, t))
    for form, (t,) in expanded("shl.{b16,b32,b64}"):
        yield form, Form("each", f"Shl<{cpp(t)}>", (t, t, "u32"))
    for form, (t,) in expanded("shr.{b16,u16,s16,b32,u32,s32,b64,u64,s64}"):
        yield form, Form("each", f"Shr<{cpp(t)}>", (t, t, "u32"))
    for form, (side, how) in expanded("shf.{l,r}.{wrap,clamp}.b32"):
        name = f"Shf{'Left' if side == 'l' else 'Right'}{how.title()}"
        yield form, Form("each", name, ("b32", "b32", "b32", "u32"))
    for form, (op, t) in expanded("{popc,clz}.{b32,b64}"):
        yield form, Form("each", f"{op.title()}<{cpp(t)}>", ("u32", t))
    for form, (t,) in expanded("brev.{b32,b64}"):
        yield form, Form("each", f"Brev<{cpp(t)}>", (t, t))
    for form, (shift, t) in expanded("bfind{,.shiftamt}.{u32,s32,u64,s64}"):
        yield form, Form("each", f"Bfind<{t}, {_yes(shift)}>", ("u32", t))
    for form, (t,) in expanded("bfe.{u32,s32,u64,s64}"):
        yield form, Form("each", f"Bfe<{t}>", (t, t, "u32", "u32"))
    for form, (t,) in expanded("bfi.{b32,b64}"):
        yield form, Form("each", f"Bfi<{cpp(t)}>", (t, t, t, "u32", "u32"))
    for form, (a, b) in expanded("dp4a.{u32,s32}.{u32,s32}"):
        kinds = ", ".join(one[0] + "8" for one in (a, b))
        yield form, Form("each", f"Dp4a<{kinds}>", ("b32",) * 4)
    yield "prmt.b32", Form("each", "Prmt", ("b32",) * 4)
    yield "lop3.b32", Form("each", "Lop3", ("b32", "b32", "b32", "b32", "u32"))


def _seldom() -> Iterator[tuple[str, Form]]:
    for form, (t,) in expanded("sad.{u16,s16,u32,s32,u64,s64}"):
        yield form, Form("each", f"Sad<{t}>", (t,) * 4)
    for form, (half, a, b) in expanded("dp2a.{lo,hi}.{u32,s32}.{u32,s32}"):
        kinds = f"{a[0]}16, {b[0]}8, {_yes(half == 'hi')}"
        yield form, Form("each", f"Dp2a<{kinds}>", ("b32",) * 4)
    for form, (how,) in expanded("bmsk.{clamp,wrap}.b32"):
        yield form, Form("each", f"Bmsk<{_yes(how == 'clamp')}>", ("b32", "u32", "u32"))
    yield "fns.b32", Form("each", "Fns", ("b32", "b32", "u32", "s32"))


def _floats() -> Iterator[tuple[str, Form]]:
    arity = {"add": 2, "sub": 2, "mul": 2, "fma": 3}
    for form, (op, how, ftz, sat) in expanded("{add,sub,mul,fma}{,.rn,.rz,.rm,.rp}{,.ftz}{,.sat}.f32"):
        if op == "fma" and not how:
            continue
        name = f"{op.title()}F32<{_ROUNDINGS[how]}, {_yes(ftz)}, {_yes(sat)}>"
        yield form, Form("each", name, ("f32",) * (1 + arity[op]))
    for form, (op, how) in expanded("{add,sub,mul,fma}{,.rn,.rz,.rm,.rp}.f64"):
        if op == "fma" and not how:
            continue
        yield form, Form("each", f"{op.title()}F64<{_ROUNDINGS[how]}>", ("f64",) * (1 + arity[op]))
    for form, (op, how, ftz) in expanded("{div,rcp,sqrt}.{rn,rz,rm,rp}{,.ftz}.f32"):
        yield form, Form("each", f"{op.title()}F32<{how}, {_yes(ftz)}>", ("f32",) * (3 if op == "div" else 2))
    for form, (op, how) in expanded("{div,rcp,sqrt}.{rn,rz,rm,rp}.f64"):
        yield form, Form("each", f"{op.title()}F64<{how}>", ("f64",) * (3 if op == "div" else 2))
    for form, (_, ftz) in expanded("div.{approx,full}{,.ftz}.f32"):
        name = "DivApprox" if "approx" in form else "DivF32"
        arguments = _yes(ftz) if name == "DivApprox" else f"rn, {_yes(ftz)}"
        yield form, Form("each", f"{name}<{arguments}>", ("f32",) * 3)
    for form, (op, ftz) in expanded("{rcp,rsqrt,sqrt,ex2,lg2,sin,cos}.approx{,.ftz}.f32"):
        yield form, Form("each", f"{op.title()}Approx<{_yes(ftz)}>", ("f32", "f32"))
    yield "tanh.approx.f32", Form("each", "TanhApprox", ("f32", "f32"))
    yield "rcp.approx.ftz.f64", Form("each", "RcpApproxF64", ("f64", "f64"))
    for form, (ftz,) in expanded("rsqrt.approx{,.ftz}.f64"):
        yield form, Form("each", f"RsqrtApproxF64<{_yes(ftz)}>", ("f64", "f64"))


def _floats_without_rounding() -> Iterator[tuple[str, Form]]:
    for form, (op, ftz, nan) in expanded("{min,max}{,.ftz}{,.NaN}.f32"):
        yield form, Form("each", f"{op.title()}F32<{_yes(ftz)}, {_yes(nan)}>", ("f32",) * 3)
    for form, (op,) in expanded("{min,max}.f64"):
        yield form, Form("each", f"{op.title()}F64", ("f64",) * 3)
    for form, (op, ftz) in expanded("{abs,neg}{,.ftz}.f32"):
        yield form, Form("each", f"{op.title()}F32<{_yes(ftz)}>", ("f32", "f32"))
    for form, (op,) in expanded("{abs,neg}.f64"):
        yield form, Form("each", f"{op.title()}F64", ("f64", "f64"))
    for form, (t,) in expanded("copysign.{f32,f64}"):
        yield form, Form("each", f"Copysign<{t}>", (t,) * 3)


def _half(t: str, op: str, sources: int) -> Form:
    return Form("each", f"Packed<{t}, {op}>" if t.endswith("x2") else op, (t,) * (1 + sources))


def _halves() -> Iterator[tuple[str, Form]]:
    for form, (op, _, ftz, sat, t) in expanded("{add,sub,mul}{,.rn}{,.ftz}{,.sat}.{f16,f16x2}"):
        yield form, _half(t, f"{op.title()}16<f16, {_yes(ftz)}, {_yes(sat)}>", 2)
    for form, (op, _, t) in expanded("{add,sub,mul}{,.rn}.{bf16,bf16x2}"):
        yield form, _half(t, f"{op.title()}16<bf16, false, false>", 2)
    for form, (ftz, last, t) in expanded("fma.rn{,.ftz}{,.sat,.relu}.{f16,f16x2}"):
        yield form, _half(t, f"Fma16<f16, {_yes(ftz)}, {_yes(last == '.sat')}, {_yes(last == '.relu')}>", 3)
    for form, (relu, t) in expanded("fma.rn{,.relu}.{bf16,bf16x2}"):
        yield form, _half(t, f"Fma16<bf16, false, false, {_yes(relu)}>", 3)


def _halves_without_rounding() -> Iterator[tuple[str, Form]]:
    for form, (op, ftz, nan, t) in expanded("{min,max}{,.ftz}{,.NaN}.{f16,f16x2}"):
        yield form, _half(t, f"MinMax16<f16, {_yes(ftz)}, {_yes(nan)}, {_yes(op == 'max')}>", 2)
    for form, (op, nan, t) in expanded("{min,max}{,.NaN}.{bf16,bf16x2}"):
        yield form, _half(t, f"MinMax16<bf16, false, {_yes(nan)}, {_yes(op == 'max')}>", 2)
    for form, (op, ftz, t) in expanded("{abs,neg}{,.ftz}.{f16,f16x2}"):
        yield form, _half(t, f"{op.title()}16<f16, {_yes(ftz)}>", 1)
    for form, (op, t) in expanded("{abs,neg}.{bf16,bf16x2}"):
        yield form, _half(t, f"{op.title()}16<bf16, false>", 1)
    for form, (t,) in expanded("tanh.approx.{f16,f16x2,bf16,bf16x2}"):
        yield form, _half(t, f"TanhApprox16<{_ELEMENT[t]}>", 1)
    for form, (t,) in expanded("ex2.approx.{f16,f16x2}"):
        yield form, _half(t, "Ex2Approx16<f16>", 1)


_COMPARISONS = {
    **{one: one.title() for one in ("eq", "ne", "lt", "le", "gt", "ge")},
    **{one: one.title() for one in ("equ", "neu", "ltu", "leu", "gtu", "geu", "num")},
    "nan": "IsNan",
    "lo": "Lt",
    "ls": "Le",
    "hi": "Gt",
    "hs": "Ge",
}


def _comparisons() -> Iterator[tuple[str, Form]]:
    ordered, floating = "eq,ne,lt,le,gt,ge", "equ,neu,ltu,leu,gtu,geu,num,nan"
    patterns = (
        f"setp.{{{ordered}}}{{,.and,.or,.xor}}.{{u16,s16,u32,s32,u64,s64}}",
        "setp.{lo,ls,hi,hs}{,.and,.or,.xor}.{u16,u32,u64}",
        "setp.{eq,ne}{,.and,.or,.xor}.{b16,b32,b64}",
        f"setp.{{{ordered},{floating}}}{{,.and,.or,.xor}}.{{f32,f64,f16,bf16}}",
        f"setp.{{{ordered},{floating}}}{{,.and,.or,.xor}}.{{ftz.f32,ftz.f16}}",
    )
    for pattern in patterns:
        for form, (how, combine, kind) in expanded(pattern):
            t = kind.removeprefix("ftz.")
            op = f"{_COMPARISONS[how]}<{cpp(t)}{', true' if kind == 'ftz.f32' else ''}>"
            if kind == "ftz.f16":
                continue
            yield form, Form("compare", op, (combine.removeprefix("."), t))
    for form, (how, d, t) in expanded(f"set.{{{ordered}}}.{{u32,s32,f32}}.{{u32,s32}}"):
        yield form, Form("set", f"{_COMPARISONS[how]}<{t}>", (d, t))
    for form, (how, d, t) in expanded(f"set.{{{ordered},{floating}}}.{{u32,s32,f32}}.f{{32}}"):
        yield form, Form("set", f"{_COMPARISONS[how]}<f{t}>", (d, f"f{t}"))
    for form, (t,) in expanded("selp.{b16,u16,s16,b32,u32,s32,b64,u64,s64,f32,f64}"):
        yield form, Form("select", cpp(t), (t, t, t))
    for form, (op,) in expanded("{and,or,xor}.pred"):
        yield form, Form("logic", {"and": "&", "or": "|", "xor": "^"}[op])
    yield "not.pred", Form("logic", "~")
    yield "mov.pred", Form("logic", "")


def _conversions() -> Iterator[tuple[str, Form]]:
    integers = ",".join(_ALL_INTEGERS)
    for form, (sat, d, s) in expanded(f"cvt{{,.sat}}.{{{integers}}}.{{{integers}}}"):
        # ptxas refuses to saturate where every value fits.
        if not (sat and _fits(s, d)):
            yield form, Form("each", f"CvtInt<{d}, {s}, {_yes(sat)}>", (d, s))
    for form, (how, ftz, _, d, s) in expanded(
        f"cvt{{.rni,.rzi,.rmi,.rpi}}{{,.ftz}}{{,.sat}}.{{{integers}}}.{{f32,f64,f16,bf16}}"
    ):
        if not (ftz and s != "f32") and not (s == "bf16" and (sat or d in ("u8", "s8"))):
            yield form, Form("each", f"CvtToInt<{d}, {s}, {_TO_INTEGRAL[how]}, {_yes(ftz)}>", (d, s))


def _conversions_of_integers() -> Iterator[tuple[str, Form]]:
    integers = ",".join(_ALL_INTEGERS)
    for form, (how, sat, d, s) in expanded(f"cvt{{.rn,.rz,.rm,.rp}}{{,.sat}}.{{f32,f64}}.{{{integers}}}"):
        yield form, Form("each", f"CvtFromInt<{d}, {s}, {how[1:]}, {_yes(sat)}>", (d, s))
    for form, (how, d, s) in expanded("cvt{.rn,.rz,.rm,.rp}.{f16,bf16}.{u8,s8,u16,s16,u32,s32}"):
        if d == "bf16" and s in ("u8", "s8"):
            continue
        yield form, Form("each", f"CvtIntTo16<{d}, {s}, {how[1:]}>", (d, s))


def _conversions_of_floats() -> Iterator[tuple[str, Form]]:
    for form, (how, ftz, sat) in expanded("cvt{.rn,.rz,.rm,.rp}{,.ftz}{,.sat}.f32.f64"):
        yield form, Form("each", f"CvtF32F64<{how[1:]}, {_yes(ftz)}, {_yes(sat)}>", ("f32", "f64"))
    for form, (ftz, sat) in expanded("cvt{,.ftz}{,.sat}.f64.f32"):
        yield form, Form("each", f"CvtF64F32<{_yes(ftz)}, {_yes(sat)}>", ("f64", "f32"))
    for form, (ftz, sat) in expanded("cvt{,.ftz}{,.sat}.f32.f32"):
        yield form, Form("each", f"CvtF32<{_yes(ftz)}, {_yes(sat)}>", ("f32", "f32"))
    for form, (how, ftz, sat, t) in expanded("cvt{.rni,.rzi,.rmi,.rpi}{,.ftz}{,.sat}.{f32.f32,f64.f64}"):
        one = t[:3]
        if not (ftz and one == "f64"):
            name = f"CvtIntegral<{one}, {_TO_INTEGRAL[how]}, {_yes(ftz)}, {_yes(sat)}>"
            yield form, Form("each", name, (one, one))


def _conversions_of_halves() -> Iterator[tuple[str, Form]]:
    for form, (ftz, sat) in expanded("cvt{,.ftz}{,.sat}.f32.f16"):
        yield form, Form("each", f"CvtF32From16<f16, {_yes(ftz)}, {_yes(sat)}>", ("f32", "f16"))
    yield "cvt.f32.bf16", Form("each", "CvtF32From16<bf16, false, false>", ("f32", "bf16"))
    for form, (how, ftz, sat) in expanded("cvt{.rn,.rz,.rm,.rp}{,.ftz}{,.sat}.f16.f32"):
        name = f"CvtTo16<f16, {how[1:]}, {_yes(ftz)}, {_yes(sat)}, false>"
        yield form, Form("each", name, ("f16", "f32"))
    for form, (how, relu, t) in expanded("cvt{.rn,.rz}{,.relu}.{f16,bf16}.f32"):
        yield form, Form("each", f"CvtTo16<{t}, {how[1:]}, false, false, {_yes(relu)}>", (t, "f32"))


def _conversions_of_pairs() -> Iterator[tuple[str, Form]]:
    for form, (how, relu, t) in expanded("cvt{.rn,.rz}{,.relu}.{f16x2,bf16x2}.f32"):
        yield form, Form("each", f"CvtPair<{t}, {how[1:]}, {_yes(relu)}>", (t, "f32", "f32"))
    for form, (t,) in expanded("cvt.rn.{f16,bf16}.f64"):
        yield form, Form("each", f"CvtF64To16<{t}>", (t, "f64"))
    for form, (relu, t) in expanded("cvt.rn.satfinite{,.relu}.{e4m3x2,e5m2x2}.f32"):
        yield form, Form("each", f"CvtPair8<{t}, {_yes(relu)}>", ("b16", "f32", "f32"))
    for form, (relu, t) in expanded("cvt.rn.satfinite{,.relu}.{e4m3x2,e5m2x2}.f16x2"):
        yield form, Form("each", f"CvtPair8From16<{t}, {_yes(relu)}>", ("b16", "f16x2"))
    for form, (relu, t) in expanded("cvt.rn{,.relu}.f16x2.{e4m3x2,e5m2x2}"):
        yield form, Form("each", f"CvtPair16From8<{t}, {_yes(relu)}>", ("f16x2", "b16"))


_SPACE = {
    "": "GENERIC",
    ".global": "GLOBAL",
    ".const": "GLOBAL",
    ".shared": "SHARED",
    ".shared::cta": "SHARED",
    ".local": "LOCAL",
    ".param": "PARAM",
}


def _memory() -> Iterator[tuple[str, Form]]:
    cache = ",.ca,.cg,.cs,.lu,.cv"
    vectors = "{,.v2,.v4}"
    nc = "{,.L1::no_allocate,.L1::evict_last,.L2::64B,.L2::128B,.L2::256B,.ca,.cg,.cs,.L1::no_allocate.L2::128B}"
    patterns = (
        f"ld{{}}{{,.global,.const,.shared,.shared::cta,.local,.param}}{{}}{vectors}.{{{_MEMORY}}}",
        f"ld{{}}{{.global}}{{{cache[1:]}}}{vectors}.{{{_MEMORY}}}",
        f"ld{{}}{{.global}}.nc{nc}{vectors}.{{{_MEMORY}}}",
        f"ld{{.volatile}}{{,.global,.shared}}{{}}{vectors}.{{{_MEMORY}}}",
        f"ld{{.relaxed,.acquire}}.{{cta,gpu,sys}}{{,.global,.shared}}{{}}{vectors}.{{{_MEMORY}}}",
    )
    for pattern in patterns:
        for form, choice in expanded(pattern):
            space = next((one for one in choice if one in _SPACE and one), "")
            lanes, t = choice[-2:]
            if (lanes, t[1:]) != (".v4", "64"):
                access = {"": "READ", ".volatile": "VOLATILE_READ"}.get(choice[0], "SYNCHRONIZE")
                yield form, Form("load", _SPACE[space], (t, lanes[2:] or "1", access))
    stores = (
        f"st{{}}{{,.global,.shared,.shared::cta,.local,.param}}{{}}{vectors}.{{{_MEMORY}}}",
        f"st{{}}{{.global}}{{.wb,.cg,.cs,.wt}}{vectors}.{{{_MEMORY}}}",
        f"st{{.volatile}}{{,.global,.shared}}{{}}{vectors}.{{{_MEMORY}}}",
        f"st{{.relaxed,.release}}.{{cta,gpu,sys}}{{,.global,.shared}}{{}}{vectors}.{{{_MEMORY}}}",
    )
    for pattern in stores:
        for form, choice in expanded(pattern):
            space = next((one for one in choice if one in _SPACE and one), "")
            lanes, t = choice[-2:]
            if (lanes, t[1:]) != (".v4", "64"):
                access = {"": "WRITE", ".volatile": "VOLATILE_WRITE"}.get(choice[0], "SYNCHRONIZE")
                yield form, Form("store", _SPACE[space], (t, lanes[2:] or "1", access))
    yield from _atomics()
    for form, (cache, _, _, size) in expanded(
        "cp.async.{ca,cg}.shared{,::cta}.global{,.L2::64B,.L2::128B,.L2::256B}{}"
    ):
        yield form, Form("copy", cache, (size,))
    yield "cp.async.commit_group", Form("commit", "commit_group")
    yield "cp.async.wait_group", Form("wait", "wait_group")
    yield "cp.async.wait_all", Form("commit", "wait_all")
    for form, (to, space) in expanded("cvta{,.to}{.global,.const,.shared,.local,.param}.u64"):
        sign = "" if space != ".shared" else "-" if to else "+"
        yield form, Form("cvta", sign, ("u64", "u64"))
    for form, (space,) in expanded("isspacep.{shared,shared::cta,local,global}"):
        yield form, Form("isspacep", space.removesuffix("::cta"), ("pred", "u64"))


def _atomics() -> Iterator[tuple[str, Form]]:
    patterns = (
        "add.{u32,s32,u64,f32,f64,noftz.f16,noftz.f16x2,noftz.bf16,noftz.bf16x2}",
        "{min,max}.{u32,s32,u64,s64}",
        "{and,or,xor,exch}.{b32,b64}",
        "{inc,dec}.u{32}",
        "cas.b{16,32,64}",
    )
    # Before and after the operation: nvcc, CUDA's headers and the PTX ISA put scope and semantics in other places.
    places = (
        *expanded("{}{,.global,.shared,.shared::cta}{}"),
        *expanded("{.relaxed,.acquire,.release,.acq_rel}.{cta,gpu,sys}{,.global,.shared}{}"),
        *expanded("{}{,.global,.shared}{.cta,.gpu,.sys}"),
        *(
            (f"{where}@{order}.{scope}", ("", where, ""))
            for where in ("", ".global", ".shared")
            for order in ("relaxed", "acquire", "release", "acq_rel")
            for scope in ("cta", "gpu", "sys")
        ),
    )
    operations = [form for pattern in patterns for form, _ in expanded(pattern)]
    for place, choice in places:
        where = next((one for one in choice if one in _SPACE and one), "")
        before, _, after = place.partition("@")
        for operation in operations:
            op, *rest = operation.split(".")
            t = rest[-1]
            # Of an f32 in global memory subnormals are flushed, in shared memory they are not.
            flushed = operation == "add.f32" and where == ".global"
            name = "AtomAddFlushed" if flushed else f"Atom{op.title()}<{cpp(t)}>"
            types = (t, _SPACE[where], op)
            form = ".".join(part for part in (before, op, after, *rest) if part).replace("..", ".").lstrip(".")
            yield f"atom.{form}", Form("atomic", name, types)
            if op not in ("exch", "cas") and "acq" not in place:
                yield f"red.{form}", Form("reduction", name, types)


def _collectives() -> Iterator[tuple[str, Form]]:
    for form, (how,) in expanded("shfl.sync.{up,down,bfly,idx}.b32"):
        yield form, Form("shuffle", how.upper(), ("b32", "b32", "u32", "u32", "u32"))
    for form, (how,) in expanded("vote.sync.{all,any,uni}.pred"):
        yield form, Form("vote", f"VOTE_{how.upper()}")
    yield "vote.sync.ballot.b32", Form("ballot", "VOTE_BALLOT")
    # As cub and cooperative groups write them.
    for form, (how,) in expanded("vote.{all,any,uni}.sync.pred"):
        yield form, Form("vote", f"VOTE_{how.upper()}")
    yield "vote.ballot.sync.b32", Form("ballot", "VOTE_BALLOT")
    for form, (how, t) in expanded("match.{any,all}.sync.{b32,b64}"):
        yield form, Form("match", how, ("b32", t, "u32"))
    for form, (op, t) in expanded("redux.sync.{add,min,max}.{u32,s32}"):
        yield form, Form("redux", f"{op.title()}<{t}>", (t, t, "u32"))
    for form, (op,) in expanded("redux.sync.{and,or,xor}.b32"):
        yield form, Form("redux", f"{op.title()}<u32>", ("b32", "b32", "u32"))
    yield "activemask.b32", Form("activemask", "")
    yield "bar.warp.sync", Form("warp_barrier", "")
    for form, (count, trans, _) in expanded("ldmatrix.sync.aligned.{x1,x2,x4}{,.trans}.m8n8.shared{,::cta}.b16"):
        yield form, Form("ldmatrix", f"{count[1:]}, {_yes(trans)}", (count[1:],))
    for form, (trans, count, _) in expanded("ldmatrix.sync.aligned.m8n8.{x1,x2,x4}{,.trans}.shared{,::cta}.b16"):
        yield form, Form("ldmatrix", f"{trans[1:]}, {_yes(count)}", (trans[1:],))
    for form, (count, trans, _) in expanded("stmatrix.sync.aligned.m8n8.{x1,x2,x4}{,.trans}.shared{,::cta}.b16"):
        yield form, Form("stmatrix", f"{count[1:]}, {_yes(trans)}", (count[1:],))
    for form, (k, t) in expanded("mma.sync.aligned.m16n8k{8,16}.row.col.f32.{bf16.bf16,f16.f16}.f32"):
        yield form, Form("mma", f"{t.split('.')[0]}, {k}", (k,))


def _control() -> Iterator[tuple[str, Form]]:
    for form, _ in expanded("bra{,.uni}"):
        yield form, Form("branch", "")
    for form, _ in expanded("brx.idx{,.uni}"):
        yield form, Form("switch", "")
    for form, _ in expanded("call{,.uni}"):
        yield form, Form("call", "")
    for form, _ in expanded("ret{,.uni}"):
        yield form, Form("ret", "")
    yield "exit", Form("exit", "")
    yield "trap", Form("trap", "")
    for form, _ in expanded("{bar.sync,bar.cta.sync,barrier.sync.aligned,barrier.cta.sync.aligned}"):
        yield form, Form("barrier", "true")
    for form, _ in expanded("barrier{,.cta}.sync"):
        yield form, Form("barrier", "false")
    for form, _ in expanded("{bar,bar.cta,barrier,barrier.cta}.arrive"):
        yield form, Form("arrive", "")
    yield "bar.red.popc.u32", Form("barrier_reduction", "RED_POPC")
    yield "bar.red.and.pred", Form("barrier_reduction", "RED_AND")
    yield "bar.red.or.pred", Form("barrier_reduction", "RED_OR")
    # One thread of the host runs a grid, so that every lane sees what was written before.
    for form, _ in expanded("membar.{cta,gl,sys}"):
        yield form, Form("nothing", "")
    for form, _ in expanded("fence{,.sc,.acq_rel}.{cta,gpu,sys}"):
        yield form, Form("nothing", "")
    yield "nanosleep.u32", Form("nothing", "")
    for form, _ in expanded("griddepcontrol.{wait,launch_dependents}"):
        yield form, Form("nothing", "")
    for form, _ in expanded("prefetch{,.global}.{L1,L2}"):
        yield form, Form("nothing", "")


def _moves() -> Iterator[tuple[str, Form]]:
    for form, (t,) in expanded("mov.{b16,u16,s16,b32,u32,s32,b64,u64,s64,f32,f64}"):
        yield form, Form("move", cpp(t), (t, t))


FORMS: dict[str, Form] = dict(
    itertools.chain(
        _integers(),
        _bits(),
        _seldom(),
        _floats(),
        _floats_without_rounding(),
        _halves(),
        _halves_without_rounding(),
        _comparisons(),
        _conversions(),
        _conversions_of_integers(),
        _conversions_of_floats(),
        _conversions_of_halves(),
        _conversions_of_pairs(),
        _memory(),
        _collectives(),
        _control(),
        _moves(),
    )
)
"""Every form that is translated."""
