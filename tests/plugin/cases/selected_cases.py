"""Sparse attention of drawn steps against the oracle, with stand-ins of the two kernels; runs without vLLM."""

from __future__ import annotations

import functools
import importlib
import itertools
import json
import os
import random
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from drawn import BASE, SCALE, Drawn, Request, Tensors, _fill, make
from sparse_faults import FAULTS, Fault
from stand_ins import OracleKernels
from torch import Tensor

from dca.in_wheel_env import oracle
from vllm_dca import attention, chunking, rotary, selection, sparse

SEED = os.environ.get("DCA_TEST_SEED", "0")
COUNT = int(os.environ.get("DCA_DRAWN_STEPS", "20"))
CLOSE = 2e-5
SIZE, LOCAL, BLOCK, THRESHOLD = 208, 64, 16, 150
STRIDE = SIZE - LOCAL
# Of each of four heads; 30 stands for 130, which the plugin's settings say.
SIZES = ((30, 104), (35, 110), (60, 120), (40, 101))
RAISED = ((130, 104), *SIZES[1:])


def draw(chance: random.Random) -> Drawn:
    """Requests of up to six chunks: dense and sparse ones, pieces, whole prompts and decodes."""
    requests = []
    for _ in range(chance.choice((1, 1, 2, 3))):
        length = max(1, STRIDE * chance.randrange(6) + chance.choice((-1, 0, 1, chance.randrange(STRIDE))))
        kind = chance.choice(("decode", "piece", "piece", "whole", "padding"))
        queries = {"decode": 1, "piece": chance.randint(1, length), "whole": length, "padding": 0}[kind]
        # A decode is past its prompt.
        prompt = max(1, length - 1) if kind == "decode" else length + chance.choice((0, 0, 500))
        requests.append(Request(length, queries, prompt))
    original = chance.choice((0, 100))
    whole = chance.random() < 0.3
    return Drawn(
        SIZE, LOCAL, BLOCK, chance.choice((1, 2)), 0, 16, original, whole, tuple(requests), chance.randrange(2**31)
    )


def is_sparse(request: Request) -> bool:
    return request.prompt > THRESHOLD and request.length - request.queries < request.prompt


def reference(drawn: Drawn, tensors: list[Tensors]) -> Tensor:
    """What the step's queries must get, in float64."""
    dual = oracle.DualChunk(oracle.Chunking(SIZE, LOCAL), BASE, SCALE)
    results = []
    for request, each in zip(drawn.requests, tensors, strict=True):
        if not request.queries:
            continue
        lengths = torch.arange(request.length - request.queries, request.length) + 1
        if drawn.whole_prompt:
            lengths = lengths.clamp(min=request.prompt)
        squares = [oracle.length_factor(int(length), drawn.original) ** 2 for length in lengths]
        q = each.q * torch.tensor(squares, dtype=torch.float64)[:, None, None]
        if is_sparse(request):
            results.append(oracle.sparse_prefill(q, each.k, each.v, dual, list(SIZES))[0].out)
        else:
            results.append(oracle.plain_attention(q, each.k, each.v, dual).out)
    return torch.cat(results) if results else torch.empty(0)


MODULES = ("attention", "chunking", "rotary", "selection", "sparse", "spans")
PLUGIN = SimpleNamespace(attention=attention, chunking=chunking, rotary=rotary, sparse=sparse)


def compute(drawn: Drawn, tensors: list[Tensors], plugin: Any = PLUGIN) -> Tensor:
    """What the plugin computes.

    Args:
        drawn: the step.
        tensors: of its requests.
        plugin: has the plugin's modules `attention`, `chunking`, `rotary` and `sparse`.
    """
    attention, sparse = plugin.attention, plugin.sparse
    chunking, rotation = plugin.chunking.Chunking(SIZE, LOCAL), plugin.rotary.Rotation(drawn.dim, BASE)
    table = rotation.table(SIZE + 1)
    blocks, cache = _fill(drawn, tensors, plugin, table)
    starts = np.cumsum([0, *(request.queries for request in drawn.requests)])
    lengths, prompts = (np.array([getattr(r, name) for r in drawn.requests]) for name in ("length", "prompt"))
    layout = attention.Layout(chunking, BLOCK, drawn.original, drawn.whole_prompt, THRESHOLD)
    step = layout.plan(attention.Batch(starts, lengths, prompts, blocks))
    queries = torch.cat([each.q for each in tensors]).float()
    output = torch.full_like(queries, torch.nan)
    one = sparse.SparseAttention(chunking, rotation, SCALE, RAISED, OracleKernels(SCALE), 1000)
    dual = attention.DualChunk(chunking, rotation, attention.TorchAttention(SCALE), one)
    dual.attend(queries, cache, step, table, output)
    return output


def four_heads(drawn: Drawn) -> Drawn:
    return replace(drawn, groups=4 // drawn.kv_heads)


@pytest.mark.parametrize("most", [0, 2**30], ids=["one-key-head-at-a-time", "all-together"])
def test_drawn_steps_are_right(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sparse, "MOST", most)
    # Keys are scored in several blocks.
    monkeypatch.setattr(selection, "SCORED", 100)
    chance, seen = random.Random(SEED), set()
    for _ in range(COUNT):
        drawn = four_heads(draw(chance))
        tensors = make(drawn)
        wanted = reference(drawn, tensors)
        if len(wanted):
            wrong = float((compute(drawn, tensors).double() - wanted).abs().max())
            assert wrong < CLOSE, (wrong, drawn)
        seen |= {(is_sparse(request), (request.length - 1) // STRIDE) for request in drawn.requests if request.queries}
    assert COUNT < 20 or len(seen) > 8


def test_the_lines_do_not_cover_everything() -> None:
    drawn = Drawn(SIZE, LOCAL, BLOCK, 2, 2, 16, 0, False, (Request(850, 850, 850),), seed=3)
    tensors = make(drawn)
    dual = oracle.DualChunk(oracle.Chunking(SIZE, LOCAL), BASE, SCALE)
    dense = oracle.plain_attention(tensors[0].q, tensors[0].k, tensors[0].v, dual).out
    wanted = reference(drawn, tensors)
    assert float((wanted - dense).abs().max()) > 1e-2
    assert float((compute(drawn, tensors).double() - wanted).abs().max()) < CLOSE


@pytest.mark.parametrize(("end", "span"), [(850, 130), (850, 3), (145, 1), (288, 144), (700, 124), (40, 40), (3, 3)])
def test_lines_are_those_of_the_oracle(end: int, span: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "SCORED", 70)
    chance = torch.Generator().manual_seed(end)
    own = (end - 1) // STRIDE * STRIDE
    previous = own - STRIDE
    intra, successive, inter = (torch.randn(span, 4, 16, generator=chance) for _ in range(3))
    keys = torch.randn(end, 2, 16, generator=chance)
    theirs = oracle.select_vertical_slash(
        oracle.RotatedQueries(intra, successive, inter),
        keys,
        STRIDE,
        [(min(v, end), min(s, end)) for v, s in SIZES],
        0.7,
    )
    last = slice(-min(span, 64), None)
    voting = [(selection.Stage(own, end, causal=True), intra[last])]
    if previous >= 0:
        voting.append((selection.Stage(previous, own, causal=False), successive[last]))
    if previous > 0:
        voting.append((selection.Stage(0, previous, causal=False), inter[last]))
    chosen = selection.choose(voting, keys, 0.7, torch.tensor(RAISED).T)
    names = ("intra", "successive", "inter")
    for name, (stage, _) in zip(names, voting, strict=False):
        lines = selection.lines_of(stage, chosen, span)
        for head, one in enumerate(theirs):
            wanted = getattr(one, name)
            assert lines.vertical[head, : int(lines.verticals[head])].tolist() == wanted.vertical.tolist()
            assert lines.slash[head, : int(lines.slashes[head])].tolist() == wanted.slash.tolist()


class Sized:
    """Kernels that make what the real ones make, and compute nothing."""

    def convert(self, lines: selection.Lines, queries: int, keys: int, causal: bool) -> sparse.Lists:
        (heads, verticals), slashes = lines.vertical.shape, lines.slash.shape[1]
        rows = -(-queries // sparse.ROW)
        shapes = ((), (slashes,), (), (verticals,))
        return sparse.Lists(*(lines.vertical.new_empty((1, heads, rows, *shape)) for shape in shapes))

    def attend(
        self, queries: Tensor, pair: tuple[Tensor, Tensor], lists: sparse.Lists, causal: bool
    ) -> tuple[Tensor, Tensor]:
        return torch.zeros_like(queries), queries.new_zeros(queries.shape[1::-1], dtype=torch.float32)


def most_held(call: Callable[[], None]) -> int:
    """The most bytes of tensors that a call makes and holds at a time."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as seen:
        call()
    results: Any = seen.profiler.kineto_results
    events = sorted((event.start_ns(), event.nbytes()) for event in results.events() if event.name() == "[memory]")
    return int(max(itertools.accumulate(size for _, size in events)))


@pytest.mark.parametrize(
    ("queries", "keys", "kv_heads", "most"),
    [
        (4096, 20_000, 2, 2**40),
        (4096, 20_000, 2, 0),
        (500, 40_000, 4, 0),
        (8192, 25_000, 1, 0),
        (1000, 30_000, 2, 2**40),
    ],
)
def test_what_is_held_is_what_is_counted(
    queries: int, keys: int, kv_heads: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparse, "MOST", most)
    monkeypatch.setattr(sparse, "merge", lambda parts, output: None)
    heads, dim, stride = 4 * kv_heads, 128, keys // 3
    lengths, rotation = chunking.Chunking(stride + 512, 512), rotary.Rotation(dim, BASE)
    cache = attention.halves(torch.zeros(-(-keys // 16), kv_heads, 16, 2 * dim, dtype=torch.bfloat16))
    blocks = torch.arange(len(cache.keys), dtype=torch.int32)[None]
    positions = torch.arange(keys - queries, keys)
    span = attention.SparseSpan(0, 0, queries, keys)
    step = attention.Step(queries, positions, torch.ones(queries), None, None, None, (span,), blocks)
    query = torch.randn(queries, heads, dim).bfloat16()
    output, table = torch.empty_like(query), rotation.table(lengths.size + 1)
    sizes = ((1000, 6096),) * heads
    one = sparse.SparseAttention(lengths, rotation, SCALE, sizes, Sized(), keys)
    held = most_held(lambda: one.attend(query, cache, step, table, output))
    counted = one.most(sparse.Heads(heads, kv_heads, dim, 2), queries)
    print(f"{held:,} held, {counted:,} counted: {held / counted:.2f}")
    assert 0.6 * counted < held <= counted


# Heads, key heads, the widest entry of the table, queries of a step, and the longest request. The first is
# Qwen2.5-7B-Instruct-1M on one GPU.
COUNTED = (
    (28, 4, 22_032, 24_528, 32_768, 1_010_000),
    (28, 4, 22_032, 24_528, 2048, 40_000),
    (10, 2, 1000, 6096, 8192, 1_010_000),
    (4, 4, 30, 100, 131_072, 3000),
)


def test_here_is_what_is_counted(capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for heads, kv_heads, *lines, queries, longest in COUNTED:
        sizes, given = (lines[0], lines[1]), (heads, kv_heads, *lines, queries, longest)
        # As a span's queries are, which `SparseAttention.most` sees to.
        most = min(queries, longest)
        taken = sparse.grouped(sparse.Heads(heads, kv_heads, 128, 2), sizes, most, longest)
        found.append({"given": given, "counted": vars(sparse.transients(taken, sizes, most, longest))})
    with capsys.disabled():
        print("\ncounted:", json.dumps(found))


def fixed() -> Drawn:
    """Dense and sparse requests in one step, with a decode past its prompt, and a prompt of the threshold's length."""
    requests = (
        Request(700, 690, 700),
        Request(THRESHOLD, THRESHOLD, THRESHOLD),
        Request(500, 1, 499),
        Request(560, 150, 900),
    )
    return Drawn(SIZE, LOCAL, BLOCK, 2, 2, 16, 100, False, requests, seed=5)


def damaged(fault: Fault, folder: Path) -> Any:
    """The plugin's modules with a fault in one of them."""
    package, source = folder / "damaged", Path(sparse.__file__).parent
    package.mkdir()
    (package / "__init__.py").touch()
    for name in MODULES:
        text = (source / f"{name}.py").read_text()
        if name == fault.file:
            assert text.count(fault.old) == 1
            text = text.replace(fault.old, fault.new)
        (package / f"{name}.py").write_text(text)
    for name in [name for name in sys.modules if name.partition(".")[0] == "damaged"]:
        del sys.modules[name]
    importlib.invalidate_caches()
    sys.path.insert(0, str(folder))
    try:
        found = SimpleNamespace(**{name: importlib.import_module(f"damaged.{name}") for name in MODULES})
    finally:
        sys.path.remove(str(folder))
    found.selection.SCORED = 100
    found.sparse.MOST = 0
    return found


@functools.cache
def _wanted() -> Tensor:
    return reference(fixed(), make(fixed()))


@pytest.mark.parametrize("fault", [None, *FAULTS], ids=lambda one: one.wrong.replace(" ", "-") if one else "none")
def test_a_fault_is_found(fault: Fault | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plugin = damaged(fault, tmp_path) if fault else PLUGIN
    try:
        wrong = float((compute(fixed(), make(fixed()), plugin).double() - _wanted()).abs().nan_to_num(torch.inf).max())
    except (IndexError, RuntimeError, ValueError):
        wrong = torch.inf
    if fault is None:
        assert wrong < CLOSE
    else:
        with capsys.disabled():
            print(f"\n{'stops' if wrong == torch.inf else f'{wrong:.0e}':>7}  {fault.file:<9} {fault.wrong}", end="")
        assert wrong > 1e-3
