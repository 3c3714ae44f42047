"""The cases of the ops around attention: right ops, written with torch in their dtype, pass, and faulty ones fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from dca.in_wheel_env.proof import ops
from dca.in_wheel_env.proof.case import Wrong

DTYPES = (torch.bfloat16, torch.float16)
Op = Callable[..., Any]


def rms_norm(result: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> None:
    mean = x.float().pow(2).mean(-1, keepdim=True)
    result.copy_((x.float() * torch.rsqrt(mean + epsilon)).to(x.dtype) * weight)


def fused_add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
    residual += x
    rms_norm(x, residual.clone(), weight, epsilon)


def silu_and_mul(result: Tensor, x: Tensor) -> None:
    gate, up = x.chunk(2, dim=-1)
    result.copy_(torch.nn.functional.silu(gate.float()).to(x.dtype) * up)


def gelu_new(out: Tensor, x: Tensor) -> None:
    out.copy_(torch.nn.functional.gelu(x.float(), approximate="tanh"))


def rotary_embedding(
    positions: Tensor, query: Tensor, key: Tensor | None, head_size: int, cos_sin_cache: Tensor, is_neox: bool
) -> None:
    cos, sin = cos_sin_cache[positions][:, None].chunk(2, dim=-1)
    half = cos.shape[-1]
    for x in (query, key):
        if x is not None:
            heads = x.view(len(positions), -1, head_size)[..., : 2 * half]
            a, b = heads.chunk(2, dim=-1) if is_neox else (heads[..., ::2], heads[..., 1::2])
            turned = (a * cos - b * sin, b * cos + a * sin)
            heads.copy_(torch.cat(turned, -1) if is_neox else torch.stack(turned, -1).flatten(-2))


def reshape_and_cache_flash(*given: Any) -> None:
    key, value, key_cache, value_cache, slots, *_ = given
    for x, cache in ((key, key_cache), (value, value_cache)):
        for token, slot in enumerate(slots.tolist()):
            if slot >= 0:
                cache[slot // cache.shape[1], slot % cache.shape[1]] = x[token]


def copy_blocks(key_caches: list[Tensor], value_caches: list[Tensor], block_mapping: Tensor) -> None:
    for cache in (*key_caches, *value_caches):
        for source, target in block_mapping.tolist():
            cache[target] = cache[source]


def static_scaled_fp8_quant(result: Tensor, x: Tensor, scale: Tensor) -> None:
    result.copy_((x.float() / scale).clamp(-448, 448).to(torch.float8_e4m3fn))


def apply_repetition_penalties_(
    logits: Tensor, prompt_mask: Tensor, output_mask: Tensor, repetition_penalties: Tensor
) -> None:
    by = repetition_penalties[:, None]
    repeated = prompt_mask | output_mask
    logits.copy_(torch.where(repeated, torch.where(logits > 0, logits / by, logits * by), logits))


def merge_attn_states(
    output: Tensor,
    output_lse: Tensor | None,
    prefix_output: Tensor,
    prefix_lse: Tensor,
    suffix_output: Tensor,
    suffix_lse: Tensor,
) -> None:
    lses = torch.stack((prefix_lse, suffix_lse))
    lses[lses == torch.inf] = -torch.inf
    total = torch.logsumexp(lses, 0)
    weights = (lses - total).exp().transpose(1, 2)[..., None]
    output.copy_(prefix_output.float() * weights[0] + suffix_output.float() * weights[1])
    if output_lse is not None:
        output_lse.copy_(total)


SCHEMAS: dict[Callable[..., None], str] = {
    rms_norm: "(Tensor! result, Tensor input, Tensor weight, float epsilon) -> ()",
    fused_add_rms_norm: "(Tensor! input, Tensor! residual, Tensor weight, float epsilon) -> ()",
    silu_and_mul: "(Tensor! result, Tensor input) -> ()",
    gelu_new: "(Tensor! out, Tensor input) -> ()",
    rotary_embedding: "(Tensor positions, Tensor! query, Tensor!? key, int head_size, Tensor cos_sin_cache, "
    "bool is_neox) -> ()",
    reshape_and_cache_flash: "(Tensor key, Tensor value, Tensor! key_cache, Tensor! value_cache, Tensor slot_mapping, "
    "str kv_cache_dtype, Tensor k_scale, Tensor v_scale) -> ()",
    copy_blocks: "(Tensor(a!)[] key_caches, Tensor(b!)[] value_caches, Tensor block_mapping) -> ()",
    static_scaled_fp8_quant: "(Tensor! result, Tensor input, Tensor scale) -> ()",
    apply_repetition_penalties_: "(Tensor! logits, Tensor prompt_mask, Tensor output_mask, "
    "Tensor repetition_penalties) -> ()",
    merge_attn_states: "(Tensor! output, Tensor!? output_lse, Tensor prefix_output, Tensor prefix_lse, "
    "Tensor suffix_output, Tensor suffix_lse) -> ()",
}


def name_of(function: Op) -> str:
    return str(function.__name__)


NAMES = [name_of(function) for function in SCHEMAS]


class Registered:
    """A library of ops that can be replaced one by one."""

    def __init__(self) -> None:
        self.library = torch.library.Library("_case_C", "DEF")
        self.now: dict[str, Op] = {}
        for function, schema in SCHEMAS.items():
            name = name_of(function)
            self.library.define(name + schema)
            self.library.impl(name, self._call(name), "CPU")

    def _call(self, name: str) -> Op:
        return lambda *given: self.now[name](*given)

    def run(self, name: str, function: Op | None = None) -> dict[str, Any]:
        """Run the case of an op, or of another function in its place."""
        right = next(one for one in SCHEMAS if name_of(one) == name)
        self.now[name] = function or right
        (case,) = ops.cases([f"_case_C::{name}"], DTYPES, "cpu")
        return case.run(3)


@pytest.fixture(scope="module")
def registered() -> Registered:
    before = ops.registered("cpu")
    made = Registered()
    assert {f"_case_C::{name}" for name in NAMES} == set(ops.registered("cpu") - before)
    return made


@pytest.mark.parametrize("name", NAMES)
def test_a_right_op_passes(registered: Registered, name: str) -> None:
    assert registered.run(name)["calls"] >= len(DTYPES)


def last_row(result: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> None:
    rms_norm(result[:-1], x[:-1], weight, epsilon)


def other_mean(result: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> None:
    rms_norm(result, x, weight * 1.01, epsilon)


def changed_input(result: Tensor, x: Tensor, weight: Tensor, epsilon: float) -> None:
    rms_norm(result, x, weight, epsilon)
    x[0, 0] += 1


def swapped_halves(result: Tensor, x: Tensor) -> None:
    silu_and_mul(result, torch.cat(x.chunk(2, dim=-1)[::-1], dim=-1))


def relu(out: Tensor, x: Tensor) -> None:
    out.copy_(torch.nn.functional.relu(x))


def residual_left(x: Tensor, residual: Tensor, weight: Tensor, epsilon: float) -> None:
    rms_norm(x, x + residual, weight, epsilon)


def turned_back(positions: Tensor, query: Tensor, key: Tensor, size: int, table: Tensor, neox: bool) -> None:
    cos, sin = table.chunk(2, dim=-1)
    rotary_embedding(positions, query, key, size, torch.cat((cos, -sin), dim=-1), neox)


def key_left(positions: Tensor, query: Tensor, key: Tensor, size: int, table: Tensor, neox: bool) -> None:
    rotary_embedding(positions, query, None, size, table, neox)


def writes_without_slot(*given: Any) -> None:
    given[4][given[4] < 0] = given[2].shape[0] * given[2].shape[1] - 1
    reshape_and_cache_flash(*given)


def first_layer(keys: list[Tensor], values: list[Tensor], mapping: Tensor) -> None:
    copy_blocks(keys[:1], values[:1], mapping)


def truncated(result: Tensor, x: Tensor, scale: Tensor) -> None:
    static_scaled_fp8_quant(result, x, scale * 1.07)


def positive_alone(logits: Tensor, prompt: Tensor, output: Tensor, by: Tensor) -> None:
    apply_repetition_penalties_(logits, prompt, torch.zeros_like(output), by)


def infinite(output: Tensor, lse: Tensor, a: Tensor, a_lse: Tensor, b: Tensor, b_lse: Tensor) -> None:
    merge_attn_states(output, None, a, a_lse, b, b_lse)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("rms_norm", last_row),
        ("rms_norm", other_mean),
        ("rms_norm", changed_input),
        ("silu_and_mul", swapped_halves),
        ("gelu_new", relu),
        ("fused_add_rms_norm", residual_left),
        ("rotary_embedding", turned_back),
        ("rotary_embedding", key_left),
        ("reshape_and_cache_flash", writes_without_slot),
        ("copy_blocks", first_layer),
        ("static_scaled_fp8_quant", truncated),
        ("apply_repetition_penalties_", positive_alone),
        ("merge_attn_states", infinite),
    ],
)
def test_a_faulty_op_is_found(registered: Registered, name: str, fault: Op) -> None:
    with pytest.raises(Wrong, match=f"_case_C::{name}, call"):
        registered.run(name, fault)


def test_an_op_without_a_reference_is_named() -> None:
    (line,) = ops.left_out(["_C::strange", "_C::rms_norm", "_C::convert_vertical_slash_indexes", "vllm::python"])
    assert line.endswith(": _C::strange")
    assert not ops.left_out(["_C::rms_norm", "_moe_C::moe_sum", "_inductor_test::realize"])
    chosen = ["rms_norm"]
    (line,) = ops.left_out(["_C::rms_norm", "_C::gelu_new"], chosen)
    assert line.endswith("--quick compares: _C::gelu_new")
    assert [case.name for case in ops.cases(["_C::rms_norm", "_C::gelu_new"], DTYPES, "cpu", chosen)] == [
        "ops/rms_norm"
    ]
    assert not ops.cases(["_C::strange", "vllm::rms_norm"], DTYPES, "cpu")


@pytest.mark.parametrize("name", sorted(ops.REFERENCES))
def test_references_name_what_they_expect(name: str) -> None:
    for dtype in DTYPES:
        for call in ops.REFERENCES[name](ops.Draw(dtype, 1)):
            assert set(call.expected) <= {*call.arguments, "return"}
            for expected in call.expected.values():
                if expected.bound is not None:
                    assert isinstance(expected.value, Tensor)
                    assert expected.value.shape == expected.bound.shape
                    assert expected.value.dtype == torch.float64
