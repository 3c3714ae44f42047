"""The cases of a GPU, run on a CPU: the oracle stands in for the kernels, and once more with each fault they are for.

No kernel runs here. What is shown is that a case passes where everything is right, and fails where it must.
"""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch

from dca.in_wheel_env import oracle
from dca.in_wheel_env.oracle import Converted
from dca.in_wheel_env.proof import bounds, conversion, kernels, layer, speed, stand_ins, whole
from dca.in_wheel_env.proof.case import Wrong

BF16, FP16 = torch.bfloat16, torch.float16
LAYER = whole.Plan(
    layer.Model(heads=4, kv_heads=2, dim=32, base=1e4, chunking=oracle.Chunking(640, 192), original=700, dtype=BF16),
    lengths={"small": 1_700},
    piece=470,
    sizes=((48, 106), (30, 101), (100, 112), (64, 108)),
    threshold=100,
    blocks=3,
)
TIMED = speed.Plan(
    layer.Model(heads=2, kv_heads=1, dim=16, base=1e4, chunking=oracle.Chunking(256, 64), original=0, dtype=BF16),
    lengths=(150, 500),
    piece=300,
    sizes=(40, 110),
    repeats=2,
)
EXTENT = kernels.Extent(
    dim=16,
    ranks=((4, 2), (3, 1)),
    lengths=((1, 70), (65, 65), (130, 201)),
    batches=(2,),
    dtypes=(BF16, FP16),
    rows=60,
    sampled=1,
    runs=3,
    layer=LAYER,
    timed=TIMED,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Kernels


def convert_rows(batch: conversion.Batch, into: Converted, first: int = 0) -> None:
    """The oracle's conversion into outputs that are given; `first` shifts rows, as a kernel that is off by one."""
    size, heads, rows = into.block_count.shape
    for b in range(size):
        for h in range(heads):
            v = batch.vertical[b, h, : batch.vertical_count[h] if batch.vertical_count else None].tolist()
            s = batch.slash[b, h, : batch.slash_count[h] if batch.slash_count else None].tolist()
            lengths = (batch.query_lengths[b], batch.key_lengths[b])
            for m in range(rows):
                row = oracle.convert_row_block(v, s, m * 64, *lengths, batch.causal)
                if row is None:
                    continue
                into.block_count[b, h, m], into.column_count[b, h, m] = len(row.offsets), len(row.columns)
                offsets = [offset + first for offset in row.offsets]
                into.block_offset[b, h, m, : len(offsets)] = torch.tensor(offsets, dtype=torch.int32)
                into.column_index[b, h, m, : len(row.columns)] = torch.tensor(row.columns, dtype=torch.int32)


RIGHT = stand_ins.Functions()
Attention = Callable[..., tuple[torch.Tensor, torch.Tensor]]


def right_sparse(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, converted: Converted, scale: float, causal: bool, out: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    found, lse = RIGHT.sparse_attn_func(
        q, k, v, *converted, softmax_scale=scale, causal=causal, return_softmax_lse=True
    )
    return (found if out is None else out.copy_(found)), lse


def right_dense(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    qs: Any,
    ks: Any,
    lq: int,
    lk: int,
    scale: float,
    causal: bool,
    out: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    found, lse = RIGHT.flash_attn_varlen_func(
        q,
        k,
        v,
        cu_seqlens_q=qs,
        cu_seqlens_k=ks,
        max_seqlen_q=lq,
        max_seqlen_k=lk,
        softmax_scale=scale,
        causal=causal,
        return_softmax_lse=True,
    )
    return (found if out is None else out.copy_(found)), lse


def right_ragged(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    converted: Converted,
    qs: Any,
    ks: Any,
    lq: int,
    lk: int,
    scale: float,
    causal: bool,
    out: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    lse = torch.empty(q.shape[1], q.shape[0])
    for b in range(len(qs) - 1):
        rows, keys = slice(int(qs[b]), int(qs[b + 1])), slice(int(ks[b]), int(ks[b + 1]))
        one = Converted(*(tensor[b : b + 1] for tensor in converted))
        found, sums = right_sparse(q[None, rows], k[None, keys], v[None, keys], one, scale, causal, None)
        out[rows], lse[:, rows] = found[0], sums[0]
    return out, lse


def stand_in(sparse: Attention = right_sparse, first: int = 0, **more: Any) -> kernels.Kernels:
    ops = stand_ins.Ops(partial(convert_rows, first=first), None)
    found = kernels.Kernels(
        "the oracle",
        ops.convert_vertical_slash_indexes,
        ops.convert_vertical_slash_indexes_mergehead,
        sparse,
        right_dense,
        right_ragged,
    )
    return dataclasses.replace(found, **more)


def all_cases(given: kernels.Kernels, modules: layer.Modules | None = None) -> dict[str, Any]:
    found = kernels.cases(given, modules, quick=False, device="cpu", extent=EXTENT)
    return {case.name: case.run for case in found}


NAMES = [name for name in all_cases(stand_in()) if not name.startswith("conversion/long")]


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_in_place_of_the_kernels_passes(name: str) -> None:
    figures = all_cases(stand_in())[name](1)
    for key, share in figures.items():
        if key.endswith("share of the bound"):
            assert share <= 1


def test_names_are_unique_and_what_is_left_out_is_named() -> None:
    for quick in (True, False):
        found = [case.name for case in kernels.cases(stand_in(), None, quick=quick, device="cpu")]
        assert len(found) == len(set(found))
    bare = stand_in(sparse_ragged=None)
    assert not any("ragged" in name for name in all_cases(bare))
    assert len(kernels.left_out(bare, None, quick=False)) == 2
    assert not kernels.left_out(stand_in(), layer.Modules(None, None), quick=False)
    assert len(kernels.left_out(stand_in(), layer.Modules(None, None), quick=True)) == 2


# Faults of sparse attention; each takes what the right function takes.


def not_causal(q: Any, k: Any, v: Any, converted: Any, scale: float, causal: bool, out: Any) -> Any:
    return right_sparse(q, k, v, converted, scale, False, out)


def shifted_limit(q: Any, k: Any, v: Any, converted: Any, scale: float, causal: bool, out: Any) -> Any:
    """Sees one key too many: the causal limit is counted from the first key and not from the last."""
    return right_sparse(q, torch.cat((k, k[:, -1:]), 1), torch.cat((v, v[:, -1:]), 1), converted, scale, causal, out)


def first_columns(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    """Columns come out of the first sequence's keys and values, in every sequence."""
    blocks = converted._replace(column_count=torch.zeros_like(converted.column_count))
    columns = converted._replace(block_count=torch.zeros_like(converted.block_count))
    first = [t[:1].expand_as(t) for t in (k, v)]
    parts = [
        right_sparse(q.float(), k.float(), v.float(), blocks, scale, causal, None),
        right_sparse(q.float(), first[0].float(), first[1].float(), columns, scale, causal, None),
    ]
    lses = torch.stack([lse.masked_fill(lse == torch.inf, -torch.inf) for _, lse in parts])
    total = torch.logsumexp(lses, 0)
    weights = torch.exp(lses - total.masked_fill(total == -torch.inf, 0)).transpose(2, 3)[..., None]
    found = sum(part * weight for (part, _), weight in zip(parts, weights))
    return out.copy_(found), total.masked_fill(total == -torch.inf, torch.inf)


def dropped_column(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    fewer = converted._replace(column_count=(converted.column_count - 1).clamp(min=0))
    return right_sparse(q, k, v, fewer, scale, causal, out)


def dropped_value(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    """The key counts, its value does not: the log-sum-exp is right."""
    last = int(converted.column_index.max())
    without = v.clone()
    without[:, last] = 0
    return right_sparse(q, k, without, converted, scale, causal, out)


def next_block(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    later = (converted.block_offset + 1).clamp(max=k.shape[1] - 1)
    return right_sparse(q, k, v, converted._replace(block_offset=later), scale, causal, out)


def other_head(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    """Query heads read the key heads in turn, not in groups."""
    return right_sparse(q, k.flip(2), v.flip(2), converted, scale, causal, out)


def not_a_number(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    found, lse = right_sparse(q, k, v, converted, scale, causal, out)
    found[-1, -1, -1, -1] = torch.nan
    return found, lse


def unwritten_row(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    """The last row of an uneven length is never written: the poison stays."""
    found, lse = right_sparse(q, k, v, converted, scale, causal, None)
    out[:, :-1] = found[:, :-1]
    return out, lse


def unwritten_sum(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    found, lse = right_sparse(q, k, v, converted, scale, causal, out)
    lse[..., -1] = torch.nan
    return found, lse


def other_output(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    return right_sparse(q, k, v, converted, scale, causal, None)


def base_two(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    found, lse = right_sparse(q, k, v, converted, scale, causal, out)
    return found, lse / torch.log(torch.tensor(2.0))


def half_precision_sum(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    """The log-sum-exp passed through the dtype."""
    found, lse = right_sparse(q, k, v, converted, scale, causal, out)
    return found, lse.to(q.dtype).float()


def coarse_output(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    """Two bits of the output are lost."""
    found, lse = right_sparse(q, k, v, converted, scale, causal, out)
    mantissa, exponent = torch.frexp(found.float())
    bits = 2.0 ** (6 if q.dtype == BF16 else 9)
    return found.copy_(torch.ldexp((mantissa * bits).round() / bits, exponent)), lse


def reads_leftovers(q: Any, k: Any, v: Any, converted: Converted, scale: float, causal: bool, out: Any) -> Any:
    one_more = (converted.column_count + 1).clamp(max=converted.column_index.shape[-1])
    return right_sparse(q, k, v, converted._replace(column_count=one_more), scale, causal, out)


def empty_is_minus_infinity(q: Any, k: Any, v: Any, converted: Any, scale: float, causal: bool, out: Any) -> Any:
    found, lse = right_sparse(q, k, v, converted, scale, causal, out)
    return found, lse.masked_fill(lse == torch.inf, -torch.inf)


def empty_is_not_zeroed(q: Any, k: Any, v: Any, converted: Any, scale: float, causal: bool, out: Any) -> Any:
    found, lse = right_sparse(q, k, v, converted, scale, causal, out)
    found[(lse == torch.inf).transpose(1, 2)] = 1
    return found, lse


class Changing:
    """Another last bit in every other run."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, q: Any, k: Any, v: Any, converted: Any, scale: float, causal: bool, out: Any) -> Any:
        found, lse = right_sparse(q, k, v, converted, scale, causal, out)
        self.calls += 1
        if self.calls % 2 == 0:
            found[0, 0, 0, 0] *= 1 + 2.0**-7
        return found, lse


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("sparse/bfloat16/causal/4-2", not_causal, "lie beyond their bounds"),
        ("sparse/bfloat16/causal/4-2", shifted_limit, "lie beyond their bounds"),
        ("sparse/bfloat16/full/4-2", first_columns, "sequence 1 of 2"),
        ("sparse/bfloat16/full/3-1", dropped_column, "log-sum-exp"),
        ("sparse/bfloat16/full/3-1", dropped_value, "output"),
        ("sparse/float16/full/3-1", dropped_value, "output"),
        ("sparse/float16/full/3-1", next_block, "lie beyond their bounds"),
        ("sparse/bfloat16/causal/3-1", next_block, "lie beyond their bounds"),
        ("sparse/bfloat16/full/4-2", other_head, "lie beyond their bounds"),
        ("sparse/bfloat16/full/4-2", not_a_number, "output is nan"),
        ("sparse/bfloat16/full/4-2", unwritten_row, "never written"),
        ("sparse/bfloat16/full/4-2", unwritten_sum, "log-sum-exp is nan"),
        ("sparse/bfloat16/full/4-2", other_output, "not written to"),
        ("sparse/bfloat16/full/4-2", base_two, "log-sum-exp"),
        ("sparse/bfloat16/full/4-2", half_precision_sum, "log-sum-exp"),
        ("sparse/bfloat16/full/4-2", coarse_output, "output"),
        ("sparse/float16/full/4-2", coarse_output, "output"),
        ("sparse/own-columns", first_columns, "sequence 1 of a batch attends the columns of sequence 0"),
        ("sparse/own-columns", dropped_column, "lie beyond their bounds"),
        ("sparse/future", not_causal, "it sees the future"),
        ("sparse/future", shifted_limit, "it sees the future"),
        ("sparse/empty", empty_is_minus_infinity, "want 0 and inf"),
        ("sparse/empty", empty_is_not_zeroed, "want 0 and inf"),
        ("sparse/full-cover", next_block, "lie beyond their bounds"),
        ("sparse/full-cover", not_causal, "lie beyond their bounds"),
        ("sparse/leftovers", reads_leftovers, "behind the counts"),
        ("sparse/same", Changing(), "other bits"),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else str(value),
)
def test_a_fault_of_sparse_attention_is_found(name: str, fault: Attention, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        all_cases(stand_in(fault))[name](1)


def test_a_conversion_that_is_off_by_one_is_found() -> None:
    with pytest.raises(Wrong, match="in place of"):
        all_cases(stand_in(first=1))["conversion/random"](1)


def test_a_conversion_that_changes_is_found() -> None:
    calls = []

    def changing(batch: conversion.Batch, into: Converted) -> None:
        convert_rows(batch, into)
        calls.append(1)
        if len(calls) == 2:
            into.block_count[0, 0, 0] += 1

    ops = stand_ins.Ops(changing, None)
    given = stand_in(convert=ops.convert_vertical_slash_indexes)
    given = dataclasses.replace(given, convert_mergehead=ops.convert_vertical_slash_indexes_mergehead)
    with pytest.raises(Wrong, match="another block_count"):
        all_cases(given)["conversion/same"](1)


@pytest.mark.parametrize("fault", ["first sequence", "not causal", "nan"])
def test_a_fault_of_ragged_attention_is_found(fault: str) -> None:
    def ragged(right: Attention, *given: Any) -> Any:
        *most, causal, out = given
        if fault == "not causal":
            causal = False
        elif fault == "first sequence":
            most[1] = most[1].roll(1, 0)
        found, lse = right(*most, causal, out)
        if fault == "nan":
            found[-1, 0, 0] = torch.nan
        return found, lse

    given = stand_in(dense=partial(ragged, right_dense), sparse_ragged=partial(ragged, right_ragged))
    for name in ("dense/bfloat16", "sparse/bfloat16/ragged"):
        with pytest.raises(Wrong, match="sequence"):
            all_cases(given)[name](1)


# Bounds


@pytest.mark.parametrize("dtype", [BF16, FP16])
def test_flash_attention_in_small_steps_stays_within_the_bounds(dtype: torch.dtype) -> None:
    """What the kernels do, by hand: float32 sums over blocks of 64, weights rounded to the dtype, a running maximum."""
    torch.manual_seed(0)
    queries, keys, dim = 80, 1500, 64
    q, k, v = (torch.randn(n, 1, dim).mul(spread).to(dtype) for n, spread in ((queries, 2), (keys, 1), (keys, 1)))
    scale = dim**-0.5
    largest = torch.full((queries,), -torch.inf)
    total, out = torch.zeros(queries), torch.zeros(queries, dim)
    for first in range(0, keys, 64):
        logits = (q[:, 0].float() @ k[first : first + 64, 0].float().t()) * scale
        new = torch.maximum(largest, logits.amax(-1))
        weights = torch.exp(logits - new[:, None])
        shrink = torch.exp(largest - new)
        total = total * shrink + weights.sum(-1)
        out = out * shrink[:, None] + weights.to(dtype).float() @ v[first : first + 64, 0].float()
        largest = new
    got, lse = (out / total[:, None]).to(dtype)[:, None], (largest + total.log())[:, None]
    part = oracle.attend(q.double(), k.double(), bounds.with_absolutes(v), scale)
    reference = bounds.bounded(part, q, bounds.Largest.of(k, v), keys, scale, dtype)
    worst = bounds.Worst()
    worst.within("log-sum-exp", "by hand", lse, reference.lse, reference.lse_bound)
    worst.within("output", "by hand", got, reference.out, reference.out_bound)
    assert worst.figures["output: share of the bound"] > 0.05, "a bound that is never neared proves nothing"
    with pytest.raises(Wrong, match="shape"):
        worst.within("output", "by hand", got[1:], reference.out, reference.out_bound)


# The ops of bare kernels, by their schemas


def test_ops_are_called_by_what_their_schemas_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Any, ...]] = []

    def op(*names: str) -> Any:
        arguments = [types.SimpleNamespace(name=name) for name in names]
        schema = types.SimpleNamespace(_schema=types.SimpleNamespace(arguments=arguments))

        class Op:
            default = schema

            def __call__(self, *given: Any) -> Any:
                told.append(given)
                return "out", "lse", "more"

        return Op()

    first = ("q", "k", "v", "block_count", "block_offset", "column_count", "column_index", "out", "alibi_slopes")
    windows = ("window_size_left", "window_size_right")
    last = ("softcap", "return_softmax", "gen")
    space = types.SimpleNamespace(
        fwd_sparse=op(*first, "p_dropout", "softmax_scale", "is_causal", *windows, *last),
        varlen_fwd=op("q", "cu_seqlens_q", "max_seqlen_k", "zero_tensors", "is_causal", "seqused_k"),
        convert_vertical_slash_indexes=1,
        convert_vertical_slash_indexes_mergehead=2,
    )
    bare = types.ModuleType("dca_kernels")
    bare.load = lambda: tuple(f"some_space::{name}" for name in vars(space))  # type: ignore[attr-defined]
    monkeypatch.setitem(__import__("sys").modules, "dca_kernels", bare)
    monkeypatch.setattr(torch, "ops", types.SimpleNamespace(some_space=space))
    found = kernels.load_kernels(bare=True)
    assert (found.convert, found.convert_mergehead, found.sparse_ragged) == (1, 2, None)
    assert found.sparse("q", "k", "v", Converted("a", "b", "c", "d"), 0.5, True, "out") == ("out", "lse")  # type: ignore[arg-type]
    assert found.dense("q", "k", "v", "qs", "ks", 3, 4, 0.5, False, "out") == ("out", "lse")
    assert told == [
        ("q", "k", "v", "a", "b", "c", "d", "out", None, 0.0, 0.5, True, -1, -1, 0.0, False, None),
        ("q", "qs", 4, False, False, None),
    ]


# Speed


def test_a_curve_has_a_point_for_each_length() -> None:
    figures = all_cases(stand_in())["speed/banded"](1)
    assert [point["tokens"] for point in figures["curve"]] == [150, 500]
    for point in figures["curve"]:
        assert 0 < point["keys per query"] <= 500
        assert point["ratio"] == point["dense ms"] / point["sparse ms"]


def test_what_is_the_same_everywhere_makes_bands() -> None:
    """Diagonals that stand beside each other fall into the same blocks, so fewer keys are attended."""
    model = dataclasses.replace(TIMED.model, chunking=oracle.Chunking(2048, 64))
    plan = dataclasses.replace(TIMED, model=model, lengths=(1200,), piece=1200, repeats=1)
    plan = dataclasses.replace(plan, sizes=(31, 130))
    banded, scattered = (
        speed._curve(stand_in(), plan, "cpu", same, 1)["curve"][0]["keys per query"] for same in (3.0, 0.0)
    )
    assert banded < scattered


def test_sparse_and_dense_times_are_of_the_same_attention() -> None:
    """With lines for everything both sides compute the same."""
    torch.manual_seed(0)
    model = dataclasses.replace(TIMED.model, dtype=torch.float32)
    plan = dataclasses.replace(TIMED, model=model, sizes=(1000, 1000))
    k, v, q = torch.randn(500, 1, 16), torch.randn(500, 1, 16), torch.randn(116, 2, 16)
    span = speed.Span(stand_in(), plan, k, v, q, 384)
    assert len(span.stages) == 3
    span._select()
    span._convert()
    torch.testing.assert_close(span._attend(), span.dense(), rtol=0, atol=1e-5)
    places = oracle.key_positions(torch.arange(500), plan.model.chunking)
    assert places[384] == 0
    # Keys are given rotated, queries are not.
    turned = oracle.rotate(k, -places, plan.model.base)
    want = oracle.prefill(q, turned, v, plan.model.chunking, plan.model.base, 0.25).out
    torch.testing.assert_close(span.dense(), want, rtol=0, atol=1e-4)


# The whole layer: one of our own, built from the oracle, in place of vLLM's


class FakeOps:
    """`vllm._custom_ops` as far as it matters here."""

    def convert_vertical_slash_indexes_mergehead(self, *given: Any) -> tuple[torch.Tensor, ...]:
        vertical, slash, context = given[2], given[3], given[6]
        shape = (*vertical.shape[:2], -(-context // 64))
        into = [
            torch.zeros((*shape, *more), dtype=torch.int32) for more in ((), slash.shape[2:], (), vertical.shape[2:])
        ]
        torch.ops._C.convert_vertical_slash_indexes_mergehead(*into, *given)
        return tuple(into)


class Op(torch.nn.Module):
    """What the rotary embedding derives from."""


@dataclasses.dataclass
class Metadata:
    """What the layer is told."""

    num_prefills: int
    seq_lens: list[int]
    orig_seq_lens: list[int]
    slot_mapping: torch.Tensor
    block_tables: torch.Tensor


def fake_rotary(fault: str) -> type:
    """`DualChunkRotaryEmbedding`."""

    class Rotary(Op):
        def __init__(self, head: int, _dim: int, _positions: int, base: float, _neox: bool, _dtype: Any, *chunks: int):
            super().__init__()
            self.head, self.base, self.chunking = head, base, oracle.Chunking(*chunks)

        def forward(self, positions: torch.Tensor, q: torch.Tensor, k: torch.Tensor) -> tuple[torch.Tensor, ...]:
            places = oracle.query_positions(positions, self.chunking)
            at = [places.intra, places.successive, places.inter, places.successive_critical, places.inter_critical]
            if fault == "unclamped":
                at[1] = places.successive_critical
            q, k = q.view(len(q), -1, self.head), k.view(len(k), -1, self.head)
            key = oracle.rotate(k, oracle.key_positions(positions, self.chunking), self.base).flatten(1)
            queries = [oracle.rotate(q, place, self.base).flatten(1) for place in at]
            return (queries[0], key, *queries[1:])

    return Rotary


class FakeLayer:
    """`DualChunkFlashAttentionImpl`."""

    fault = ""
    backend: Any = None

    def __init__(
        self, num_heads: int, head_size: int, num_kv_heads: int, dual_chunk_attention_config: Any, layer_idx: int
    ) -> None:
        self.heads, self.dim, self.kv_heads, self.index = num_heads, head_size, num_kv_heads, layer_idx
        self.config = dual_chunk_attention_config
        self.chunking = oracle.Chunking(self.config["chunk_size"], self.config["local_size"])

    def forward(
        self,
        query: Any,
        key: Any,
        value: Any,
        cache: Any,
        metadata: Metadata,
        _k: float,
        _v: float,
        query_succ: Any,
        query_inter: Any,
        succ_critical: Any,
        inter_critical: Any,
    ) -> torch.Tensor:
        count, end, whole = len(query), metadata.seq_lens[0], metadata.orig_seq_lens[0]
        factor = oracle.length_factor(whole, self.config["original_max_position_embeddings"])
        if self.fault != "keys without factor":
            key = key * factor
        k, v = (t.view(count, self.kv_heads, self.dim) for t in (key, value))
        torch.ops._C_cache_ops.reshape_and_cache_flash(k, v, cache[0], cache[1], metadata.slot_mapping)
        if self.fault == "stale value":
            cache[1][metadata.block_tables[0, 0].long(), 0] = 0
        pages = metadata.block_tables[0, : -(-end // cache.shape[2])].long()
        k, v = (part[pages].flatten(0, 1)[:end] for part in cache)
        queries = [
            t.view(count, self.heads, self.dim) for t in (query, query_succ, query_inter, succ_critical, inter_critical)
        ]
        scale = self.dim**-0.5
        if not metadata.num_prefills:
            queries = [(q * factor).to(q.dtype) for q in queries]
        else:
            scale *= factor if self.fault != "softmax without factor" else 1
        sparse = "sparse_attention_config" in self.config and metadata.num_prefills
        out = torch.empty_like(queries[0])
        for first, after in oracle.spans(end - count, end, self.chunking.stride):
            rows = slice(first - end + count, after - end + count)
            here = [q[rows] for q in queries]
            out[rows] = self._span(here, k[:after], v[:after], first, scale, bool(sparse))
        if self.fault == "nan":
            out[0, 0, 0] = torch.nan
        return out.flatten(1)

    def _span(self, queries: Any, k: Any, v: Any, first: int, scale: float, sparse: bool) -> torch.Tensor:
        stride, after = self.chunking.stride, len(k)
        own = first // stride * stride
        borders = [(own, after), (own - stride, own), (0, own - stride)]
        borders = [(a, b) for a, b in borders if a >= 0 and b > a]
        if self.fault == "no inter" or (self.fault == "decode without the past" and after - first == 1):
            borders = borders[: 2 if self.fault == "no inter" else 1]
        chosen = self._choose(queries, k, first, scale, len(borders)) if sparse else None
        parts = []
        for n, (a, b) in enumerate(borders):
            q, size = queries[n], (len(queries[n]), b - a)
            if chosen:
                lines = self._convert([one[n] for one in chosen], *size, n == 0)
                found = self.backend.sparse_attn_func(
                    q[None],
                    k[None, a:b],
                    v[None, a:b],
                    *lines,
                    causal=n == 0,
                    softmax_scale=scale,
                    return_softmax_lse=True,
                )
                found = [part[0] for part in found]
            else:
                starts = [torch.tensor([0, length]) for length in size]
                found = self.backend.flash_attn_varlen_func(
                    q=q,
                    k=k[a:b],
                    v=v[a:b],
                    cu_seqlens_q=starts[0],
                    cu_seqlens_k=starts[1],
                    max_seqlen_q=size[0],
                    max_seqlen_k=size[1],
                    softmax_scale=scale,
                    causal=n == 0,
                    return_softmax_lse=True,
                )
            parts.append(oracle.Partial(found[0].float(), found[1].t().float()))
        if self.fault == "equal weights":
            return torch.stack([part.out for part in parts]).mean(0)
        return oracle.merge(parts).out

    def _choose(self, queries: Any, k: Any, first: int, scale: float, stages: int) -> list[Any]:
        table = self.config["sparse_attention_config"][self.index]
        sizes = [tuple(table[str(head)][1:3]) for head in range(self.heads)]
        if self.fault == "fewer lines":
            sizes = [(vertical, slash - 1) for vertical, slash in sizes]
        voting = [queries[n].float() for n in (0, 3, 4)]
        if self.fault == "other voters":
            voting = [one.flip(0) for one in voting]
        found = oracle.select_vertical_slash(*voting, k.float(), self.chunking.stride, sizes, scale)
        lines = [[one.intra, one.successive, one.inter][:stages] for one in found]
        if self.fault == "shifted lines" and stages > 1:
            for one in lines:
                one[-1] = oracle.Stage(one[-1].vertical, one[-1].slash + 1)
        return lines

    def _convert(self, lines: Any, queries: int, keys: int, causal: bool) -> Any:
        pad = partial(torch.nn.utils.rnn.pad_sequence, batch_first=True)
        vertical, slash = (pad([getattr(one, name).int() for one in lines]) for name in ("vertical", "slash"))
        counts = [
            torch.tensor([len(getattr(one, name)) for one in lines], dtype=torch.int32)
            for name in ("vertical", "slash")
        ]
        lengths = [torch.tensor([length], dtype=torch.int32) for length in (queries, keys)]
        given = (*lengths, vertical[None], slash[None], *counts, queries, 64, 64, causal)
        return self.backend.ops.convert_vertical_slash_indexes_mergehead(*given)


def fake_modules(fault: str = "") -> layer.Modules:
    """A layer that does what it must, or has a fault."""
    backend = types.SimpleNamespace(
        flash_attn_varlen_func=None,
        flash_attn_with_kvcache=None,
        sparse_attn_func=None,
        ops=FakeOps(),
        get_tensor_model_parallel_rank=None,
        DualChunkFlashAttentionMetadata=Metadata,
    )
    backend.DualChunkFlashAttentionImpl = type("Faulty", (FakeLayer,), {"backend": backend, "fault": fault})
    return layer.Modules(backend, types.SimpleNamespace(DualChunkRotaryEmbedding=fake_rotary(fault)))


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_right_layer_passes(kind: str) -> None:
    figures = all_cases(stand_in(), fake_modules())[f"layer/{kind}/small"](1)
    assert figures["rows"] > 50
    assert figures["output: share of the bound"] <= 1
    if kind == "dense":
        assert figures["decoded: share of the bound"] <= 1
    else:
        assert figures["lines chosen as the oracle does"] > 0.9


@pytest.mark.parametrize(
    ("kind", "fault", "message"),
    [
        ("dense", "unclamped", "successive of tokens"),
        ("dense", "keys without factor", "cached key"),
        ("dense", "stale value", "the values are not those"),
        ("dense", "softmax without factor", "output is"),
        ("dense", "no inter", "output is"),
        ("dense", "equal weights", "output is"),
        ("dense", "nan", "output is nan"),
        ("dense", "decode without the past", "decode of token 1700"),
        ("sparse", "no inter", "conversions of indices"),
        ("sparse", "fewer lines", "come from no choice"),
        ("sparse", "shifted lines", "come from no choice"),
        ("sparse", "other voters", "was left out"),
        ("sparse", "equal weights", "output is"),
        ("sparse", "softmax without factor", "output is"),
    ],
)
def test_a_fault_of_the_layer_is_found(kind: str, fault: str, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        all_cases(stand_in(), fake_modules(fault))[f"layer/{kind}/small"](1)


@pytest.mark.parametrize("fault", [dropped_column, not_causal, base_two, next_block])
def test_a_fault_of_a_kernel_is_found_in_the_layer(fault: Attention, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(stand_ins.Functions):
        def sparse_attn_func(self, q: Any, k: Any, v: Any, *lines: Any, **given: Any) -> Any:
            return fault(q, k, v, Converted(*lines), given["softmax_scale"], given["causal"], torch.empty_like(q))

    monkeypatch.setattr(stand_ins, "Functions", Faulty)
    with pytest.raises(Wrong, match="output is"):
        all_cases(stand_in(), fake_modules())["layer/sparse/small"](1)
