"""The cases of a GPU, run on a CPU: the oracle stands in for the kernels, and once more with each fault they are for.

No kernel runs here. What is shown is that a case passes where everything is right, and fails where it must.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from fake_layer import fake_modules

from dca.in_wheel_env import oracle
from dca.in_wheel_env.oracle import Batch, Converted
from dca.in_wheel_env.proof import bounds, kernels, layer, speed, stand_ins, whole
from dca.in_wheel_env.proof.case import KNOWN, Inputs, Kernels, Paged, Ragged, Wrong

BF16, FP16 = torch.bfloat16, torch.float16
LAYER = whole.Plan(
    layer.Model(heads=4, kv_heads=2, dim=32, base=1e4, chunking=oracle.Chunking(640, 192), original=700, dtype=BF16),
    prompts={"small": whole.Prompt(1_650, 1_750, 470), "whole": whole.Prompt(500, 800, 800)},
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
    drawn=2,
    longest=700,
    changing=((200, 200), (256, 256), (150, 333)),
    batches=(2,),
    dtypes=(BF16, FP16),
    rows=60,
    sampled=1,
    runs=3,
    layers=(LAYER,),
    timed=TIMED,
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# Kernels


def convert_rows(batch: Batch, into: Converted, first: int = 0) -> None:
    """The oracle's conversion into outputs that are given; `first` shifts rows, as a kernel that is off by one."""
    size, heads, rows = into.block_count.shape
    for b in range(size):
        for h in range(heads):
            vertical, slash = batch.lines(b, h)
            lengths = (batch.query_lengths[b], batch.key_lengths[b])
            for m in range(rows):
                row = oracle.convert_row_block(vertical, slash, m * 64, *lengths, batch.causal)
                if row is None:
                    continue
                into.block_count[b, h, m], into.column_count[b, h, m] = len(row.offsets), len(row.columns)
                offsets = [offset + first for offset in row.offsets]
                into.block_offset[b, h, m, : len(offsets)] = torch.tensor(offsets, dtype=torch.int32)
                into.column_index[b, h, m, : len(row.columns)] = torch.tensor(row.columns, dtype=torch.int32)


RIGHT = stand_ins.Functions()
Answer = tuple[torch.Tensor, torch.Tensor]
SparseAttention = Callable[[Inputs, Converted], Answer]


def right_sparse(inputs: Inputs, converted: Converted) -> Answer:
    answer, lse = RIGHT.sparse_attn_func(
        inputs.q,
        inputs.k,
        inputs.v,
        *converted,
        softmax_scale=inputs.scale,
        causal=inputs.causal,
        return_softmax_lse=True,
    )
    return (answer if inputs.out is None else inputs.out.copy_(answer)), lse


def right_dense(inputs: Inputs, ragged: Ragged) -> Answer:
    answer, lse = RIGHT.flash_attn_varlen_func(
        inputs.q,
        inputs.k,
        inputs.v,
        cu_seqlens_q=ragged.query_starts,
        cu_seqlens_k=ragged.key_starts,
        max_seqlen_q=ragged.longest_query,
        max_seqlen_k=ragged.longest_key,
        softmax_scale=inputs.scale,
        causal=inputs.causal,
        return_softmax_lse=True,
    )
    return (answer if inputs.out is None else inputs.out.copy_(answer)), lse


def right_paged(inputs: Inputs, paged: Paged) -> Answer:
    assert inputs.out is not None
    sums = []
    for b, count in enumerate(paged.lengths.tolist()):
        k, v = (cache[paged.table[b].long()].flatten(0, 1)[:count] for cache in (inputs.k, inputs.v))
        ragged = Ragged.of([inputs.q.shape[1]], [count], "cpu")
        inputs.out[b], lse = right_dense(replace(inputs, q=inputs.q[b], k=k, v=v, out=None), ragged)
        sums.append(lse)
    return inputs.out, torch.stack(sums)


def right_ragged(inputs: Inputs, converted: Converted, ragged: Ragged) -> Answer:
    assert inputs.out is not None
    lse = torch.empty(inputs.q.shape[1], inputs.q.shape[0])
    for b in range(len(ragged.query_starts) - 1):
        rows, keys = ragged.rows(b)
        q, k, v = inputs.q[None, rows], inputs.k[None, keys], inputs.v[None, keys]
        answer, sums = right_sparse(Inputs(q, k, v, inputs.scale, inputs.causal), converted.sequence(b))
        inputs.out[rows], lse[:, rows] = answer[0], sums[0]
    return inputs.out, lse


def stand_in(sparse: SparseAttention = right_sparse, first: int = 0, **more: Any) -> Kernels:
    ops = stand_ins.Ops(partial(convert_rows, first=first), None)
    right = Kernels(
        "the oracle",
        ops.convert_vertical_slash_indexes,
        ops.convert_vertical_slash_indexes_mergehead,
        sparse,
        right_dense,
        right_paged,
        right_ragged,
    )
    return replace(right, **more)


def all_cases(under_test: Kernels, modules: layer.Modules | None = None) -> dict[str, Any]:
    cases = kernels.cases(under_test, modules, EXTENT, device="cpu")
    return {case.name: case.run for case in cases}


# The stand-in for the index conversion is too slow for these.
LONG = ("conversion/long", "conversion/drawn", "conversion/rows")
NAMES = [name for name in all_cases(stand_in(), fake_modules()) if name not in LONG and not name.startswith("layer/")]


@pytest.mark.parametrize("name", NAMES)
def test_the_oracle_in_place_of_the_kernels_passes(name: str) -> None:
    figures = all_cases(stand_in(), fake_modules())[name](1)
    for key, share in figures.items():
        if key.endswith("share of the bound"):
            assert share <= 1


def test_names_are_unique_and_what_is_left_out_is_named() -> None:
    for extent in kernels.EXTENTS.values():
        names = [case.name for case in kernels.cases(stand_in(), None, extent, device="cpu")]
        assert len(names) == len(set(names))
    bare = stand_in(sparse_ragged=None)
    assert not any("ragged" in name for name in all_cases(bare))
    modules = layer.Modules(None, None)
    assert len(kernels.left_out(bare, None, kernels.FULL)) == 2
    assert not kernels.left_out(stand_in(), modules, kernels.FULL)
    for extent in (kernels.QUICK, kernels.KERNELS, kernels.KERNELS_QUICK):
        assert len(kernels.left_out(stand_in(), modules, extent)) == 2


@pytest.mark.parametrize(("emulated", "quick"), kernels.EXTENTS)
def test_a_data_type_that_a_wheel_lacks_has_no_case_and_is_named(emulated: bool, quick: bool) -> None:
    def names(*dtypes: str) -> set[str]:
        extent = kernels.extent_of(dtypes, (), emulated=emulated, quick=quick)
        return {case.name for case in kernels.cases(stand_in(), None, extent, device="cpu")}

    assert names() == names("bfloat16", "float16")
    assert names() - names("bfloat16") == {name for name in names() if "/float16" in name} != set()
    modules = layer.Modules(None, None)
    (line,) = kernels.left_out(stand_in(), modules, kernels.extent_of(["bfloat16"], (), emulated=False, quick=False))
    assert "float16" in line


@pytest.mark.parametrize("head_dims", [(), (64, 128), (128,)])
def test_dense_attention_of_other_heads_is_run_where_the_wheel_has_kernels_for_them(head_dims: tuple[int, ...]) -> None:
    extent = kernels.extent_of((), head_dims, emulated=True, quick=True)
    listed = {case.name: case for case in kernels.cases(stand_in(), None, extent, device="cpu")}
    others = {f"{kind}/{dtype}/64" for kind in ("dense", "paged") for dtype in ("bfloat16", "float16")}
    assert others & set(listed) == (set() if head_dims == (128,) else others)
    if others <= set(listed):
        assert listed["dense/bfloat16/64"].run(1)
        assert listed["paged/float16/64"].run(1)


# Faults of sparse attention; each takes what the right function takes.


def not_causal(inputs: Inputs, converted: Converted) -> Answer:
    return right_sparse(replace(inputs, causal=False), converted)


def shifted_limit(inputs: Inputs, converted: Converted) -> Answer:
    """Sees one key too many: the causal limit is counted from the first key and not from the last."""
    k, v = (torch.cat((tensor, tensor[:, -1:]), 1) for tensor in (inputs.k, inputs.v))
    return right_sparse(replace(inputs, k=k, v=v), converted)


def first_columns(inputs: Inputs, converted: Converted) -> Answer:
    """Columns come out of the first sequence's keys and values, in every sequence."""
    blocks = converted._replace(column_count=torch.zeros_like(converted.column_count))
    columns = converted._replace(block_count=torch.zeros_like(converted.block_count))
    own = replace(inputs, q=inputs.q.float(), k=inputs.k.float(), v=inputs.v.float(), out=None)
    first = replace(own, k=own.k[:1].expand_as(own.k), v=own.v[:1].expand_as(own.v))
    parts = [right_sparse(own, blocks), right_sparse(first, columns)]
    lses = torch.stack([lse.masked_fill(lse == torch.inf, -torch.inf) for _, lse in parts])
    total = torch.logsumexp(lses, 0)
    weights = torch.exp(lses - total.masked_fill(total == -torch.inf, 0)).transpose(2, 3)[..., None]
    merged = sum(part * weight for (part, _), weight in zip(parts, weights))
    assert inputs.out is not None
    return inputs.out.copy_(merged), total.masked_fill(total == -torch.inf, torch.inf)


def dropped_column(inputs: Inputs, converted: Converted) -> Answer:
    fewer = converted._replace(column_count=(converted.column_count - 1).clamp(min=0))
    return right_sparse(inputs, fewer)


def dropped_value(inputs: Inputs, converted: Converted) -> Answer:
    """The key counts, its value does not: the log-sum-exp is right."""
    without = inputs.v.clone()
    without[:, int(converted.column_index.max())] = 0
    return right_sparse(replace(inputs, v=without), converted)


def next_block(inputs: Inputs, converted: Converted) -> Answer:
    later = (converted.block_offset + 1).clamp(max=inputs.k.shape[1] - 1)
    return right_sparse(inputs, converted._replace(block_offset=later))


def other_head(inputs: Inputs, converted: Converted) -> Answer:
    """Query heads read the key heads in turn, not in groups."""
    return right_sparse(replace(inputs, k=inputs.k.flip(2), v=inputs.v.flip(2)), converted)


def not_a_number(inputs: Inputs, converted: Converted) -> Answer:
    out, lse = right_sparse(inputs, converted)
    out[-1, -1, -1, -1] = torch.nan
    return out, lse


def unwritten_row(inputs: Inputs, converted: Converted) -> Answer:
    """The last row of an uneven length is never written: the poison stays."""
    whole, lse = right_sparse(replace(inputs, out=None), converted)
    assert inputs.out is not None
    inputs.out[:, :-1] = whole[:, :-1]
    return inputs.out, lse


def forgotten_rows(inputs: Inputs, converted: Converted) -> Answer:
    """Queries behind a multiple of 37 are never written, but at the fixed lengths."""
    whole, lse = right_sparse(replace(inputs, out=None), converted)
    assert inputs.out is not None
    count = inputs.q.shape[1]
    written = count if (count, inputs.k.shape[1]) in EXTENT.lengths else count // 37 * 37
    inputs.out[:, :written] = whole[:, :written]
    return inputs.out, lse


def unwritten_sum(inputs: Inputs, converted: Converted) -> Answer:
    out, lse = right_sparse(inputs, converted)
    lse[..., -1] = torch.nan
    return out, lse


def other_output(inputs: Inputs, converted: Converted) -> Answer:
    return right_sparse(replace(inputs, out=None), converted)


def base_two(inputs: Inputs, converted: Converted) -> Answer:
    out, lse = right_sparse(inputs, converted)
    return out, lse / torch.log(torch.tensor(2.0))


def half_precision_sum(inputs: Inputs, converted: Converted) -> Answer:
    """The log-sum-exp passed through the dtype."""
    out, lse = right_sparse(inputs, converted)
    return out, lse.to(inputs.q.dtype).float()


def coarse_output(inputs: Inputs, converted: Converted) -> Answer:
    """Two bits of the output are lost."""
    out, lse = right_sparse(inputs, converted)
    mantissa, exponent = torch.frexp(out.float())
    bits = 2.0 ** (6 if inputs.q.dtype == BF16 else 9)
    return out.copy_(torch.ldexp((mantissa * bits).round() / bits, exponent)), lse


def reads_leftovers(inputs: Inputs, converted: Converted) -> Answer:
    one_more = (converted.column_count + 1).clamp(max=converted.column_index.shape[-1])
    return right_sparse(inputs, converted._replace(column_count=one_more))


def empty_is_minus_infinity(inputs: Inputs, converted: Converted) -> Answer:
    out, lse = right_sparse(inputs, converted)
    return out, lse.masked_fill(lse == torch.inf, -torch.inf)


def empty_is_not_zeroed(inputs: Inputs, converted: Converted) -> Answer:
    out, lse = right_sparse(inputs, converted)
    out[(lse == torch.inf).transpose(1, 2)] = 1
    return out, lse


class Changing:
    """Another last bit in every other run."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, inputs: Inputs, converted: Converted) -> Answer:
        out, lse = right_sparse(inputs, converted)
        self.calls += 1
        if self.calls % 2 == 0:
            out[0, 0, 0, 0] *= 1 + 2.0**-7
        return out, lse


@pytest.mark.parametrize(
    ("name", "fault", "message"),
    [
        ("sparse/bfloat16/causal/4-2", not_causal, "exceed their bounds"),
        ("sparse/bfloat16/causal/4-2", shifted_limit, "exceed their bounds"),
        ("sparse/bfloat16/full/4-2", first_columns, "sequence 1 of 2"),
        ("sparse/bfloat16/full/3-1", dropped_column, "log-sum-exp"),
        ("sparse/bfloat16/full/3-1", dropped_value, "output"),
        ("sparse/float16/full/3-1", dropped_value, "output"),
        ("sparse/float16/full/3-1", next_block, "exceed their bounds"),
        ("sparse/bfloat16/causal/3-1", next_block, "exceed their bounds"),
        ("sparse/bfloat16/full/4-2", other_head, "exceed their bounds"),
        ("sparse/bfloat16/full/4-2", not_a_number, "output is nan"),
        ("sparse/bfloat16/full/4-2", unwritten_row, "never written"),
        ("sparse/float16/causal/3-1", forgotten_rows, "never written"),
        ("sparse/bfloat16/full/4-2", unwritten_sum, "log-sum-exp is nan"),
        ("sparse/bfloat16/full/4-2", other_output, "did not write to"),
        ("sparse/bfloat16/full/4-2", base_two, "log-sum-exp"),
        ("sparse/bfloat16/full/4-2", half_precision_sum, "log-sum-exp"),
        ("sparse/bfloat16/full/4-2", coarse_output, "output"),
        ("sparse/float16/full/4-2", coarse_output, "output"),
        ("sparse/own-columns", first_columns, "sequence 1 of a batch attends the columns of sequence 0"),
        ("sparse/own-columns", dropped_column, "log-sum-exp is inf"),
        ("sparse/future", not_causal, "it attends later keys"),
        ("sparse/future", shifted_limit, "it attends later keys"),
        ("sparse/empty", empty_is_minus_infinity, "expected 0 and inf"),
        ("sparse/empty", empty_is_not_zeroed, "expected 0 and inf"),
        ("sparse/full-cover", next_block, "exceed their bounds"),
        ("sparse/full-cover", not_causal, "exceed their bounds"),
        ("sparse/leftovers", reads_leftovers, "beyond the counts"),
        ("sparse/same", Changing(), "other bits"),
    ],
    ids=lambda value: getattr(value, "__name__", None) if callable(value) else str(value),
)
def test_a_fault_of_sparse_attention_is_found(name: str, fault: SparseAttention, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        all_cases(stand_in(fault))[name](1)


def test_a_conversion_that_is_off_by_one_is_found() -> None:
    with pytest.raises(Wrong, match="instead of"):
        all_cases(stand_in(first=1))["conversion/random"](1)


def test_a_conversion_that_changes_is_found() -> None:
    calls = []

    def changing(batch: Batch, into: Converted) -> None:
        convert_rows(batch, into)
        calls.append(1)
        if len(calls) == 2:
            into.block_count[0, 0, 0] += 1

    ops = stand_ins.Ops(changing, None)
    under_test = stand_in(
        convert=ops.convert_vertical_slash_indexes, convert_mergehead=ops.convert_vertical_slash_indexes_mergehead
    )
    with pytest.raises(Wrong, match="another block_count"):
        all_cases(under_test)["conversion/same"](1)


@pytest.mark.parametrize("fault", ["first sequence", "not causal", "nan"])
def test_a_fault_of_ragged_attention_is_found(fault: str) -> None:
    def faulty(right: Callable[..., Answer], inputs: Inputs, *more: Any) -> Answer:
        if fault == "not causal":
            inputs = replace(inputs, causal=False)
        elif fault == "first sequence":
            inputs = replace(inputs, k=inputs.k.roll(1, 0))
        out, lse = right(inputs, *more)
        if fault == "nan":
            out[int(more[-1].query_starts[-1]) - 1, 0, 0] = torch.nan
        return out, lse

    under_test = stand_in(dense=partial(faulty, right_dense), sparse_ragged=partial(faulty, right_ragged))
    for name in ("dense/bfloat16", "sparse/bfloat16/ragged"):
        with pytest.raises(Wrong, match="sequence"):
            all_cases(under_test)[name](1)


# Bounds


def padded_ragged(inputs: Inputs, converted: Converted, ragged: Ragged, error: float = 0.0) -> Answer:
    """Its log-sum-exp lies in the padded layout of flash attention."""
    out, lse = right_ragged(inputs, converted, ragged)
    padded = torch.full_like(lse, torch.nan).flatten()
    for b in range(len(ragged.query_starts) - 1):
        rows = ragged.rows(b)[0]
        for head in range(len(lse)):
            first = (b * len(lse) + head) * ragged.longest_query
            padded[first : first + rows.stop - rows.start] = lse[head, rows] + error
    return out, padded.view_as(lse)


def test_the_known_layout_of_a_log_sum_exp_is_named_and_condemns_nothing() -> None:
    name = "sparse/bfloat16/ragged"
    figures = all_cases(stand_in(sparse_ragged=padded_ragged))[name](1)
    assert "never calls it" in figures[KNOWN]
    assert KNOWN not in all_cases(stand_in())[name](1)
    with pytest.raises(Wrong, match="log-sum-exp is"):
        all_cases(stand_in(sparse_ragged=partial(padded_ragged, error=0.01)))[name](1)


@pytest.mark.parametrize("fault", ["last page", "other page", "reads behind the end"])
def test_a_fault_of_paged_attention_is_found(fault: str) -> None:
    def paged(inputs: Inputs, places: Paged) -> Answer:
        lengths, table = places.lengths.clone(), places.table.clone()
        if fault == "last page":
            lengths[-1] -= 1
        elif fault == "other page":
            table[2, [0, 8]] = table[2, [8, 0]]
        else:
            lengths[-2] += 1
        return right_paged(inputs, replace(places, lengths=lengths, table=table))

    with pytest.raises(Wrong, match="keys in pages"):
        all_cases(stand_in(paged=paged))["paged/bfloat16"](1)


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
    reference = bounds.bounded(part, q, bounds.Roundings(bounds.Largest.of(k, v), keys, scale, dtype))
    worst = bounds.Worst()
    worst.within("log-sum-exp", "by hand", lse, reference.lse, reference.lse_bound)
    worst.within("output", "by hand", got, reference.out, reference.out_bound)
    assert worst.figures["output: share of the bound"] > 0.05, "a bound that is never neared proves nothing"
    with pytest.raises(Wrong, match="shape"):
        worst.within("output", "by hand", got[1:], reference.out, reference.out_bound)


# The ops of bare kernels, by their schemas


def test_ops_are_called_by_what_their_schemas_ask_for(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    def op(*names: str) -> Any:
        arguments = [types.SimpleNamespace(name=name) for name in names]
        schema = types.SimpleNamespace(_schema=types.SimpleNamespace(arguments=arguments))

        class Op:
            default = schema

            def __call__(self, *arguments: Any) -> Any:
                calls.append(arguments)
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
    loaded = kernels.load_kernels(bare=True)
    assert loaded.convert == space.convert_vertical_slash_indexes
    assert loaded.convert_mergehead == space.convert_vertical_slash_indexes_mergehead
    assert loaded.sparse_ragged is None
    causal = Inputs("q", "k", "v", 0.5, True, "out")
    assert loaded.sparse(causal, Converted("a", "b", "c", "d")) == ("out", "lse")
    assert loaded.dense(replace(causal, causal=False), Ragged("qs", "ks", 3, 4)) == ("out", "lse")
    assert calls == [
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
    model = replace(TIMED.model, chunking=oracle.Chunking(2048, 64))
    plan = replace(TIMED, model=model, lengths=(1200,), piece=1200, repeats=1)
    plan = replace(plan, sizes=(31, 130))
    banded, scattered = (
        speed._curve(stand_in(), plan, "cpu", same, 1)["curve"][0]["keys per query"] for same in (3.0, 0.0)
    )
    assert banded < scattered


def test_sparse_and_dense_times_are_of_the_same_attention() -> None:
    """With lines for everything both sides compute the same."""
    torch.manual_seed(0)
    model = replace(TIMED.model, dtype=torch.float32)
    plan = replace(TIMED, model=model, sizes=(1000, 1000))
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
    want = oracle.prefill(q, turned, v, oracle.DualChunk(plan.model.chunking, plan.model.base, 0.25)).out
    torch.testing.assert_close(span.dense(), want, rtol=0, atol=1e-4)


# The whole layer: one of our own, see `fake_layer`


@pytest.mark.parametrize("prompt", ["small", "whole"])
@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_a_right_layer_passes(kind: str, prompt: str) -> None:
    figures = all_cases(stand_in(), fake_modules())[f"layer/{kind}/{prompt}"](1)
    assert figures["rows"] > (50 if prompt == "small" else 10)
    assert figures["output: share of the bound"] <= 1
    if kind == "dense":
        assert figures["decoded: share of the bound"] <= 1
    else:
        assert figures["lines chosen as the oracle does"] > 0.9


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("fault", ["voting in the dtype", "fewer lines", "other voters"])
def test_a_choice_that_is_not_made_in_float32_is_found(dtype: str, fault: str) -> None:
    with pytest.raises(Wrong, match=r"was left out|no choice of"):
        all_cases(stand_in(), fake_modules(fault))[f"selection/{dtype}"](1)


@pytest.mark.parametrize(
    ("kind", "fault", "message"),
    [
        ("dense", "unclamped", "successive of tokens"),
        ("dense", "keys without factor", "cached key"),
        ("dense", "stale value", "the values differ from the input"),
        ("dense", "softmax without factor", "output is"),
        ("dense", "no inter", "output is"),
        ("dense", "equal weights", "output is"),
        ("dense", "nan", "output is nan"),
        ("dense", "decode without the past", "decode of token 1"),
        ("sparse", "no inter", "index conversions"),
        ("sparse", "fewer lines", "no choice of"),
        ("sparse", "shifted lines", "no choice of"),
        ("sparse", "other voters", "was left out"),
        ("sparse", "equal weights", "output is"),
        ("sparse", "softmax without factor", "output is"),
    ],
)
def test_a_fault_of_the_layer_is_found(kind: str, fault: str, message: str) -> None:
    with pytest.raises(Wrong, match=message):
        all_cases(stand_in(), fake_modules(fault))[f"layer/{kind}/small"](1)


@pytest.mark.parametrize("fault", [dropped_column, not_causal, base_two, next_block])
def test_a_fault_of_a_kernel_is_found_in_the_layer(fault: SparseAttention, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faulty(stand_ins.Functions):
        def sparse_attn_func(self, q: Any, k: Any, v: Any, *lines: Any, **options: Any) -> Any:
            inputs = Inputs(q, k, v, options["softmax_scale"], options["causal"], torch.empty_like(q))
            return fault(inputs, Converted(*lines))

    monkeypatch.setattr(stand_ins, "Functions", Faulty)
    with pytest.raises(Wrong, match="output is"):
        all_cases(stand_in(), fake_modules())["layer/sparse/small"](1)
