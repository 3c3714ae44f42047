"""Compares the kernels of a wheel, run on a GPU or on an emulated one, with the oracle, within `bounds`."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from typing import Any

import torch
from torch import Tensor

from .. import oracle
from ..oracle import Batch, Converted
from . import conversion, precision, speed, whole
from .bounds import UNIT, Largest, Reference, Roundings, Worst, bounded, with_absolutes
from .case import KNOWN, Case, Inputs, Kernels, Paged, Ragged, Wrong
from .conversion import BLOCK
from .layer import Modules
from .lengths import draw, spread


def load_kernels(bare: bool) -> Kernels:
    """The kernels that this process imports.

    Args:
        bare: import the extension modules of `dca_kernels` instead of vLLM and its functions.
    """
    return _of_modules() if bare else _of_vllm()


def _of_vllm() -> Kernels:
    importlib.import_module("vllm._custom_ops")
    flash = importlib.import_module("vllm.vllm_flash_attn")

    def sparse(inputs: Inputs, converted: Converted) -> Any:
        q, k, v = inputs.q, inputs.k, inputs.v
        return flash.sparse_attn_func(q, k, v, *converted, **_options(inputs), return_softmax_lse=True)

    def dense(inputs: Inputs, ragged: Ragged) -> Any:
        return flash.flash_attn_varlen_func(
            q=inputs.q, k=inputs.k, v=inputs.v, **_lengths(ragged), **_options(inputs), return_softmax_lse=True
        )

    def paged(inputs: Inputs, places: Paged) -> Any:
        return flash.flash_attn_with_kvcache(
            inputs.q,
            inputs.k,
            inputs.v,
            cache_seqlens=places.lengths,
            block_table=places.table,
            num_splits=places.splits,
            **_options(inputs),
            return_softmax_lse=True,
        )

    def sparse_ragged(inputs: Inputs, converted: Converted, ragged: Ragged) -> Any:
        return flash.sparse_attn_varlen_func(
            inputs.q, inputs.k, inputs.v, *converted, **_lengths(ragged), **_options(inputs), return_softmax_lse=True
        )

    ops = torch.ops._C
    return Kernels(
        "vLLM",
        ops.convert_vertical_slash_indexes,
        ops.convert_vertical_slash_indexes_mergehead,
        sparse,
        dense,
        paged,
        sparse_ragged if hasattr(flash, "sparse_attn_varlen_func") else None,
    )


def _options(inputs: Inputs) -> dict[str, Any]:
    return {"softmax_scale": inputs.scale, "causal": inputs.causal, "out": inputs.out}


def _lengths(ragged: Ragged) -> dict[str, Any]:
    return {
        "cu_seqlens_q": ragged.query_starts,
        "cu_seqlens_k": ragged.key_starts,
        "max_seqlen_q": ragged.longest_query,
        "max_seqlen_k": ragged.longest_key,
    }


def _of_modules() -> Kernels:
    ops = importlib.import_module("dca_kernels").load()
    of = {name.partition("::")[2]: name.partition("::")[0] for name in ops}

    def op(name: str) -> Any:
        return getattr(getattr(torch.ops, of[name]), name)

    def sparse(inputs: Inputs, converted: Converted) -> Any:
        return _call(op("fwd_sparse"), inputs, converted._asdict())

    def dense(inputs: Inputs, ragged: Ragged) -> Any:
        return _call(op("varlen_fwd"), inputs, _lengths(ragged))

    def paged(inputs: Inputs, places: Paged) -> Any:
        of_cache = {"kcache": inputs.k, "vcache": inputs.v, "k": None, "v": None, "seqlens_k": places.lengths}
        return _call(op("fwd_kvcache"), inputs, {**of_cache, "block_table": places.table, "num_splits": places.splits})

    def sparse_ragged(inputs: Inputs, converted: Converted, ragged: Ragged) -> Any:
        return _call(op("varlen_fwd_sparse"), inputs, {**converted._asdict(), **_lengths(ragged)})

    return Kernels(
        "bare kernels",
        op("convert_vertical_slash_indexes"),
        op("convert_vertical_slash_indexes_mergehead"),
        sparse,
        dense,
        paged,
        sparse_ragged if "varlen_fwd_sparse" in of else None,
    )


# Neutral values of the ops' other arguments; releases differ in which of them the ops have.
_NEUTRAL = {
    "alibi_slopes": None,
    "p_dropout": 0.0,
    "window_size_left": -1,
    "window_size_right": -1,
    "softcap": 0.0,
    "return_softmax": False,
    "gen": None,
    "seqused_k": None,
    "leftpad_k": None,
    "block_table": None,
    "zero_tensors": False,
    "rotary_cos": None,
    "rotary_sin": None,
    "cache_batch_idx": None,
    "is_rotary_interleaved": False,
}


def _call(op: Any, inputs: Inputs, more: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Call an op with the arguments in its schema; `more` are further arguments by their names there."""
    tensors = {"q": inputs.q, "k": inputs.k, "v": inputs.v}
    known = {**_NEUTRAL, **tensors, **_options(inputs), **more, "is_causal": inputs.causal}
    out, lse, *_ = op(*(known[argument.name] for argument in op.default._schema.arguments))
    return out, lse


@dataclass(frozen=True)
class Extent:
    """The extent of the cases.

    Attributes:
        dim: of one head.
        ranks: query heads and key heads of one GPU of a tensor-parallel group.
        lengths: of queries and keys.
        drawn: how many more are drawn from the seed.
        longest: the most queries of a drawn length; there are up to twice as many keys.
        changing: queries and keys of the calls whose later keys are changed.
        batches: sizes of batches.
        dtypes: of the tensors, of which a wheel may have only some.
        rows: random rows of 64 queries for the index conversion.
        sampled: rows of a head at a model's lengths, likewise.
        runs: how often the same call must give the same bits.
        layers: the inputs of the whole layer.
        timed: what is timed; nothing if not given.
        ops: of the other ops, the names of those that are compared; all that have a reference if not given.
        other_dims: of heads without dual chunk attention, for dense attention; those that the wheel has kernels for.
    """

    dim: int
    ranks: tuple[tuple[int, int], ...]
    lengths: tuple[tuple[int, int], ...]
    drawn: int
    longest: int
    changing: tuple[tuple[int, int], ...]
    batches: tuple[int, ...]
    dtypes: tuple[torch.dtype, ...]
    rows: int
    sampled: int
    runs: int
    layers: tuple[whole.Plan, ...]
    timed: speed.Plan | None
    ops: tuple[str, ...] | None = None
    other_dims: tuple[int, ...] = ()


# The 1M models have 28 heads over 4 key heads, and 40 over 8; here split over all possible numbers of GPUs.
FULL = Extent(
    dim=128,
    ranks=((28, 4), (14, 2), (7, 1), (40, 8), (20, 4), (10, 2), (5, 1)),
    lengths=((1, 200), (64, 64), (65, 65), (130, 333), (192, 640), (577, 1001)),
    drawn=3,
    longest=700,
    changing=((200, 200), (256, 256), (150, 333)),
    batches=(1, 3),
    dtypes=(torch.bfloat16, torch.float16),
    rows=20_000,
    sampled=200,
    runs=20,
    layers=(whole.FULL,),
    timed=speed.FULL,
    # Other kernels than those of 128, and what most other models have.
    other_dims=(64,),
)
QUICK = replace(
    FULL,
    ranks=((7, 1), (10, 2)),
    lengths=((65, 65),),
    drawn=2,
    batches=(2,),
    rows=2_000,
    sampled=10,
    layers=(whole.QUICK,),
    timed=None,
)
# On an emulated GPU, where a row block of one head against 333 keys takes some 20 ms. The first and the last rank are
# the smallest, because most cases use these.
KERNELS = replace(
    FULL,
    ranks=((7, 1), (14, 2), (28, 4), (40, 8), (20, 4), (10, 2), (5, 1)),
    lengths=((1, 70), (64, 64), (130, 195)),
    drawn=1,
    longest=150,
    changing=((150, 215),),
    batches=(2,),
    rows=400,
    sampled=2,
    runs=2,
    layers=(whole.EMULATED, whole.TILED),
    timed=None,
)
KERNELS_QUICK = replace(
    KERNELS,
    ranks=((7, 1), (5, 1)),
    lengths=((65, 130),),
    drawn=0,
    longest=100,
    changing=((70, 130),),
    rows=100,
    sampled=1,
    layers=(whole.EMULATED_QUICK,),
    # What every layer of a model calls; each further kernel takes g++ some ten seconds once.
    ops=("rms_norm", "fused_add_rms_norm", "silu_and_mul", "rotary_embedding", "reshape_and_cache_flash"),
)
# By whether the GPU is emulated, and whether only a part is proven.
EXTENTS = {(False, False): FULL, (False, True): QUICK, (True, False): KERNELS, (True, True): KERNELS_QUICK}


def extent_of(dtypes: Sequence[str], head_dims: Sequence[int], *, emulated: bool, quick: bool) -> Extent:
    """The extent of the cases of a wheel.

    Args:
        dtypes: those that its kernels have, as torch names them; all when empty.
        head_dims: likewise.
        emulated: the GPU is emulated.
        quick: only cases that take less than a minute in all.
    """
    extent = EXTENTS[emulated, quick]
    return replace(
        extent,
        dtypes=tuple(dtype for dtype in extent.dtypes if not dtypes or _name(dtype) in dtypes),
        other_dims=tuple(dim for dim in extent.other_dims if not head_dims or dim in head_dims),
    )


def cases(kernels: Kernels, modules: Modules | None, extent: Extent, *, device: str = "cuda") -> list[Case]:
    """The cases.

    Args:
        kernels: what is under test.
        modules: the wheel's Python of the layer; None for bare kernels, see `left_out`.
        extent: of the cases.
        device: to run on.
    """
    bench = Bench(kernels, extent, device)
    converting = bench.conversion()
    listed = conversion.cases(converting, extent.rows, extent.sampled)
    listed.append(
        Case("conversion/same", f"index conversion gives the same {extent.runs} times", partial(_same_rows, bench))
    )
    for dtype, causal, (heads, kv_heads) in itertools.product(extent.dtypes, (True, False), extent.ranks):
        kind, name = "causal" if causal else "full", _name(dtype)
        listed.append(
            Case(
                f"sparse/{name}/{kind}/{heads}-{kv_heads}",
                f"sparse attention of {heads} heads over {kv_heads} key heads in {name}, {_kind(causal)}",
                partial(_sparse, bench, dtype, causal, heads, kv_heads),
            )
        )
    for dtype in extent.dtypes:
        name = _name(dtype)
        for dim in (extent.dim, *extent.other_dims):
            of_dim = replace(bench, extent=replace(extent, dim=dim))
            other, more = ("", "") if dim == extent.dim else (f"/{dim}", f", head dimension {dim}")
            proves = f"dense attention of ragged lengths in {name}{more}"
            listed.append(Case(f"dense/{name}{other}", proves, partial(_dense, of_dim, dtype)))
            proves = f"dense decoding from pages, in parts, in {name}{more}"
            listed.append(Case(f"paged/{name}{other}", proves, partial(_paged, of_dim, dtype)))
        if kernels.sparse_ragged:
            proves = f"sparse attention of ragged lengths in {name}"
            listed.append(Case(f"sparse/{name}/ragged", proves, partial(_sparse_ragged, bench, dtype)))
    listed += [
        Case("sparse/own-columns", "each sequence of a batch attends its own columns", partial(_own_columns, bench)),
        Case("sparse/future", "causal sparse attention does not attend later keys", partial(_future, bench)),
        Case("sparse/empty", "a row that attends nothing has output 0 and log-sum-exp +inf", partial(_empty, bench)),
        Case("sparse/full-cover", "sparse attention to all keys equals dense attention", partial(_full_cover, bench)),
        Case("sparse/leftovers", "entries beyond the counts are not attended", partial(_leftovers, bench)),
        Case("sparse/same", f"sparse attention gives the same bits {extent.runs} times", partial(_same, bench)),
    ]
    if modules:
        for plan in extent.layers:
            listed += whole.cases(modules, plan, device, converting)
        listed += precision.cases(modules, extent.dtypes, whole.host(modules, device, converting), device)
    if extent.timed:
        listed += speed.cases(kernels, extent.timed, device)
    return [replace(case, run=partial(_settled, case.run, device)) for case in listed]


# What proves most in the seconds that it takes: each kind of kernel that dual chunk attention launches alone, then the
# layer that calls them all. Of the dtypes that a wheel has, one.
SAMPLE = (
    "conversion/random",
    "sparse/{}/causal/5-1",
    "sparse/{}/full/5-1",
    "sparse/empty",
    "paged/{}",
    "layer/sparse/3-chunks",
)


def sample(cases: Sequence[Case]) -> list[Case]:
    """Those of `cases` that are run where a whole run takes too long."""
    names = {case.name for case in cases}
    dtype = next((one for one in map(_name, FULL.dtypes) if SAMPLE[1].format(one) in names), "")
    return [case for case in cases if case.name in {name.format(dtype) for name in SAMPLE}]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).rpartition(".")[2]


def left_out(kernels: Kernels, modules: Modules | None, extent: Extent) -> list[str]:
    """What these cases do not prove, in a few words each."""
    missing = [
        f"attention in {_name(dtype)}: the wheel has no kernels for it"
        for dtype in FULL.dtypes
        if dtype not in extent.dtypes
    ]
    if not kernels.sparse_ragged:
        missing.append("sparse attention of ragged lengths: this release does not have it")
    if modules is None:
        missing.append("the whole layer: the wheel has only kernels, without vLLM")
    elif whole.FULL not in extent.layers:
        missing.append("the whole layer at the lengths of a 1M model")
    return missing if extent.timed else [*missing, "speed"]


def _settled(run: Callable[[int], dict[str, Any]], device: str, seed: int) -> dict[str, Any]:
    """Run a case and wait for the GPU, so that an error there is reported by the case that caused it."""
    if device == "cpu":
        return run(seed)
    try:
        figures = run(seed)
        torch.cuda.synchronize()
    except torch.cuda.OutOfMemoryError as error:
        total = torch.cuda.get_device_properties(device).total_memory / 2**30
        raise Wrong(f"not proven: the case needs more than the {total:.0f} GiB of this GPU") from error
    finally:
        # The next case may need one large block of memory.
        torch.cuda.empty_cache()
    return figures


@dataclass(frozen=True)
class Problem:
    """One call of sparse attention.

    Attributes:
        q: `[batch, queries, heads, dim]`.
        k: `[batch, keys, kv_heads, dim]`.
        v: as `k`.
        converted: the attended blocks and columns, on the CPU.
        causal: as in the function.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    converted: Converted
    causal: bool

    @property
    def scale(self) -> float:
        """What logits are multiplied with."""
        return float(self.q.shape[-1] ** -0.5)

    def reference(self, b: int, other: int | None = None) -> Reference:
        """The expected output of one sequence; with `other`, over another sequence's keys and values."""
        q, k, v = (t[b if other is None or t is self.q else other] for t in (self.q, self.k, self.v))
        return sparse_reference(Inputs(q, k, v, self.scale, self.causal), self.converted.sequence(b))


def sparse_reference(inputs: Inputs, lines: Converted) -> Reference:
    """The expected output of sparse attention for one sequence, `[tokens, heads, dim]`."""
    q, k, v = inputs.q.double(), inputs.k.double(), inputs.v.double()
    part = oracle.sparse_attention(q, k, with_absolutes(v), lines, inputs.scale, inputs.causal)
    # The largest number of keys that a row attends, counting complete blocks.
    most = int((lines.block_count * BLOCK + lines.column_count).max())
    return bounded(part, q, Roundings(Largest.of(k, v), most, inputs.scale, inputs.q.dtype))


def dense_reference(inputs: Inputs) -> Reference:
    """The expected output of dense attention for one sequence, `[tokens, heads, dim]`."""
    q, k, v = inputs.q.double(), inputs.k.double(), inputs.v.double()
    last = torch.arange(len(k) - len(q), len(k), device=q.device) if inputs.causal else None
    part = oracle.attend(q, k, with_absolutes(v), inputs.scale, last)
    return bounded(part, q, Roundings(Largest.of(k, v), len(k), inputs.scale, inputs.q.dtype))


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call's tensors: sequences, query heads, key heads, and tokens of each sequence."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int


@dataclass(frozen=True)
class Bench:
    """The kernels, the extent of their cases, and the device."""

    kernels: Kernels
    extent: Extent
    device: str

    def lengths(self, seed: int) -> list[tuple[int, int]]:
        """Queries and keys of the calls of a case: the fixed ones, and some that are drawn."""
        rng = Random(seed)
        longest = self.extent.longest
        queries = spread(rng, 2, longest, self.extent.drawn) if self.extent.drawn else []
        return [*self.extent.lengths, *((count, draw(rng, count, 2 * longest)) for count in queries)]

    def conversion(self) -> conversion.Kernel:
        """The index conversion in the form that its cases call."""

        def kernel(batch: Batch, into: Converted) -> None:
            def numbers(values: Sequence[int]) -> Tensor:
                return torch.tensor(values, dtype=torch.int32, device=self.device)

            outputs = [tensor.to(self.device) for tensor in into]
            inputs = [numbers(batch.query_lengths), numbers(batch.key_lengths)]
            inputs += [lines.to(self.device).contiguous() for lines in (batch.vertical, batch.slash)]
            sizes = (batch.longest, BLOCK, BLOCK, batch.causal)
            if batch.vertical_count is not None and batch.slash_count is not None:
                counts = (numbers(batch.vertical_count), numbers(batch.slash_count))
                self.kernels.convert_mergehead(*outputs, *inputs, *counts, *sizes)
            else:
                self.kernels.convert(*outputs, *inputs, *sizes)
            for target, output in zip(into, outputs):
                target.copy_(output)

        return kernel

    def random(self, shape: Sequence[int], dtype: torch.dtype, random: torch.Generator, spread: float = 1.0) -> Tensor:
        """Normal random numbers, drawn on the CPU so that a seed gives the same numbers on every GPU."""
        return (torch.randn(*shape, generator=random) * spread).to(dtype).to(self.device)

    def tensors(self, dtype: torch.dtype, sizes: Sizes, random: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values; queries are large, so that each single key matters."""
        of_keys = (sizes.batch, sizes.keys, sizes.kv_heads, self.extent.dim)
        return (
            self.random((sizes.batch, sizes.queries, sizes.heads, self.extent.dim), dtype, random, 2.0),
            self.random(of_keys, dtype, random),
            self.random(of_keys, dtype, random),
        )

    def problem(self, dtype: torch.dtype, causal: bool, sizes: Sizes, seed: int) -> Problem:
        """A call with random lines."""
        random = torch.Generator().manual_seed(seed)
        queries, keys = [sizes.queries] * sizes.batch, [sizes.keys] * sizes.batch
        lines = random_lines(queries, keys, sizes.heads, causal, random)
        q, k, v = self.tensors(dtype, sizes, random)
        # Rows of values that are further apart than those of keys, as in a projection of all three.
        room = torch.full_like(v[:, :, :1], torch.nan)
        return Problem(q, k, torch.cat((v, room), 2)[:, :, :-1], lines, causal)

    def run(self, problem: Problem) -> tuple[Tensor, Tensor]:
        """Output `[batch, queries, heads, dim]` and log-sum-exp `[batch, queries, heads]`, in poisoned memory."""
        q = problem.q
        out = torch.full_like(q, torch.nan)
        self.poison(q.shape[0] * q.shape[1] * q.shape[2])
        converted = Converted(*(tensor.to(self.device) for tensor in problem.converted))
        inputs = Inputs(q, problem.k, problem.v, problem.scale, problem.causal, out)
        answer, lse = self.kernels.sparse(inputs, converted)
        if not _same_bits(answer, out):
            raise Wrong("sparse attention did not write to the given `out`")
        return answer, lse.transpose(1, 2)

    def poison(self, numbers: int) -> None:
        """Fill memory with NaN that the next outputs of this many float32 numbers are likely to use.

        The allocator reuses freed memory unchanged, so that values which a kernel does not write become visible.
        """
        held = [torch.full((numbers,), torch.nan, device=self.device) for _ in range(4)]
        del held


def random_lines(
    queries: Sequence[int], keys: Sequence[int], heads: int, causal: bool, random: torch.Generator
) -> Converted:
    """Conversions of random lines: few enough to leave out most keys, and with some columns in every row.

    Args:
        queries: per sequence.
        keys: per sequence.
        heads: query heads.
        causal: as in `oracle.convert_row_block`.
        random: on the CPU.
    """

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=random))

    fewest = min(keys)
    reach = min(k if causal else q + k for q, k in zip(queries, keys))
    verticals = [number(1, min(90, fewest)) for _ in range(heads)]
    slashes = [number(1, min(5, reach)) for _ in range(heads)]
    shape = (len(keys), heads)
    vertical = torch.zeros((*shape, max(verticals)), dtype=torch.int32)
    slash = torch.zeros((*shape, max(slashes)), dtype=torch.int32)
    for b, h in itertools.product(range(len(keys)), range(heads)):
        places = torch.randperm(fewest, generator=random)[: verticals[h]].sort().values
        distances = torch.randperm(reach, generator=random)[: slashes[h]]
        if causal:
            # As in the layer, where the nearest keys are always attended.
            distances[int(distances.argmin())] = 0
        vertical[b, h, : verticals[h]] = places
        slash[b, h, : slashes[h]] = distances.sort(descending=True).values
    return oracle.convert(Batch(list(queries), list(keys), vertical, slash, verticals, slashes, causal))


def _sparse(bench: Bench, dtype: torch.dtype, causal: bool, heads: int, kv_heads: int, seed: int) -> dict[str, Any]:
    worst, calls = Worst(), 0
    for batch, (queries, keys) in itertools.product(bench.extent.batches, bench.lengths(seed)):
        problem = bench.problem(dtype, causal, Sizes(batch, heads, kv_heads, queries, keys), seed + calls)
        _check(problem, *bench.run(problem), worst)
        calls += 1
    return {"calls": calls, "unit roundoff": UNIT[dtype], **worst.figures}


def _check(problem: Problem, out: Tensor, lse: Tensor, worst: Worst) -> None:
    """Compare every sequence of an output of `Bench.run` with its reference."""
    batch, queries, heads, _ = problem.q.shape
    keys, kv_heads = problem.k.shape[1:3]
    for b in range(batch):
        what = f"sequence {b} of {batch}, {queries} queries, {keys} keys, {heads} heads over {kv_heads}"
        _hold(problem.reference(b), out[b], lse[b], what, worst)


def _hold(reference: Reference, out: Tensor, lse: Tensor, what: str, worst: Worst) -> None:
    """Compare an output `[queries, heads, dim]` and its log-sum-exp `[queries, heads]` with the reference."""
    worst.within("log-sum-exp", what, lse, reference.lse, reference.lse_bound)
    worst.within("output", what, out, reference.out, reference.out_bound)


def _own_columns(bench: Bench, seed: int) -> dict[str, Any]:
    """Only columns, of different numbers, with different ones, keys and values in each sequence."""
    worst = Worst()
    heads, kv_heads = bench.extent.ranks[-1]
    random = torch.Generator().manual_seed(seed)
    batch, queries, keys, columns = 3, 130, 300, 70
    sizes = Sizes(batch, heads, kv_heads, queries, keys)
    for dtype, causal in itertools.product(bench.extent.dtypes, (True, False)):
        shape = (batch, heads, -(-queries // BLOCK))
        index = torch.stack(
            [torch.randperm(keys, generator=random)[:columns].sort().values for _ in range(batch * heads * shape[-1])]
        )
        # Kernels take columns in rounds of 64.
        counts = torch.tensor((1, BLOCK, BLOCK + 1, columns), dtype=torch.int32).repeat(len(index))[: len(index)]
        only = Converted(
            torch.zeros(shape, dtype=torch.int32),
            torch.zeros((*shape, 1), dtype=torch.int32),
            counts.view(shape),
            index.view(*shape, columns).to(torch.int32),
        )
        problem = Problem(*bench.tensors(dtype, sizes, random), only, causal)
        out, lse = bench.run(problem)
        for b in range(batch):
            what = f"columns of sequence {b} of {batch}"
            try:
                _hold(problem.reference(b), out[b], lse[b], what, worst)
            except Wrong:
                _refuse_others(problem, b, out[b], lse[b])
                raise
    return worst.figures


def _refuse_others(problem: Problem, b: int, out: Tensor, lse: Tensor) -> None:
    """Check whether a sequence attended another sequence's keys and values.

    Raises:
        Wrong: it did.
    """
    for other in range(problem.q.shape[0]):
        try:
            _hold(problem.reference(b, other), out, lse, "", Worst())
        except Wrong:
            continue
        raise Wrong(f"sequence {b} of a batch attends the columns of sequence {other}")


def _future(bench: Bench, seed: int) -> dict[str, Any]:
    """When keys and values after a query change, its output must keep every bit."""
    heads, kv_heads = bench.extent.ranks[-1]
    checked = 0
    for dtype, (queries, keys) in itertools.product(bench.extent.dtypes, bench.extent.changing):
        random = torch.Generator().manual_seed(seed + checked)
        q, k, v = bench.tensors(dtype, Sizes(2, heads, kv_heads, queries, keys), random)
        for lines in (
            random_lines([queries] * 2, [keys] * 2, heads, True, random),
            _everything(queries, keys, heads, 2, True),
        ):
            out, lse = bench.run(Problem(q, k, v, lines, True))
            for first in sorted({1, 64, min(64 + 17, queries - 2), queries - 1}):
                # The first query that may change; those before it must not.
                later = keys - queries + first
                other_k, other_v = k.clone(), v.clone()
                other_k[:, later:] = bench.random(k[:, later:].shape, dtype, random, 3.0)
                other_v[:, later:] = bench.random(v[:, later:].shape, dtype, random, 3.0)
                out2, lse2 = bench.run(Problem(q, other_k, other_v, lines, True))
                same = (out[:, :first] == out2[:, :first]).all(-1) & (lse[:, :first] == lse2[:, :first])
                if not bool(same.all()):
                    b, row, head = (int(n) for n in (~same).nonzero()[0])
                    raise Wrong(
                        f"query {row} of {queries}, whose last key is {row + keys - queries}, changes when keys from "
                        f"{later} on change (head {head}, sequence {b}, {dtype}): it attends later keys"
                    )
                checked += 1
    return {"changes": checked}


def _everything(queries: int, keys: int, heads: int, batch: int, causal: bool) -> Converted:
    """A conversion that attends every key: one distance per block, down to the first key."""
    reach = keys if causal else keys + queries
    slash = torch.arange(0, reach + BLOCK, BLOCK, dtype=torch.int32).flip(0).expand(batch, heads, -1)
    vertical = torch.zeros((batch, heads, 1), dtype=torch.int32)
    return oracle.convert(Batch([queries] * batch, [keys] * batch, vertical, slash, None, None, causal))


def _empty(bench: Bench, seed: int) -> dict[str, Any]:
    """Rows that attend nothing, beside rows with a block and rows with columns only."""
    worst, rows = Worst(), 0
    heads, kv_heads = bench.extent.ranks[-1]
    for dtype, causal in itertools.product(bench.extent.dtypes, (True, False)):
        random = torch.Generator().manual_seed(seed)
        q, k, v = bench.tensors(dtype, Sizes(2, heads, kv_heads, 300, 300), random)
        shape = (2, heads, 5)
        blocks, columns = (torch.zeros(shape, dtype=torch.int32) for _ in range(2))
        blocks[..., 1], columns[..., 3] = 1, 2
        offset, index = (torch.zeros((*shape, size), dtype=torch.int32) for size in (1, 2))
        index[...] = torch.tensor([3, 150])
        problem = Problem(q, k, v, Converted(blocks, offset, columns, index), causal)
        out, lse = bench.run(problem)
        for row in (0, 2, 4):
            part = slice(row * BLOCK, row * BLOCK + BLOCK)
            if bool((out[:, part] != 0).any()) or not bool((lse[:, part] == torch.inf).all()):
                raise Wrong(
                    f"row block {row}, which attends nothing, has output {float(out[:, part].flatten()[0]):.6g} and "
                    f"log-sum-exp {float(lse[:, part].flatten()[0]):.6g}, expected 0 and inf ({dtype})"
                )
            rows += lse[:, part].numel()
        _check(problem, out, lse, worst)
    return {"empty rows": rows, **worst.figures}


def _full_cover(bench: Bench, seed: int) -> dict[str, Any]:
    worst, between = Worst(), 0.0
    heads, kv_heads = bench.extent.ranks[0]
    of_calls = itertools.product(bench.extent.dtypes, (True, False), bench.lengths(seed))
    for dtype, causal, (queries, keys) in of_calls:
        random = torch.Generator().manual_seed(seed)
        q, k, v = bench.tensors(dtype, Sizes(1, heads, kv_heads, queries, keys), random)
        problem = Problem(q, k, v, _everything(queries, keys, heads, 1, causal), causal)
        out, lse = bench.run(problem)
        inputs = Inputs(q[0], k[0], v[0], problem.scale, causal, torch.full_like(q[0], torch.nan))
        other, other_lse = bench.kernels.dense(inputs, Ragged.of([queries], [keys], bench.device))
        reference = dense_reference(inputs)
        what = f"{queries} queries and all of {keys} keys, {'' if causal else 'not '}causal"
        _hold(reference, out[0], lse[0], f"sparse attention, {what}", worst)
        _hold(reference, other, other_lse.t(), f"dense attention, {what}", worst)
        between = max(between, float((out[0].double() - other.double()).abs().max()))
    return {"sparse to dense": between, **worst.figures}


def _leftovers(bench: Bench, seed: int) -> dict[str, Any]:
    """Entries beyond the counts, which the mergehead op leaves unwritten, are set to other keys."""
    heads, kv_heads = bench.extent.ranks[-1]
    random = torch.Generator().manual_seed(seed)
    calls = 0
    for dtype, causal in itertools.product(bench.extent.dtypes, (True, False)):
        problem = bench.problem(dtype, causal, Sizes(2, heads, kv_heads, 200, 400), seed)
        out, lse = bench.run(problem)
        chosen = problem.converted
        others = []
        for count, lines in ((chosen.block_count, chosen.block_offset), (chosen.column_count, chosen.column_index)):
            behind = torch.arange(lines.shape[-1]) >= count[..., None]
            # Valid positions, so that a kernel which reads them gives a wrong output instead of a crash.
            others.append(
                torch.where(behind, torch.randint(0, 330, lines.shape, generator=random).to(lines.dtype), lines)
            )
        changed = Converted(chosen.block_count, others[0], chosen.column_count, others[1])
        out2, lse2 = bench.run(replace(problem, converted=changed))
        if not (_same_bits(out, out2) and _same_bits(lse, lse2)):
            raise Wrong(f"entries beyond the counts change the output ({dtype}, {_kind(causal)})")
        calls += 2
    return {"calls": calls}


def _same(bench: Bench, seed: int) -> dict[str, Any]:
    heads, kv_heads = bench.extent.ranks[0]
    for dtype, causal in itertools.product(bench.extent.dtypes, (True, False)):
        queries, keys = bench.lengths(seed)[-1]
        sizes = Sizes(bench.extent.batches[-1], heads, kv_heads, queries, keys)
        problem = bench.problem(dtype, causal, sizes, seed)
        first = bench.run(problem)
        for again in range(1, bench.extent.runs):
            if not all(_same_bits(*pair) for pair in zip(first, bench.run(problem))):
                raise Wrong(f"run {again + 1} of the same call gives other bits ({dtype}, {_kind(causal)})")
    return {"runs": bench.extent.runs}


def _same_rows(bench: Bench, seed: int) -> dict[str, Any]:
    rng, kernel = Random(seed), bench.conversion()
    for call in range(5):
        batch = conversion.random_batch(rng)
        first = batch.outputs(conversion.POISON)
        kernel(batch, first)
        for again in range(1, bench.extent.runs):
            other = batch.outputs(conversion.POISON)
            kernel(batch, other)
            for name, *pair in zip(Converted._fields, first, other):
                if not torch.equal(*pair):
                    raise Wrong(f"run {again + 1} of the same conversion gives another {name} (call {call})")
    return {"runs": bench.extent.runs, "calls": 5}


# Queries and keys of ragged sequences: a single query, a block less one, two blocks and two; more are drawn.
RAGGED = ((1, 70), (63, 191), (130, 130))


def _ragged_lengths(seed: int, longest: int) -> list[tuple[int, int]]:
    rng = Random(seed)
    queries = draw(rng, 2, longest)
    return [*RAGGED, (queries, draw(rng, queries, 2 * longest))]


def _ragged_inputs(
    bench: Bench, dtype: torch.dtype, causal: bool, lengths: list[tuple[int, int]], random: torch.Generator
) -> tuple[Inputs, Ragged]:
    """The random inputs of a call over sequences of these lengths; its output tensor is NaN."""
    heads, kv_heads = bench.extent.ranks[-1]
    queries, keys = zip(*lengths)
    sizes = Sizes(1, heads, kv_heads, sum(queries), sum(keys))
    q, k, v = (tensor[0] for tensor in bench.tensors(dtype, sizes, random))
    inputs = Inputs(q, k, v, float(q.shape[-1] ** -0.5), causal, torch.full_like(q, torch.nan))
    return inputs, Ragged.of(queries, keys, bench.device)


def _sequence(inputs: Inputs, ragged: Ragged, b: int) -> Inputs:
    """The inputs of one ragged sequence."""
    rows, columns = ragged.rows(b)
    return replace(inputs, q=inputs.q[rows], k=inputs.k[columns], v=inputs.v[columns])


def _dense(bench: Bench, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    worst = Worst()
    random, lengths = torch.Generator().manual_seed(seed), _ragged_lengths(seed, bench.extent.longest)
    for causal in (True, False):
        inputs, ragged = _ragged_inputs(bench, dtype, causal, lengths, random)
        bench.poison(inputs.q.shape[0] * inputs.q.shape[1])
        out, lse = bench.kernels.dense(inputs, ragged)
        for b, (queries, keys) in enumerate(lengths):
            rows, reference = ragged.rows(b)[0], dense_reference(_sequence(inputs, ragged, b))
            what = f"dense attention, sequence {b} of {queries} queries and {keys} keys, {_kind(causal)}"
            _hold(reference, out[rows], lse[:, rows].t(), what, worst)
    return {"unit roundoff": UNIT[dtype], **worst.figures}


def _sparse_ragged(bench: Bench, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    worst = Worst()
    figures: dict[str, Any] = {}
    random = torch.Generator().manual_seed(seed)
    if bench.kernels.sparse_ragged is None:
        raise Wrong("this release has no sparse attention of ragged lengths")
    lengths = _ragged_lengths(seed, bench.extent.longest)
    queries, keys = ([pair[n] for pair in lengths] for n in (0, 1))
    for causal in (True, False):
        inputs, ragged = _ragged_inputs(bench, dtype, causal, lengths, random)
        lines = random_lines(queries, keys, inputs.q.shape[1], causal, random)
        inputs = _with_room(inputs, len(lengths) * max(queries))
        bench.poison(inputs.q.shape[0] * inputs.q.shape[1])
        on_device = Converted(*(tensor.to(bench.device) for tensor in lines))
        out, lse = bench.kernels.sparse_ragged(inputs, on_device, ragged)
        references, wants = [], []
        for b in range(len(lengths)):
            # The kernel drops causality only if every sequence has one query; for one query it makes no difference.
            rows, reference = ragged.rows(b)[0], sparse_reference(_sequence(inputs, ragged, b), lines.sequence(b))
            what = f"sequence {b} of {queries[b]} queries and {keys[b]} keys, {_kind(causal)}"
            worst.within("output", what, out[rows], reference.out, reference.out_bound)
            references.append((what, reference))
            wants.append(lse[:, rows].t())
        try:
            _log_sums(references, wants, worst)
        except Wrong:
            # The same numbers in the other layout of flash attention are this function's known fault, all else is not.
            padded = lse.flatten()[: len(lengths) * len(lse) * max(queries)].view(len(lengths), len(lse), max(queries))
            _log_sums(references, [padded[b, :, :count].t() for b, count in enumerate(queries)], worst)
            figures[KNOWN] = PADDED
    return {"unit roundoff": UNIT[dtype], **worst.figures, **figures}


# What `varlen_fwd_sparse` of flash attention does wrong: it does not pass `unpadded_lse`, as `varlen_fwd` does.
PADDED = (
    "varlen_fwd_sparse writes its log-sum-exp as [batch, heads, longest query] into a tensor of [heads, queries], past "
    "its end if lengths differ; its output is right, and dual chunk attention never calls it"
)


def _with_room(inputs: Inputs, rows: int) -> Inputs:
    """Inputs with at least this many rows of queries; no sequence has those behind the last one.

    A log-sum-exp in the padded layout then stays inside its tensor instead of damaging others.
    """
    more = max(0, rows - len(inputs.q))
    q, out = (
        torch.cat((tensor, tensor.new_full((more, *tensor.shape[1:]), torch.nan)))
        for tensor in (inputs.q, torch.full_like(inputs.q, torch.nan))
    )
    return replace(inputs, q=q, out=out)


def _log_sums(references: list[tuple[str, Reference]], got: list[Tensor], worst: Worst) -> None:
    """Compare the log-sum-exp `[queries, heads]` of every sequence with its reference."""
    for (what, reference), lse in zip(references, got):
        worst.within("log-sum-exp", what, lse, reference.lse, reference.lse_bound)


# Tokens of a page, as vLLM has by default.
PAGE = 16
# Parts that the keys of a sequence are split into; 0 lets the wheel choose.
SPLITS = (1, 3, 0)
# Queries and keys of the sequences of a call: fewer keys than a page, pages that are full, and keys of several blocks
# of 128, so that each part has some and the shortest sequences leave parts empty.
DECODED = (1, 16, 130, 463)


def _paged(bench: Bench, dtype: torch.dtype, seed: int) -> dict[str, Any]:
    """One query per sequence, as in decoding, and several, against pages in random order."""
    worst, calls = Worst(), 0
    heads, kv_heads = bench.extent.ranks[-1]
    for splits, queries in itertools.product(SPLITS, (1, 5)):
        random = torch.Generator().manual_seed(seed + calls)
        lengths = [max(count, queries) for count in (*DECODED, draw(Random(seed + calls), 20, 400))]
        sizes = Sizes(1, heads, kv_heads, len(lengths) * queries, 0)
        q = bench.tensors(dtype, sizes, random)[0].view(len(lengths), queries, heads, bench.extent.dim)
        places, k, v = _pages(bench, dtype, lengths, random)
        inputs = Inputs(q, k, v, float(bench.extent.dim**-0.5), True, torch.full_like(q, torch.nan))
        bench.poison(q.shape[0] * q.shape[1] * heads)
        out, lse = bench.kernels.paged(inputs, replace(places, splits=splits))
        for b, count in enumerate(lengths):
            pages = places.table[b, : -(-count // PAGE)].long()
            of_sequence = replace(
                inputs, q=q[b], **{name: cache[pages].flatten(0, 1)[:count] for name, cache in (("k", k), ("v", v))}
            )
            what = f"sequence {b} of {queries} queries and {count} keys in pages, {splits or 'chosen'} parts"
            _hold(dense_reference(of_sequence), out[b], lse[b].t(), what, worst)
        calls += 1
    return {"calls": calls, "unit roundoff": UNIT[dtype], **worst.figures}


def _pages(
    bench: Bench, dtype: torch.dtype, lengths: Sequence[int], random: torch.Generator
) -> tuple[Paged, Tensor, Tensor]:
    """Pages in random order, with the keys and values of sequences in some; what no sequence has is NaN."""
    needed = [-(-count // PAGE) for count in lengths]
    order = torch.randperm(sum(needed) + 3, generator=random)
    table = torch.full((len(lengths), max(needed)), int(order[-1]), dtype=torch.int32)
    shape = (len(order), PAGE, bench.extent.ranks[-1][1], bench.extent.dim)
    k, v = (torch.full(shape, torch.nan, dtype=dtype, device=bench.device) for _ in range(2))
    for row, count, pages in zip(table, lengths, order.split([*needed, 3])):
        row[: len(pages)] = pages
        for cache in (k, v):
            filled = torch.full((len(pages) * PAGE, *shape[2:]), torch.nan, dtype=dtype, device=bench.device)
            filled[:count] = bench.random((count, *shape[2:]), dtype, random)
            cache[pages.to(bench.device)] = filled.view(len(pages), *shape[1:])
    counts = torch.tensor(lengths, dtype=torch.int32, device=bench.device)
    return Paged(table.to(bench.device), counts, 0), k, v


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether tensors are equal, with NaN at the same places."""
    return a.shape == b.shape and bool(((a == b) | (torch.isnan(a) & torch.isnan(b))).all())


def _kind(causal: bool) -> str:
    return "causal" if causal else "not causal"
