"""Compares the other ops of a wheel's modules, which a model calls around attention, with plain torch on the CPU.

The ops are those that the modules register; each has a reference here or is named as not compared. A reference draws
the arguments of some calls and says what each argument must hold afterwards; every other argument must be unchanged.
Values are expected exactly where an op only moves or compares them, else within bounds that count its roundings: each
is half a unit in the last place of the dtype, relative to what is rounded.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from .bounds import TINY, UNIT, Worst
from .case import Case, Wrong

# Ops that other cases prove.
ELSEWHERE = {
    "convert_vertical_slash_indexes",
    "convert_vertical_slash_indexes_mergehead",
    "fwd_kvcache",
    "fwd_sparse",
    "varlen_fwd",
    "varlen_fwd_sparse",
}
# Ops that no reference can say more of, and why.
WITHOUT = {
    "fwd": "they run the kernels of varlen_fwd on sequences of one length; the engine does not call them",
    "scaled_fp4_quant": "their kernels are for Blackwell alone, and are not built",
    "get_cuda_view_from_cpu_tensor": "they compute nothing",
    "get_device_attribute": "they compute nothing",
    "get_max_shared_memory_per_block_device_attribute": "they compute nothing",
    **dict.fromkeys(
        (
            "init_custom_ar",
            "all_reduce",
            "dispose",
            "meta_size",
            "register_buffer",
            "get_graph_buffer_ipc_meta",
            "register_graph_buffers",
            "allocate_shared_buffer_and_handle",
            "open_mem_handle",
            "free_shared_buffer",
        ),
        "they belong to the all-reduce of several GPUs",
    ),
}
# float32 arithmetic with the approximate functions of a GPU, relative.
SINGLE = 2.0**-18
FP8 = torch.float8_e4m3fn
LARGEST_FP8 = 448.0
EPSILON = 1e-6
# Hidden sizes: whole vectors of 8 numbers, and a remainder.
HIDDEN = (512, 100)
ONE = torch.ones(1)


class Expected(NamedTuple):
    """What an argument holds after a call.

    Attributes:
        value: that it holds.
        bound: how far each number may be from it; None for not at all.
        ordered: brings what may lie in any order into the value's.
    """

    value: Tensor | list[Tensor]
    bound: Tensor | None = None
    ordered: Callable[[Tensor], Tensor] | None = None


class Call(NamedTuple):
    """One call.

    Attributes:
        arguments: by their names in the schema, on the CPU.
        expected: by the names of the arguments that the op writes; "return" for what it returns.
        on_cpu: names of arguments that stay on the CPU.
    """

    arguments: dict[str, Any]
    expected: dict[str, Expected]
    on_cpu: tuple[str, ...] = ()


class Draw:
    """Random arguments in one dtype, drawn on the CPU."""

    def __init__(self, dtype: torch.dtype, seed: int) -> None:
        self.dtype = dtype
        self._random = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, spread: float = 1.0) -> Tensor:
        """Normal numbers in the dtype."""
        return (torch.randn(shape, generator=self._random) * spread).to(self.dtype)

    def whole(self, below: int, *shape: int) -> Tensor:
        """Whole numbers in [0, below): int64."""
        return torch.randint(below, shape, generator=self._random)

    def order(self, count: int) -> Tensor:
        """The numbers below `count` in random order: int64."""
        return torch.randperm(count, generator=self._random)

    def unwritten(self, *shape: int) -> Tensor:
        """NaN in the dtype."""
        return torch.full(shape, torch.nan, dtype=self.dtype)

    def near(self, value: Tensor, roundings: float, of: Tensor | None = None) -> Expected:
        """A float64 value after this many roundings to the dtype, of numbers as large as `of`, else as the value."""
        size = (value if of is None else of).abs()
        return Expected(value, size * (roundings * UNIT[self.dtype] + SINGLE) + TINY[self.dtype])


Reference = Callable[[Draw], Iterable[Call]]
REFERENCES: dict[str, Reference] = {}


def _reference(*names: str) -> Callable[[Reference], Reference]:
    """Register a reference for all of these ops."""

    def register(function: Reference) -> Reference:
        REFERENCES.update(dict.fromkeys(names, function))
        return function

    return register


def _references(*names: str) -> Callable[[Callable[[Draw, str], Iterable[Call]]], None]:
    """Register one function for several ops, which gets the op's name."""

    def register(function: Callable[[Draw, str], Iterable[Call]]) -> None:
        for name in names:
            REFERENCES[name] = partial(_of, function, name)

    return register


def _of(function: Callable[[Draw, str], Iterable[Call]], name: str, draw: Draw) -> Iterable[Call]:
    return function(draw, name)


def registered(device: str) -> frozenset[str]:
    """The ops, as `namespace::name`, that this process has a kernel of for a type of device."""
    key = device.upper()
    return frozenset(schema.name for schema in torch._C._jit_get_all_schemas() if _has(schema.name, key))


def _has(op: str, key: str) -> bool:
    try:
        return bool(torch._C._dispatch_has_kernel_for_dispatch_key(op, key))
    except RuntimeError:
        # TorchScript's own ops are not known to the dispatcher.
        return False


def left_out(ops: Iterable[str], chosen: Collection[str] | None = None) -> list[str]:
    """The ops that no case compares: without a reference, and those not chosen; one sentence each, by name."""
    others = sorted(op for op in ops if _own(op) and _name(op) not in ELSEWHERE)
    unknown = [op for op in others if _name(op) not in REFERENCES and _name(op) not in WITHOUT]
    skipped = [op for op in others if _name(op) in REFERENCES and chosen is not None and _name(op) not in chosen]
    reasons = {WITHOUT[_name(op)] for op in others if _name(op) in WITHOUT}
    kinds = {"ops that have no reference": unknown, "ops that only a run without --quick compares": skipped}
    for reason in sorted(reasons):
        kinds[f"ops that no case compares ({reason})"] = [op for op in others if WITHOUT.get(_name(op)) == reason]
    return [f"{len(names)} {kind}: {', '.join(names)}" for kind, names in kinds.items() if names]


def cases(
    ops: Iterable[str], dtypes: Sequence[torch.dtype], device: str, chosen: Collection[str] | None = None
) -> list[Case]:
    """One case for each op that has a reference.

    Args:
        ops: as `namespace::name`.
        dtypes: of the tensors.
        device: to run on.
        chosen: names of the ops that are compared; all if not given.
    """
    return [
        Case(f"ops/{_name(op)}", f"{op} equals plain torch", partial(_compare, op, dtypes, device))
        for op in sorted(ops)
        if _own(op) and _name(op) in REFERENCES and (chosen is None or _name(op) in chosen)
    ]


def _own(op: str) -> bool:
    """Whether an op is of an extension module, whose namespaces begin with its name; others are written in Python."""
    return "_C" in op.partition("::")[0]


def _name(op: str) -> str:
    return op.rpartition("::")[2]


def _compare(op: str, dtypes: Sequence[torch.dtype], device: str, seed: int) -> dict[str, Any]:
    namespace, name = op.split("::")
    function = getattr(getattr(torch.ops, namespace), name)
    worst, calls = Worst(), 0
    for dtype in dtypes:
        for call in REFERENCES[name](Draw(dtype, seed)):
            what = f"{op}, call {calls + 1}, in {str(dtype).rpartition('.')[2]}"
            _check(call, _called(function, call, device, what), what, worst)
            calls += 1
    return {"calls": calls, **worst.figures}


def _called(function: Any, call: Call, device: str, what: str) -> dict[str, Any]:
    """Call an op; returns its arguments and what it returned, on the CPU."""
    given: dict[str, Any] = {}
    for argument in function.default._schema.arguments:
        if argument.name in call.arguments:
            given[argument.name] = _moved(
                call.arguments[argument.name], "cpu" if argument.name in call.on_cpu else device
            )
        elif not argument.has_default_value():
            raise Wrong(f"{what}: no value is known for its argument {argument.name}; this release differs")
    returned = function(**given)
    return {name: _moved(value, "cpu") for name, value in {**given, "return": returned}.items()}


def _moved(value: Any, device: str) -> Any:
    """A copy of a tensor, or of a list of tensors, on a device; everything else as it is."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    return [_moved(one, device) for one in value] if isinstance(value, list) else value


def _check(call: Call, got: dict[str, Any], what: str, worst: Worst) -> None:
    unchanged = {name: Expected(value) for name, value in call.arguments.items() if isinstance(value, (Tensor, list))}
    for name, expected in {**unchanged, **call.expected}.items():
        if name not in got:
            continue
        values = expected.value if isinstance(expected.value, list) else [expected.value]
        for tensor, value in zip(got[name] if isinstance(expected.value, list) else [got[name]], values):
            if expected.ordered is not None:
                tensor = expected.ordered(tensor)
            if expected.bound is not None:
                worst.within(name, what, tensor.to(torch.float64), value, expected.bound)
            elif not _equal(tensor, value):
                change = "holds" if name in call.expected else "is only read, and afterwards holds"
                raise Wrong(f"{what}: {name} {change} other numbers than {'torch' if change == 'holds' else 'before'}")


def _equal(a: Any, b: Any) -> bool:
    """Whether two results have the same bytes, whatever their dtype; for numbers, whether they are equal."""
    if not isinstance(a, Tensor):
        return bool(a == b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return bool(torch.equal(a.contiguous().view(-1).view(torch.uint8), b.contiguous().view(-1).view(torch.uint8)))


# Norms


def _normed(x: Tensor) -> Tensor:
    """Float64 numbers divided by their root mean square."""
    return x / (x.square().mean(-1, keepdim=True) + EPSILON).sqrt()


@_reference("rms_norm")
def _rms_norm(draw: Draw) -> Iterator[Call]:
    for size in HIDDEN:
        x, weight = draw.normal(7, size), draw.normal(size)
        arguments = {"result": draw.unwritten(7, size), "input": x, "weight": weight, "epsilon": EPSILON}
        # The first release names its output otherwise.
        arguments["out"] = arguments["result"]
        value = draw.near(_normed(x.double()) * weight.double(), 2.1)
        yield Call(arguments, {"result": value, "out": value})


@_reference("fused_add_rms_norm")
def _fused_add_rms_norm(draw: Draw) -> Iterator[Call]:
    for size in HIDDEN:
        x, residual, weight = draw.normal(7, size), draw.normal(7, size), draw.normal(size)
        total = x + residual
        arguments = {"input": x, "residual": residual, "weight": weight, "epsilon": EPSILON}
        value = draw.near(_normed(total.double()) * weight.double(), 3.1)
        yield Call(arguments, {"input": value, "residual": Expected(total)})


@_reference("poly_norm")
def _poly_norm(draw: Draw) -> Iterator[Call]:
    for size in HIDDEN:
        x, weight, bias = draw.normal(5, size), draw.normal(3), draw.normal(1)
        powers = [_normed(x.double() ** power) * weight[3 - power].double() for power in (1, 2, 3)]
        arguments = {"out": draw.unwritten(5, size), "input": x, "weight": weight, "bias": bias, "epsilon": EPSILON}
        # Each power and each sum may be rounded to the dtype.
        size_of = sum((power.abs() for power in powers), bias.double().abs())
        yield Call(arguments, {"out": draw.near(sum(powers, bias.double()), 8, size_of)})


# Activations


def _sigmoid(x: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-x))


GATED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "silu_and_mul": lambda x, y: x * _sigmoid(x) * y,
    "mul_and_silu": lambda x, y: x * y * _sigmoid(y),
    "gelu_and_mul": lambda x, y: functional.gelu(x) * y,
    "gelu_tanh_and_mul": lambda x, y: functional.gelu(x, approximate="tanh") * y,
    "fatrelu_and_mul": lambda x, y: torch.where(x > THRESHOLD, x, torch.zeros_like(x)) * y,
}
THRESHOLD = 0.25
ALPHA, LIMIT = 1.702, 1.5


@_references(*GATED)
def _gated(draw: Draw, name: str) -> Iterator[Call]:
    for size in (96, 65):
        x = draw.normal(6, 2 * size, spread=2.0)
        parts = x.double().chunk(2, dim=-1)
        out = draw.unwritten(6, size)
        # Half of gelu is a difference of numbers near 1, of which the approximate function has an absolute error.
        value = draw.near(GATED[name](*parts), 2.1)
        bound = value.bound + SINGLE * (parts[0] * parts[1]).abs() if value.bound is not None else None
        expected = Expected(value.value, bound)
        arguments = {"result": out, "out": out, "input": x, "threshold": THRESHOLD}
        yield Call(arguments, {"result": expected, "out": expected})


@_reference("swigluoai_and_mul")
def _swiglu(draw: Draw) -> Iterator[Call]:
    x = draw.normal(6, 2 * 96, spread=2.0)
    gate, up = x[..., ::2].double().clamp(max=LIMIT), x[..., 1::2].double().clamp(-LIMIT, LIMIT)
    value = (up + 1) * gate * _sigmoid(ALPHA * gate)
    arguments = {"out": draw.unwritten(6, 96), "input": x, "alpha": ALPHA, "limit": LIMIT}
    yield Call(arguments, {"out": draw.near(value, 4.1, (up.abs() + 1) * gate.abs())})


SINGLE_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_fast": lambda x: 0.5 * x * (1 + torch.tanh(0.7978845608 * x * (1 + 0.044715 * x * x))),
    "gelu_quick": lambda x: x * _sigmoid(1.702 * x),
}


@_references(*SINGLE_ACTIVATIONS)
def _activation(draw: Draw, name: str) -> Iterator[Call]:
    for size in (96, 65):
        x = draw.normal(6, size, spread=2.0)
        value = SINGLE_ACTIVATIONS[name](x.double())
        # The argument of tanh is rounded three times; where its slope is largest, it is at most 1.
        yield Call({"out": draw.unwritten(6, size), "input": x}, {"out": draw.near(value, 6, x.double())})


# Rotary embedding


@_references("rotary_embedding", "batched_rotary_embedding")
def _rotary(draw: Draw, name: str) -> Iterator[Call]:
    tokens, heads, kv_heads, size = 9, 4, 2, 64
    for neox, rotated in itertools.product((True, False), (64, 32)):
        table = draw.normal(40, rotated)
        positions = draw.whole(20, tokens)
        offsets = draw.whole(2, tokens) * 20 if name.startswith("batched") else torch.zeros_like(positions)
        cos, sin = table[positions + offsets].double().chunk(2, dim=-1)
        query, key = draw.normal(tokens, heads * size), draw.normal(tokens, kv_heads * size)
        arguments = {"positions": positions, "query": query, "key": key, "head_size": size, "cos_sin_cache": table}
        arguments |= {"is_neox": neox, "rot_dim": rotated, "cos_sin_cache_offsets": offsets}
        expected = {
            which: _turned(draw, x.view(tokens, -1, size), cos[:, None], sin[:, None], neox)
            for which, x in (("query", query), ("key", key))
        }
        yield Call(arguments, expected)


def _turned(draw: Draw, x: Tensor, cos: Tensor, sin: Tensor, neox: bool) -> Expected:
    """`[tokens, heads, size]` rotated, as `[tokens, heads * size]`; numbers behind the rotated ones stay."""
    value, bound = x.double(), torch.zeros(x.shape, dtype=torch.float64)
    half = cos.shape[-1]
    first, second = (slice(0, half), slice(half, 2 * half)) if neox else (slice(0, 2 * half, 2), slice(1, 2 * half, 2))
    a, b = value[..., first].clone(), value[..., second].clone()
    for place, one, other in ((first, a * cos, -b * sin), (second, b * cos, a * sin)):
        turned = draw.near(one + other, 2.1, one.abs() + other.abs())
        value[..., place] = one + other
        if turned.bound is not None:
            bound[..., place] = turned.bound
    return Expected(value.flatten(1), bound.flatten(1))


# Cache of keys and values

PAGES, PAGE = 6, 16


def _slots(draw: Draw, tokens: int) -> Tensor:
    """Different slots of a cache, one of them -1: a token that has none."""
    slots = draw.order(PAGES * PAGE)[:tokens]
    slots[tokens // 2] = -1
    return slots


@_reference("reshape_and_cache_flash")
def _reshape_and_cache_flash(draw: Draw) -> Iterator[Call]:
    key, value, slots = draw.normal(9, 2, 128), draw.normal(9, 2, 128), _slots(draw, 9)
    caches = {name: draw.unwritten(PAGES, PAGE, 2, 128) for name in ("key_cache", "value_cache")}
    expected = {}
    for (name, cache), new in zip(caches.items(), (key, value)):
        filled = cache.clone()
        filled.view(-1, 2, 128)[slots[slots >= 0]] = new[slots >= 0]
        expected[name] = Expected(filled)
    yield Call(_caching(key, value, slots) | caches, expected)


@_reference("reshape_and_cache")
def _reshape_and_cache(draw: Draw) -> Iterator[Call]:
    key, value, slots = draw.normal(9, 2, 64), draw.normal(9, 2, 64), _slots(draw, 9)
    # Keys lie in groups of 16 bytes: [pages, heads, size / 8, page, 8].
    keys, values = draw.unwritten(PAGES, 2, 8, PAGE, 8), draw.unwritten(PAGES, 2, 64, PAGE)
    filled_keys, filled_values = keys.clone(), values.clone()
    for token, slot in enumerate(slots.tolist()):
        if slot >= 0:
            filled_keys[slot // PAGE, :, :, slot % PAGE] = key[token].view(2, 8, 8)
            filled_values[slot // PAGE, :, :, slot % PAGE] = value[token]
    arguments = _caching(key, value, slots) | {"key_cache": keys, "value_cache": values}
    yield Call(arguments, {"key_cache": Expected(filled_keys), "value_cache": Expected(filled_values)})


def _caching(key: Tensor, value: Tensor, slots: Tensor) -> dict[str, Any]:
    return {"key": key, "value": value, "slot_mapping": slots, "kv_cache_dtype": "auto", "k_scale": ONE, "v_scale": ONE}


@_reference("concat_and_cache_mla")
def _concat_and_cache_mla(draw: Draw) -> Iterator[Call]:
    kv, rotary, slots = draw.normal(9, 96), draw.normal(9, 32), _slots(draw, 9)
    cache = draw.unwritten(PAGES, PAGE, 128)
    filled = cache.clone()
    filled.view(-1, 128)[slots[slots >= 0]] = torch.cat((kv, rotary), dim=-1)[slots >= 0]
    arguments = {"kv_c": kv, "k_pe": rotary, "kv_cache": cache, "slot_mapping": slots, "kv_cache_dtype": "auto"}
    yield Call(arguments | {"scale": ONE}, {"kv_cache": Expected(filled)})


# Pages that are copied, and where to; a page may go to several places.
COPIES = torch.tensor([[0, 3], [0, 4], [2, 5]])


def _copied(cache: Tensor) -> Tensor:
    copied = cache.clone()
    copied[COPIES[:, 1]] = cache[COPIES[:, 0]]
    return copied


@_reference("copy_blocks")
def _copy_blocks(draw: Draw) -> Iterator[Call]:
    caches = {name: [draw.normal(PAGES, PAGE, 2, 64) for _ in range(2)] for name in ("key_caches", "value_caches")}
    expected = {name: Expected([_copied(cache) for cache in of_layers]) for name, of_layers in caches.items()}
    yield Call({**caches, "block_mapping": COPIES}, expected)


@_reference("copy_blocks_mla")
def _copy_blocks_mla(draw: Draw) -> Iterator[Call]:
    caches = [draw.normal(PAGES, PAGE, 96) for _ in range(2)]
    yield Call(
        {"kv_caches": caches, "block_mapping": COPIES}, {"kv_caches": Expected([_copied(cache) for cache in caches])}
    )


@_reference("swap_blocks")
def _swap_blocks(draw: Draw) -> Iterator[Call]:
    for on_cpu in ((), ("src",), ("dst",)):
        src, dst = draw.normal(PAGES, PAGE, 2, 64), draw.normal(PAGES, PAGE, 2, 64)
        swapped = dst.clone()
        swapped[COPIES[:, 1]] = src[COPIES[:, 0]]
        arguments = {"src": src, "dst": dst, "block_mapping": COPIES}
        yield Call(arguments, {"dst": Expected(swapped)}, ("block_mapping", *on_cpu))


@_reference("gather_and_maybe_dequant_cache", "cp_gather_cache", "gather_cache")
def _gather(draw: Draw) -> Iterator[Call]:
    cache, lengths = draw.normal(PAGES, PAGE, 96), (37, 16, 5)
    table = draw.order(PAGES)[torch.tensor([[0, 1, 2, 3], [3, 4, 0, 1], [5, 2, 1, 0]])].int()
    starts = torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)
    for begin in (None, torch.tensor([16, 0, 32], dtype=torch.int32)):
        first = [0] * 3 if begin is None else begin.tolist()
        rows = [cache[row.long()].flatten(0, 1)[a : a + n] for row, a, n in zip(table, first, lengths)]
        arguments = {"src_cache": cache, "dst": draw.unwritten(sum(lengths), 96), "block_table": table}
        arguments |= {"cu_seq_lens": starts, "batch_size": 3, "kv_cache_dtype": "auto", "scale": ONE}
        yield Call(arguments | {"seq_starts": begin}, {"dst": Expected(torch.cat(rows))})


# Sampling and merging


@_reference("apply_repetition_penalties_")
def _penalties(draw: Draw) -> Iterator[Call]:
    # The engine's logits are float32, whatever the dtype of the model.
    for dtype in (torch.float32, draw.dtype):
        logits = draw.normal(3, 1003, spread=4.0).to(dtype)
        prompt, output = (draw.whole(4, 3, 1003) == 0 for _ in range(2))
        penalties = torch.tensor([1.05, 1.3, 0.8]).to(dtype)
        changed = torch.where(logits > 0, logits.double() / penalties[:, None], logits.double() * penalties[:, None])
        value = torch.where(prompt | output, changed, logits.double())
        bound = torch.where(prompt | output, value.abs() * (UNIT[dtype] * 1.01 + SINGLE), torch.zeros_like(value))
        arguments = {"prompt_mask": prompt, "output_mask": output, "repetition_penalties": penalties}
        yield Call({"logits": logits, **arguments}, {"logits": Expected(value, bound)})


@_reference("merge_attn_states")
def _merge(draw: Draw) -> Iterator[Call]:
    tokens, heads, size = 11, 3, 64
    outputs = [draw.normal(tokens, heads, size) for _ in range(2)]
    lses = [draw.normal(heads, tokens, spread=3.0).float() for _ in range(2)]
    # Where one part attends nothing, the other one is the answer.
    lses[0][0, 3], lses[1][2, 5] = torch.inf, -torch.inf
    clean = torch.stack(lses).double()
    clean[clean == torch.inf] = -torch.inf
    total = torch.logsumexp(clean, dim=0)
    parts = [out.double() * (lse - total).exp().t()[..., None] for out, lse in zip(outputs, clean)]
    arguments = {"output": draw.unwritten(tokens, heads, size), "output_lse": torch.full((heads, tokens), torch.nan)}
    arguments |= {"prefix_output": outputs[0], "suffix_output": outputs[1]}
    arguments |= {"prefix_lse": lses[0], "suffix_lse": lses[1]}
    value = draw.near(parts[0] + parts[1], 1.01, parts[0].abs() + parts[1].abs())
    yield Call(arguments, {"output": value, "output_lse": Expected(total, SINGLE * (1 + total.abs()))})


@_reference("weak_ref_tensor")
def _weak_reference(draw: Draw) -> Iterator[Call]:
    x = draw.normal(5, 7)
    yield Call({"input": x}, {"return": Expected(x)})


# Quantization


def _as_fp8(x: Tensor, error: Tensor | float) -> Expected:
    """Float64 numbers rounded to 8 bits; each may be off by `error` before that."""
    value = x.clamp(-LARGEST_FP8, LARGEST_FP8)
    # Half a unit in the last place, of normal numbers and of those below.
    return Expected(value, (value.abs() + error) * 2.0**-4 + 2.0**-10 + error)


def _fp8_arguments(x: Tensor) -> dict[str, Any]:
    zeros = torch.zeros(x.shape, dtype=FP8)
    return {"result": zeros, "out": zeros, "input": x}


@_reference("static_scaled_fp8_quant")
def _static_fp8(draw: Draw) -> Iterator[Call]:
    for size in HIDDEN:
        x, scale = draw.normal(5, size, spread=9.0), torch.tensor([0.0371])
        wanted = x.double() / scale.double()
        value = _as_fp8(wanted, wanted.abs() * SINGLE)
        yield Call(_fp8_arguments(x) | {"scale": scale}, {"result": value, "out": value})


@_reference("dynamic_scaled_fp8_quant")
def _dynamic_fp8(draw: Draw) -> Iterator[Call]:
    x = draw.normal(5, 512, spread=9.0)
    scale = x.double().abs().amax().view(1) / LARGEST_FP8
    wanted = x.double() / scale
    value = _as_fp8(wanted, wanted.abs() * SINGLE)
    # The caller passes a scale of 0, which the largest number then replaces.
    arguments = _fp8_arguments(x) | {"scale": torch.zeros(1)}
    yield Call(arguments, {"result": value, "out": value, "scale": Expected(scale, scale * SINGLE)})


@_reference("dynamic_per_token_scaled_fp8_quant")
def _per_token_fp8(draw: Draw) -> Iterator[Call]:
    for size, bound in itertools.product(HIDDEN, (None, torch.tensor([12.0]))):
        x = draw.normal(5, size, spread=9.0)
        most = x.double().abs().amax(-1, keepdim=True)
        scale = (most if bound is None else most.minimum(bound.double())) / LARGEST_FP8
        wanted = x.double() / scale
        value = _as_fp8(wanted, wanted.abs() * SINGLE)
        arguments = _fp8_arguments(x) | {"scales": torch.zeros(5, 1), "scale": torch.zeros(5, 1)}
        scales = Expected(scale, scale * SINGLE)
        expected = {"result": value, "out": value, "scale": scales, "scales": scales}
        yield Call(arguments | {"scale_ub": bound}, expected)


@_references("rms_norm_static_fp8_quant", "fused_add_rms_norm_static_fp8_quant")
def _norm_fp8(draw: Draw, name: str) -> Iterator[Call]:
    for size in HIDDEN:
        x, residual, weight = draw.normal(5, size), draw.normal(5, size), draw.normal(size)
        total = x + residual if name.startswith("fused") else x
        scale = torch.tensor([0.0173])
        wanted = _normed(total.double()) * weight.double() / scale.double()
        value = _as_fp8(wanted, wanted.abs() * (3.1 * UNIT[draw.dtype] + SINGLE))
        arguments = _fp8_arguments(x) | {"weight": weight, "scale": scale, "epsilon": EPSILON}
        expected = {"result": value, "out": value}
        if name.startswith("fused"):
            arguments["residual"], expected["residual"] = residual, Expected(total)
        yield Call(arguments, expected)


@_reference("rms_norm_dynamic_per_token_quant")
def _norm_per_token(draw: Draw) -> Iterator[Call]:
    for size, added in itertools.product(HIDDEN, (False, True)):
        x, residual, weight = draw.normal(5, size), draw.normal(5, size), draw.normal(size)
        total = x.double() + residual.double() if added else x.double()
        wanted = _normed(total) * weight.double()
        scale = wanted.abs().amax(-1, keepdim=True) / LARGEST_FP8
        off = 3.1 * UNIT[draw.dtype] + SINGLE
        value = _as_fp8(wanted / scale, (wanted / scale).abs() * 2 * off)
        arguments = _fp8_arguments(x) | {"weight": weight, "scale": torch.zeros(5, 1), "epsilon": EPSILON}
        arguments |= {"scale_ub": None, "residual": residual if added else None}
        expected = {"result": value, "out": value, "scale": Expected(scale, scale * off)}
        if added:
            expected["residual"] = Expected((x.float() + residual.float()).to(draw.dtype))
        yield Call(arguments, expected)


@_reference("silu_and_mul_quant")
def _silu_fp8(draw: Draw) -> Iterator[Call]:
    x, scale = draw.normal(5, 2 * 96, spread=3.0), torch.tensor([0.0213])
    left, right = x.double().chunk(2, dim=-1)
    wanted = left * _sigmoid(left) * right / scale.double()
    value = _as_fp8(wanted, wanted.abs() * (2.1 * UNIT[draw.dtype] + SINGLE))
    result = torch.zeros((5, 96), dtype=FP8)
    yield Call({"result": result, "out": result, "input": x, "scale": scale}, {"result": value, "out": value})


@_reference("per_token_group_fp8_quant")
def _per_group_fp8(draw: Draw) -> Iterator[Call]:
    x, group = draw.normal(5, 256, spread=9.0), 128
    groups = x.double().view(5, -1, group)
    scale = groups.abs().amax(-1) / LARGEST_FP8
    wanted = (groups / scale[..., None]).flatten(1)
    arguments = {"input": x, "output_q": torch.zeros((5, 256), dtype=FP8), "output_s": torch.zeros(5, 2)}
    arguments |= {"group_size": group, "eps": 1e-10, "fp8_min": -LARGEST_FP8, "fp8_max": LARGEST_FP8}
    expected = {"output_q": _as_fp8(wanted, wanted.abs() * SINGLE), "output_s": Expected(scale, scale * SINGLE)}
    yield Call(arguments | {"scale_ue8m0": False}, expected)


@_reference("convert_fp8")
def _convert_fp8(draw: Draw) -> Iterator[Call]:
    x, scale = draw.normal(PAGES, PAGE, 64, spread=9.0), 0.25
    stored = (x.double() / scale).float().to(FP8)
    arguments = {"dst_cache": torch.zeros(x.shape, dtype=torch.uint8), "src_cache": x, "scale": scale}
    yield Call(arguments | {"kv_cache_dtype": "fp8"}, {"dst_cache": Expected(stored.view(torch.uint8))})
    back = (stored.double() * scale).to(draw.dtype)
    arguments = {"dst_cache": torch.zeros_like(x), "src_cache": stored.view(torch.uint8), "scale": scale}
    yield Call(arguments | {"kv_cache_dtype": "fp8"}, {"dst_cache": Expected(back)})


# Mixture of experts


@_reference("topk_softmax")
def _topk_softmax(draw: Draw) -> Iterator[Call]:
    tokens, most = 13, 4
    for experts in (64, 60):
        gates = draw.normal(tokens, experts).float()
        weights, chosen = torch.softmax(gates.double(), dim=-1).topk(most, dim=-1)
        # Where each choice lies in the order of experts: choice by choice, token by token.
        places = torch.arange(most * tokens, dtype=torch.int32).view(most, tokens).t().contiguous()
        arguments = {"topk_weights": torch.full((tokens, most), torch.nan), "gating_output": gates}
        arguments |= {
            name: torch.full((tokens, most), -1, dtype=torch.int32) for name in ("topk_indices", "token_expert_indices")
        }
        expected = {"topk_weights": Expected(weights, weights * SINGLE)}
        expected |= {"topk_indices": Expected(chosen.int()), "token_expert_indices": Expected(places)}
        yield Call(arguments, expected)


@_reference("moe_align_block_size")
def _moe_align(draw: Draw) -> Iterator[Call]:
    block = 16
    # The op has a kernel for few tokens and experts, and others.
    for tokens, experts, most in ((13, 8, 2), (300, 96, 4)):
        chosen = torch.stack([draw.order(experts)[:most] for _ in range(tokens)]).int()
        counts = torch.bincount(chosen.flatten(), minlength=experts)
        padded = (counts + block - 1) // block * block
        total, size = int(padded.sum()), chosen.numel() + experts * (block - 1)
        # The caller fills what no choice takes with their number.
        places = torch.full((size,), chosen.numel(), dtype=torch.int32)
        of_experts = torch.zeros((size + block - 1) // block, dtype=torch.int32)
        parts = [*padded.tolist(), size - total]
        filled, begins = places.clone(), of_experts.clone()
        # An expert's choices may lie in any order.
        for own, part in zip(chosen.flatten().argsort(stable=True).split(counts.tolist()), filled.split(parts)):
            part[: len(own)] = own
        begins[: total // block] = torch.repeat_interleave(torch.arange(experts), padded // block)
        ordered = partial(_sorted_parts, parts)
        arguments = {"topk_ids": chosen, "num_experts": experts, "block_size": block, "sorted_token_ids": places}
        arguments |= {"experts_ids": of_experts, "num_tokens_post_pad": torch.zeros(1, dtype=torch.int32)}
        expected = {"sorted_token_ids": Expected(filled, ordered=ordered), "experts_ids": Expected(begins)}
        expected["num_tokens_post_pad"] = Expected(torch.tensor([total], dtype=torch.int32))
        yield Call(arguments, expected)


def _sorted_parts(parts: list[int], x: Tensor) -> Tensor:
    return torch.cat([part.sort().values for part in x.split(parts)])


@_reference("moe_sum")
def _moe_sum(draw: Draw) -> Iterator[Call]:
    for most in (2, 3, 4, 6):
        x = draw.normal(7, most, 96)
        value = draw.near(x.double().sum(1), most, x.double().abs().sum(1))
        yield Call({"input": x, "output": draw.unwritten(7, 96)}, {"output": value})
