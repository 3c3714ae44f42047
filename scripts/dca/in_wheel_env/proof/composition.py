"""Compares the wheel's dual chunk attention, its Python run on the CPU, with the oracle."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from .. import oracle
from .case import Case, Wrong, compare
from .conversion import Kernel
from .layer import Conversation, Layer, Shape, call, implementation, run_rotary
from .layer import Modules as Modules
from .lengths import cuts, source
from .stand_ins import on_cpu

PAGE, PAGES, DIM, BASE = 16, 400, 32, 10_000.0
CHUNKING = oracle.Chunking(size=640, local=192)
# Above this, prompts are longer than the model was trained on, and logits grow.
ORIGINAL = 700
HEADS, KV_HEADS, SCALE = 4, 2, DIM**-0.5
# Vertical and slash sizes of each head; 30 is the size that the backend raises.
SIZES = ((48, 106), (30, 101), (100, 112), (64, 108))
# Sizes of the heads of both GPUs of a tensor-parallel group.
BOTH_RANKS = ((200, 180), (190, 170), (180, 160), (170, 150), *SIZES)
# One line of each kind besides those that are always attended, so that most stages have no chosen line.
FEW = ((31, 101),) * HEADS
# More lines than the first span has keys; it clips the sizes, also for the spans after it.
MANY = ((500, 600), (460, 450), (30, 900), (600, 101))
# Between which lengths prompts are drawn, by their number of chunks; the shortest is longer than its heads have lines.
LENGTHS = {
    "one chunk": (260, CHUNKING.stride - 1),
    "two chunks": (CHUNKING.stride + 1, 2 * CHUNKING.stride),
    "three chunks": (2 * CHUNKING.stride + 1, 3 * CHUNKING.stride),
    "five chunks": (4 * CHUNKING.stride + 1, 5 * CHUNKING.stride),
}
# The most pieces that a prompt is cut into.
PIECES = 5
# The effect of one rounding to the dtype of the queries; both sides compute at least in float32.
TOLERANCE = {torch.float32: 5e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def cases(modules: Modules, kernel: Kernel) -> list[Case]:
    """Prefill and decode, dense and sparse, over one, two, three and five chunks."""

    def bench(setup: Setup) -> Callable[[int], Bench]:
        return partial(Bench, modules, kernel, setup)

    by_length = []
    for (title, lengths), sparse in itertools.product(LENGTHS.items(), (False, True)):
        kind = "sparse" if sparse else "dense"
        short = title.replace(" ", "-")
        at_length = bench(Setup(sparse))
        by_length += [
            Case(
                f"prefill/{kind}/{short}",
                f"{kind} prefill of a whole prompt over {title}",
                partial(_prefill, at_length, lengths, 1),
            ),
            Case(
                f"prefill/{kind}/{short}/in-pieces",
                f"{kind} chunked prefill over {title}",
                partial(_prefill, at_length, lengths, PIECES),
            ),
            Case(
                f"decode/{kind}/{short}",
                f"decode after a {kind} prefill over {title}",
                partial(_decode, at_length, lengths[1]),
            ),
        ]
    all_dense, all_sparse = bench(Setup(sparse=False)), bench(Setup(sparse=True))
    below, second = bench(Setup(sparse=True, threshold=900)), bench(Setup(sparse=True, rank=1, sizes=BOTH_RANKS))
    few, many = bench(Setup(sparse=True, sizes=FEW)), bench(Setup(sparse=True, sizes=MANY))
    return [
        *by_length,
        Case(
            "prefill/whole/without-blocks",
            "prompts of one chunk when chunked prefill is off",
            partial(_without_blocks, bench(Setup(sparse=True, original=0))),
        ),
        Case(
            "prefill/sparse/short-pieces",
            "a prompt above the threshold is sparse in pieces below it",
            partial(_short_pieces, bench(Setup(sparse=True, threshold=300))),
        ),
        Case("prefill/dense/batch", "dense prefill of several prompts at once", partial(_batch, all_dense)),
        Case("prefill/sparse/batch", "sparse prefill of several prompts at once", partial(_batch, all_sparse)),
        Case("decode/batch", "decode of sequences in different chunks at once", partial(_decode_batch, all_dense)),
        Case("mixed/batch", "prefill and decode in one batch", partial(_mixed, all_sparse)),
        Case("prefill/sparse/short", "a prompt below the threshold is dense", partial(_prompt, below, 900)),
        Case("prefill/sparse/rank", "the second GPU uses the lines of its own heads", partial(_prompt, second, 1200)),
        Case("prefill/sparse/few", "stages without chosen lines", partial(_prompt, few, 2101)),
        Case("prefill/sparse/many", "more lines than the first span has keys", partial(_prompt, many, 1200)),
        Case(
            "prefill/unscaled",
            "no length factor without an original length",
            partial(_unscaled, bench(Setup(sparse=False, original=0))),
        ),
        Case(
            "config/defaults",
            "missing config keys have the default values that models expect",
            partial(_defaults, modules, kernel),
        ),
        Case(
            "config/metadata", "each step gets the config and the lengths of its prompts", partial(_metadata, modules)
        ),
        Case(
            "positions/1m",
            "rotary positions of the 1M models",
            partial(_positions, modules, kernel, oracle.Chunking(262_144, 8_192), 1_010_000),
        ),
        Case(
            "positions/wide",
            "rotary positions where most of a chunk is local",
            partial(_positions, modules, kernel, oracle.Chunking(640, 384), 4096),
        ),
    ]


def _shape(original: int) -> Shape:
    return Shape(HEADS, KV_HEADS, DIM, BASE, CHUNKING, original, torch.float32, 4096, PAGE)


@dataclasses.dataclass
class Random(Conversation):
    """A conversation of random tokens.

    Attributes:
        q: `[tokens, heads, dim]`.
        k: `[tokens, kv_heads, dim]`.
        v: as `k`.
        factors: of each key when it was written to the cache.
    """

    q: Tensor = dataclasses.field(default_factory=torch.Tensor)
    k: Tensor = dataclasses.field(default_factory=torch.Tensor)
    v: Tensor = dataclasses.field(default_factory=torch.Tensor)
    factors: list[float] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Setup:
    """How the layer under test is configured.

    Attributes:
        sparse: whether it has a table of lines.
        original: `original_max_position_embeddings`; 0 turns the length factor off.
        threshold: prompts above it are sparse.
        rank: in a tensor-parallel group, as the layer sees it.
        sizes: numbers of vertical and slash lines of every head of every rank.
    """

    sparse: bool
    original: int = ORIGINAL
    threshold: int = 100
    rank: int = 0
    sizes: tuple[tuple[int, int], ...] = SIZES


class Bench:
    """The wheel's layer and rotary embedding with a paged cache, and the oracle to compare with."""

    def __init__(self, modules: Modules, kernel: Kernel, setup: Setup, seed: int) -> None:
        self.modules, self.kernel, self.setup = modules, kernel, setup
        self.random = torch.Generator().manual_seed(seed)
        self.free = torch.randperm(PAGES, generator=self.random)
        sizes = setup.sizes if setup.sparse else None
        with on_cpu(modules.backend, modules.rotary, kernel, setup.rank):
            self.layer = Layer(modules, _shape(setup.original), PAGES, sizes, setup.threshold)
        self.worst: dict[str, float] = {}

    def sequence(self, prompt: int, new: int = 0) -> Random:
        """A random sequence of a prompt and some tokens after it."""
        tokens = prompt + new
        q, k, v = (torch.randn(tokens, heads, DIM, generator=self.random) for heads in (HEADS, KV_HEADS, KV_HEADS))
        count = -(-tokens // PAGE)
        pages, self.free = self.free[:count], self.free[count:]
        return Random(pages, prompt, q=q, k=k, v=v)

    def step(self, *work: tuple[Random, int], blocks: bool = True) -> None:
        """Run the layer over the next tokens of some sequences and compare its output with the oracle's.

        Prompts come first in a batch, as in the engine.

        Args:
            work: the sequences, each with a number of tokens.
            blocks: as in `Layer.metadata`; without, every prompt is whole, and dense within its one chunk.

        Raises:
            Wrong: they differ.
        """
        prefills = [(sequence, count) for sequence, count in work if sequence.done < sequence.prompt]
        decodes = [(sequence, count) for sequence, count in work if sequence.done >= sequence.prompt]
        ordered = prefills + decodes
        rows = [torch.arange(sequence.done, sequence.done + count) for sequence, count in ordered]
        q, k, v = (
            torch.cat([getattr(sequence, name)[at] for (sequence, _), at in zip(ordered, rows)])
            for name in ("q", "k", "v")
        )
        with on_cpu(self.modules.backend, self.modules.rotary, self.kernel, self.setup.rank) as functions:
            turned = self.layer.turn(torch.cat(rows), q, k)
            got = self.layer.run(turned, v, self.layer.metadata(ordered, blocks=blocks))
        tolerance = max(TOLERANCE[dtype] for dtype in functions.seen)
        first = 0
        for sequence, count in ordered:
            kind = "decode" if sequence.done >= sequence.prompt else "prefill"
            what = f"{kind} of tokens {sequence.done} to {sequence.done + count - 1}"
            want = self._want(sequence, count, dense=not blocks)
            worst = compare(what, got[first : first + count], want, tolerance)
            if worst / tolerance >= self.worst.get("largest difference", 0.0) / self.worst.get("allowed", 1.0):
                self.worst |= {"largest difference": worst, "allowed": tolerance}
            first += count
            sequence.done += count

    def _want(self, sequence: Random, count: int, *, dense: bool) -> Tensor:
        """The oracle's output for the next tokens of a sequence: `[count, heads, dim]`, float64."""
        begin, end = sequence.done, sequence.done + count
        factor = oracle.length_factor(max(sequence.prompt, end), self.setup.original)
        # Keys keep the factor of the step that wrote them.
        sequence.factors += [factor] * (end - len(sequence.factors))
        k = sequence.k[:end].double() * torch.tensor(sequence.factors, dtype=torch.float64)[:, None, None]
        q, v = sequence.q[begin:end].double(), sequence.v[:end].double()
        dual = oracle.DualChunk(CHUNKING, BASE, SCALE * factor)
        to_all = oracle.prefill(q, k, v, dual)
        if dense or not self.setup.sparse or sequence.prompt <= self.setup.threshold or begin >= sequence.prompt:
            return to_all.out
        first = self.setup.rank * HEADS
        sparse, chosen = oracle.sparse_prefill(q, k, v, dual, list(self.setup.sizes[first : first + HEADS]))
        self._clear(chosen)
        away = float((sparse.out - to_all.out).abs().max())
        self.worst["away from dense"] = max(away, self.worst.get("away from dense", 0.0))
        return sparse.out

    def _clear(self, chosen: list[list[oracle.Selection]]) -> None:
        """Reject random numbers for which the choice of lines depends on the last digits of a score."""
        for selection in itertools.chain.from_iterable(chosen):
            for scores, lines in (
                (selection.vertical_scores, selection.vertical),
                (selection.slash_scores, selection.slash),
            ):
                left = torch.ones_like(scores, dtype=torch.bool)
                left[lines] = False
                if bool(left.any()) and float(scores[lines].min()) < float(scores[left].max()) * (1 + 1e-5):
                    raise Unclear


class Unclear(Exception):  # noqa: N818 - it is no error: other random numbers are taken
    """With these random numbers, two choices of lines have nearly equal scores."""


def clearly(run: Callable[[int], dict[str, Any]], seed: int) -> dict[str, Any]:
    """Run with a seed, or the next one whose random numbers give a clear choice of lines."""
    for more in itertools.count():
        try:
            return run(seed + 1_000_003 * more)
        except Unclear:  # noqa: PERF203 - it is rare
            if more == 20:
                raise Wrong("no seed gives a clear choice of lines") from None
    raise AssertionError


def _prefill(bench: Callable[[int], Bench], lengths: tuple[int, int], pieces: int, seed: int) -> dict[str, Any]:
    """A prompt of a drawn length, whole or in pieces that are cut at random places."""

    def run(seed: int) -> dict[str, Any]:
        rng = source(seed, lengths, pieces)
        length = rng.randint(*lengths)
        return _in_pieces(bench(seed), cuts(rng, length, rng.randint(min(2, pieces), pieces)))

    return clearly(run, seed)


def _in_pieces(at: Bench, sizes: list[int]) -> dict[str, Any]:
    sequence = at.sequence(sum(sizes))
    for size in sizes:
        at.step((sequence, size))
    return {"tokens": sum(sizes), "pieces": len(sizes), **at.worst}


def _short_pieces(bench: Callable[[int], Bench], seed: int) -> dict[str, Any]:
    """Pieces that a layer takes for short prompts, or for short parts of a chunk, if it looks at them alone.

    They cross the ends of chunks, and some have a single token or fewer than choose the lines.
    """

    def run(seed: int) -> dict[str, Any]:
        rng = source(seed)
        stride = CHUNKING.stride
        sizes = [rng.randint(120, 290), 1, rng.randint(2, 60)]
        # Up to the end of the chunk but for one token, and over it; then a chunk in two pieces, and a single token.
        sizes.append(stride - sum(sizes) - 1)
        first = rng.randint(65, 250)
        sizes += [2, first, stride - first, rng.randint(1, 63), 1]
        return _in_pieces(bench(seed), sizes)

    return clearly(run, seed)


def _without_blocks(bench: Callable[[int], Bench], seed: int) -> dict[str, Any]:
    rng = source(seed)
    at = bench(seed)
    several = [at.sequence(length) for length in (rng.randint(2, 99), CHUNKING.stride, rng.randint(101, 300), 1)]
    at.step(*((sequence, sequence.prompt) for sequence in several), blocks=False)
    return {"prompts": len(several), **at.worst}


def _decode(bench: Callable[[int], Bench], length: int, seed: int) -> dict[str, Any]:
    def run(seed: int) -> dict[str, Any]:
        at = bench(seed)
        # The prompt ends before the end of a chunk, which decoding then crosses.
        prompt = -(-length // CHUNKING.stride) * CHUNKING.stride - 3
        sequence = at.sequence(prompt, 6)
        at.step((sequence, prompt))
        for _ in range(6):
            at.step((sequence, 1))
        return {"prompt": prompt, "tokens": 6, **at.worst}

    return clearly(run, seed)


def _batch(bench: Callable[[int], Bench], seed: int) -> dict[str, Any]:
    def run(seed: int) -> dict[str, Any]:
        at, rng = bench(seed), source(seed)
        lengths = (rng.randint(*LENGTHS["three chunks"]), rng.randint(1, 99), rng.randint(*LENGTHS["two chunks"]))
        several = [at.sequence(length) for length in lengths]
        at.step(*((sequence, sequence.prompt) for sequence in several))
        return {"prompts": len(several), **at.worst}

    return clearly(run, seed)


def _decode_batch(bench: Callable[[int], Bench], seed: int) -> dict[str, Any]:
    def run(seed: int) -> dict[str, Any]:
        at = bench(seed)
        # Three at the ends of chunks, and two anywhere.
        rng = source(seed, "decode")
        between = [rng.randint(*lengths) for lengths in ((1, 300), (1345, 1791))]
        several = [at.sequence(length, 3) for length in (446, 896, 2239, *between)]
        for sequence in several:
            at.step((sequence, sequence.prompt))
        for _ in range(3):
            at.step(*((sequence, 1) for sequence in several))
        return {"sequences": len(several), **at.worst}

    return clearly(run, seed)


def _mixed(bench: Callable[[int], Bench], seed: int) -> dict[str, Any]:
    def run(seed: int) -> dict[str, Any]:
        at, rng = bench(seed), source(seed)
        length = rng.randint(*LENGTHS["three chunks"])
        first = rng.randint(1, length - 1)
        old, new = at.sequence(960, 2), at.sequence(length)
        at.step((old, 960))
        at.step((new, first), (old, 1))
        at.step((new, length - first), (old, 1))
        return {"sequences": 2, **at.worst}

    return clearly(run, seed)


def _prompt(bench: Callable[[int], Bench], length: int, seed: int) -> dict[str, Any]:
    """A whole prompt in one step."""

    def run(seed: int) -> dict[str, Any]:
        at = bench(seed)
        at.step((at.sequence(length), length))
        return at.worst

    return clearly(run, seed)


def _unscaled(bench: Callable[[int], Bench], seed: int) -> dict[str, Any]:
    at = bench(seed)
    sequence = at.sequence(1500, 2)
    at.step((sequence, 1500))
    at.step((sequence, 1))
    at.step((sequence, 1))
    return at.worst


def _defaults(modules: Modules, kernel: Kernel, _seed: int) -> dict[str, Any]:
    table = [{str(head): ["vertical_and_slash", *size, 1.0] for head, size in enumerate(SIZES)}]
    for config, enabled in (({}, False), ({"sparse_attention_config": table}, True)):
        with on_cpu(modules.backend, modules.rotary, kernel):
            layer = implementation(modules, _shape(0), config, 0)
        _equal(
            layer,
            sparse_attention_enabled=enabled,
            sparse_attention_threshold=32_768,
            sparse_attention_last_q=64,
            original_max_position_embeddings=0,
        )
    return {}


def _metadata(modules: Modules, _seed: int) -> dict[str, Any]:
    """Check what the backend's builder adds to that of ordinary attention, which is replaced."""
    backend = modules.backend
    config = {"chunk_size": 640, "local_size": 192, "original_max_position_embeddings": ORIGINAL}
    builder = object.__new__(backend.DualChunkFlashAttentionMetadataBuilder)
    builder.runner = SimpleNamespace(
        device=torch.device("cpu"),
        pin_memory=False,
        block_size=2 * PAGE,
        model_config=SimpleNamespace(hf_config=SimpleNamespace(dual_chunk_attention_config=config)),
    )
    ordinary = call(
        backend.FlashAttentionMetadata,
        num_prefills=1,
        num_prefill_tokens=300,
        num_decode_tokens=1,
        slot_mapping=torch.arange(301),
        multi_modal_placeholder_index_maps=None,
        enable_kv_scales_calculation=False,
        seq_lens=[300, 95],
        seq_lens_tensor=torch.tensor([300, 95]),
        max_prefill_seq_len=300,
        max_decode_seq_len=95,
        context_lens_tensor=None,
        block_tables=None,
        use_cuda_graph=False,
        max_query_len=300,
        max_decode_query_len=1,
        query_start_loc=None,
        seq_start_loc=None,
        # Releases differ in which builder sets the whole lengths: this one or the ordinary one.
        orig_seq_lens=[900, 95],
        orig_seq_lens_tensor=torch.tensor([900, 95]),
    )
    with contextlib.ExitStack() as replaced:
        for name, answer in (("prepare", None), ("_add_seq_group", None), ("build", ordinary)):
            replaced.enter_context(
                mock.patch.object(backend.FlashAttentionMetadataBuilder, name, create=True, return_value=answer)
            )
        builder.prepare()
        # A prompt of 900 tokens, 300 of them in the cache, and one of 70 with 25 generated tokens.
        builder._add_seq_group(SimpleNamespace(prompt_lens=[900, 70], seq_lens=[300, 95]), True, False)
        built = builder.build([300, 95], [300, 1], 0, 2)
    _equal(built, block_size=2 * PAGE, orig_seq_lens=[900, 95], **config)
    if built.orig_seq_lens_tensor.tolist() != [900, 95]:
        raise Wrong(f"whole lengths are {built.orig_seq_lens_tensor.tolist()} instead of [900, 95]")
    return {}


def _equal(owner: Any, **expected: Any) -> None:
    for name, want in expected.items():
        if (got := getattr(owner, name)) != want:
            raise Wrong(f"{name} is {got!r} instead of {want!r}")


def _positions(modules: Modules, kernel: Kernel, chunking: oracle.Chunking, length: int, seed: int) -> dict[str, Any]:
    """Check the rotary tables up to a model's length, at every border and at random positions."""
    base, dim, stride = 1e7, 8, chunking.stride
    borders = [
        n * stride + d for n in range(4) for d in (-1, 0, 1, chunking.local - 1, chunking.local, chunking.local + 1)
    ]
    random = torch.randint(0, length, (200,), generator=torch.Generator().manual_seed(seed)).tolist()
    positions = torch.tensor(sorted({p for p in [*borders, *random, length - 1] if 0 <= p < length}))
    x = torch.zeros(len(positions), 1, dim, dtype=torch.float32)
    x[..., : dim // 2] = 1
    with on_cpu(modules.backend, modules.rotary, kernel):
        rotary = modules.rotary.DualChunkRotaryEmbedding(
            dim, dim, length, base, True, torch.float32, chunking.size, chunking.local
        )
        query, key, *others = run_rotary(rotary, positions, x.flatten(1), x.flatten(1))
    places = oracle.query_positions(positions, chunking)
    worst = 0.0
    for name, got, want in (
        ("keys", key, oracle.key_positions(positions, chunking)),
        ("queries", query, places.intra),
        ("queries towards the previous chunk", others[0], places.successive),
        ("queries towards older chunks", others[1], places.inter),
        ("queries that choose in the previous chunk", others[2], places.successive_critical),
        ("queries that choose in older chunks", others[3], places.inter_critical),
    ):
        turned = oracle.rotate(x.double(), want, base)
        # Tables are in float32, where a large angle has few exact decimal places.
        worst = max(worst, compare(f"rotated {name}", got.view(turned.shape), turned, 0.08))
    return {"positions": len(positions), "largest difference": worst}
