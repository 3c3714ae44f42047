"""Compares the wheel's whole layer, at the lengths of a 1M model, with the oracle on sampled rows.

The layer runs as in the engine, one piece of the prompt at a time; only its rank is replaced. Each step is checked with
the real output of the step before it:

- Rotated queries and keys equal those of the oracle, within the precision of the tables' dtype.
- The cache has the rotated keys, multiplied by the length factor, and the values.
- The lines that went into the index conversion come from one choice per head, are split correctly among the stages, and
  no omitted line scores higher than a chosen one. Scores differ by the rounding of logits to the dtype, so the wheel
  may choose either of two nearly equal lines.
- The output at sampled rows equals the oracle's for the rotated queries, the cache and those lines.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ContextManager
from unittest import mock

import torch
from torch import Tensor

from .. import oracle
from ..oracle import Stage
from .bounds import SLACK, UNIT, Largest, Reference, Roundings, Worst, bounded, with_absolutes
from .case import Case, Wrong
from .choice import Voting, checked
from .conversion import BLOCK, Kernel
from .layer import ONE_OF_FOUR, Conversation, Layer, Model, Modules, Shape
from .lengths import LONGEST, STRIDE, source
from .speed import Clock
from .stand_ins import Conversion, conversions, on_cpu

# Queries are large: attention that is spread over a million keys gives zero, right or wrong.
SHARP = 3.0
# The relative error of an angle: a product of two float32 numbers, one of them a power.
ANGLE = 2.0**-21


@dataclass(frozen=True)
class Prompt:
    """A prompt, by the numbers that its length is drawn from.

    Attributes:
        shortest: in tokens.
        longest: in tokens.
        piece: tokens that the engine prefills at once; drawn if 0.
        dense: also run dense attention, whose time grows with the square of the length.
    """

    shortest: int
    longest: int
    piece: int
    dense: bool = True

    def draw(self, seed: int) -> tuple[int, int]:
        """The length, and the tokens of a piece."""
        rng = source(seed, self)
        tokens = rng.randint(self.shortest, self.longest)
        return tokens, self.piece or rng.randint(tokens // 8, tokens // 2)

    def __str__(self) -> str:
        some = f"{self.shortest:,}" if self.shortest == self.longest else f"{self.shortest:,} to {self.longest:,}"
        whole = ", prefilled at once" if self.piece >= self.longest else ""
        return f"a prompt of {some} tokens{whole}"


@dataclass(frozen=True)
class Plan:
    """The inputs of the layer.

    Attributes:
        model: as one GPU sees it.
        prompts: by their names in cases.
        sizes: numbers of vertical and slash lines of every head.
        threshold: prompts above it are sparse.
        blocks: checked rows of 64 queries of each piece and chunk.
    """

    model: Model
    prompts: dict[str, Prompt]
    sizes: tuple[tuple[int, int], ...]
    threshold: int
    blocks: int


# What the models' pages tell users to prefill at once.
PIECE = 131_072
# Sizes from the model's table, the largest among them.
FULL = Plan(
    ONE_OF_FOUR,
    prompts={
        "1-chunk": Prompt(262_144, 262_144, PIECE),
        "2-chunks": Prompt(524_288, 524_288, PIECE),
        "4-chunks": Prompt(1_048_576, 1_048_576, PIECE),
        "whole": Prompt(STRIDE + 1, 330_000, 330_000),
        "drawn": Prompt(STRIDE + 1, LONGEST, 0),
    },
    sizes=(*[(1000, 6096)] * 3, (30, 800), (3048, 8144), (22_032, 18_532), (19_532, 24_528)),
    threshold=32_768,
    blocks=8,
)
# The same with a small model: four chunks in pieces, and two at once.
QUICK = Plan(
    Model(
        heads=4, kv_heads=2, dim=128, base=1e6, chunking=oracle.Chunking(2560, 512), original=2560, dtype=torch.bfloat16
    ),
    prompts={"small": Prompt(6_145, 7_500, 0), "small-whole": Prompt(2_100, 2_900, 2_900)},
    sizes=((100, 200), (30, 150), (300, 250), (64, 101)),
    threshold=1000,
    blocks=4,
)

# For an emulated GPU. A chunk is three row blocks of 64 queries and a quarter, so that each ends within one; the
# lengths end in the third row block of a chunk.
EMULATED = Plan(
    Model(
        heads=4, kv_heads=2, dim=128, base=1e6, chunking=oracle.Chunking(288, 80), original=400, dtype=torch.bfloat16
    ),
    prompts={
        f"{chunks}-chunk{'s' * (chunks > 1)}": Prompt((chunks - 1) * 208 + 130, (chunks - 1) * 208 + 191, 0)
        for chunks in range(1, 6)
    },
    # More diagonals than the hundred nearest, as in every model: these are taken first. With fewer a head may have none
    # in its own chunk, where the conversion does not end.
    sizes=((30, 104), (20, 110), (60, 120), (40, 101)),
    threshold=100,
    blocks=3,
)
# A chunk of 66 row blocks: two more than the index conversion puts into one thread block.
TILED = Plan(
    Model(
        heads=1, kv_heads=1, dim=128, base=1e6, chunking=oracle.Chunking(4352, 128), original=4352, dtype=torch.bfloat16
    ),
    prompts={"tiled": Prompt(2 * 4224 + 4161, 2 * 4224 + 4223, 3 * 4224, dense=False)},
    sizes=((30, 104),),
    threshold=1000,
    blocks=4,
)
EMULATED_QUICK = replace(EMULATED, prompts={"3-chunks": Prompt(2 * 208 + 130, 2 * 208 + 191, 3 * 208)}, blocks=2)


def cases(modules: Modules, plan: Plan, device: str, kernel: Kernel) -> list[Case]:
    """Dense and sparse cases at each length; on a CPU with `stand_ins` and the given index conversion."""
    bench = Bench(modules, host(modules, device, kernel), plan, device)
    listed = []
    for (title, prompt), sparse in itertools.product(plan.prompts.items(), (False, True)):
        if not (sparse or prompt.dense):
            continue
        kind = "sparse" if sparse else "dense"
        more = "" if sparse else ", and a decoded token"
        proves = f"the whole layer, {kind}, on {prompt}{more}"
        listed.append(Case(f"layer/{kind}/{title}", proves, partial(_layer, bench, prompt, sparse)))
    return listed


def host(modules: Modules, device: str, kernel: Kernel) -> Callable[[], ContextManager[Any]]:
    """The context, instead of an engine, that a layer is built and called in."""
    if device == "cpu":
        return partial(on_cpu, modules.backend, modules.rotary, kernel)
    return partial(_on_gpu, modules.backend)


@contextlib.contextmanager
def _on_gpu(backend: Any) -> Iterator[None]:
    """Return rank 0 to the layer, because there is no tensor-parallel group of processes."""
    with mock.patch.object(backend, "get_tensor_model_parallel_rank", return_value=0):
        yield


@dataclass(frozen=True)
class Bench:
    """What the cases run with.

    Attributes:
        modules: the wheel's Python of the layer.
        host: the context, instead of an engine, that the layer is built and called in.
        plan: the inputs of the layer.
        device: to run on.
    """

    modules: Modules
    host: Callable[[], ContextManager[Any]]
    plan: Plan
    device: str


def _layer(bench: Bench, prompt: Prompt, sparse: bool, seed: int) -> dict[str, Any]:
    tokens, piece = prompt.draw(seed)
    run = Run(bench, tokens, sparse, seed)
    for begin in range(0, tokens, piece):
        run.prefill(min(begin + piece, tokens))
    if not sparse:
        run.decode()
    return {
        "tokens": tokens,
        "tokens at once": piece,
        "rows": run.rows,
        "ms in the layer": run.spent,
        **run.figures,
        **run.worst.figures,
    }


class Run:
    """One prompt that the layer processes.

    Attributes:
        worst: the differences nearest to their bounds.
        rows: how many rows were checked.
        spent: milliseconds in the layer, without its rotary embedding.
        figures: other figures of the report.
    """

    def __init__(self, bench: Bench, tokens: int, sparse: bool, seed: int) -> None:
        self.bench, self.sparse = bench, sparse
        self.plan = plan = bench.plan
        device = bench.device
        self.random = torch.Generator(device).manual_seed(seed)
        self.shape = Shape(**vars(plan.model), positions=tokens + 1, device=device)
        pages = -(-(tokens + 1) // self.shape.page)
        # Tables are created on the device, as by the engine, because some are large.
        with bench.host(), torch.device(device):
            self.layer = Layer(bench.modules, self.shape, pages, plan.sizes if sparse else None, plan.threshold)
        order = torch.randperm(pages, generator=self.random, device=device)
        self.conversation = Conversation(order, tokens)
        self.worst, self.rows, self.spent = Worst(), 0, 0.0
        self.figures: dict[str, Any] = {}

    def _draw(self, count: int, heads: int, spread: float = 1.0) -> Tensor:
        shape = (count, heads, self.plan.model.dim)
        return (torch.randn(shape, generator=self.random, device=self.shape.device) * spread).to(self.plan.model.dtype)

    def _step(self, count: int) -> tuple[dict[str, Tensor], Tensor, list[Conversion]]:
        """Process the next tokens; returns rotated queries, the layer's output, and the conversions that it called."""
        plan, first = self.plan, self.conversation.done
        q, k, v = (
            self._draw(count, plan.model.heads, SHARP),
            self._draw(count, plan.model.kv_heads),
            self._draw(count, plan.model.kv_heads),
        )
        positions = torch.arange(first, first + count, device=self.shape.device)
        answers: list[Tensor] = []
        with self.bench.host(), conversions(self.bench.modules.backend) as asked:
            turned = self.layer.turn(positions, q, k)
            metadata = self.layer.metadata([(self.conversation, count)])
            self.spent += Clock(self.shape.device).time(lambda: answers.append(self.layer.run(turned, v, metadata)))
        self.conversation.done += count
        names = ("intra", "key", "successive", "inter", "successive critical", "inter critical")
        views = {name: tensor.view(count, -1, plan.model.dim) for name, tensor in zip(names, turned)}
        self._rotation(positions, q, k, views)
        self._cache(first, views["key"], v)
        return views, answers[0], asked

    def prefill(self, end: int) -> None:
        """Prefill up to token `end` of the prompt, and compare every step of the layer with the oracle."""
        begin = self.conversation.done
        turned, got, asked = self._step(end - begin)
        prompt, stride = self.conversation.prompt, self.plan.model.chunking.stride
        scale = self.shape.scale * oracle.length_factor(prompt, self.plan.model.original)
        sizes = [(oracle.RAISED.get(vertical, vertical), slash) for vertical, slash in self.plan.sizes]
        for first, after in oracle.spans(begin, end, stride):
            of_span = {name: tensor[first - begin : after - begin] for name, tensor in turned.items()}
            what = f"tokens {first} to {after - 1} of {prompt}"
            span = Span(first, after, of_span, self._cached(after), scale, what)
            sizes = [(min(vertical, after), min(slash, after)) for vertical, slash in sizes]
            lines: list[list[Stage | None]] = []
            if self.sparse:
                stages = 1 + min(first // stride, 2)
                lines = self._lines(span, asked[:stages], sizes)
                asked = asked[stages:]
            self._rows(span, got[first - begin : after - begin], lines)
        if asked:
            raise Wrong(f"{len(asked)} index conversions more than there are stages, for tokens {begin} to {end - 1}")

    def decode(self) -> None:
        """Decode one token after the prompt, and compare likewise."""
        turned, got, _ = self._step(1)
        end = self.conversation.done
        at = self._cached(end)
        # The layer multiplies a decoded query by the length factor, and rounds it.
        factor = torch.tensor(
            oracle.length_factor(end, self.plan.model.original), dtype=torch.float32, device=at.k.device
        )
        exact = [q.float() for q in _variants(turned)]
        variants = oracle.RotatedQueries(*((q * factor).to(self.plan.model.dtype) for q in exact))
        # That factor may differ in its last digits, so that a few numbers are rounded in the other direction.
        low, high = (
            torch.stack([(q * (factor * (1 + by))).to(self.plan.model.dtype).double() for q in exact])
            for by in (-(2.0**-22), 2.0**-22)
        )
        flips = self.shape.scale * float(torch.linalg.vector_norm(high - low, dim=-1).max() * at.largest.key.max())
        positions = torch.tensor([end - 1], device=at.k.device)
        reference = self._dense(variants, positions, at, self.shape.scale, flips)
        what = f"decode of token {end - 1}"
        self.worst.within("decoded", what, got, reference.out, reference.out_bound)

    def _cached(self, end: int) -> Cached:
        """The first tokens in the cache."""
        pages = self.conversation.pages[: -(-end // self.shape.page)]
        k, v = (self.layer.cache[part][pages].flatten(0, 1)[:end] for part in (0, 1))
        return Cached(k, v, with_absolutes(v), Largest.of(k, v))

    def _cache(self, first: int, key: Tensor, value: Tensor) -> None:
        """Compare the cache from token `first` on with keys and values `[tokens, kv_heads, dim]`."""
        at = self._cached(self.conversation.done)
        what = f"cache of tokens {first} to {self.conversation.done - 1}"
        want = key.double() * oracle.length_factor(
            max(self.conversation.prompt, self.conversation.done), self.plan.model.original
        )
        # The factor is rounded to the dtype, and so is the product.
        self.worst.within("cached key", what, at.k[first:], want, SLACK * 2 * UNIT[self.plan.model.dtype] * want.abs())
        if not torch.equal(at.v[first:], value):
            raise Wrong(f"{what}: the values differ from the input")

    def _rotation(self, positions: Tensor, q: Tensor, k: Tensor, turned: dict[str, Tensor]) -> None:
        """Compare rotated queries and keys at sampled rows with the oracle."""
        plan = self.plan
        some = self._some(len(positions), 64)
        places = oracle.query_positions(positions[some], plan.model.chunking)
        at = {
            "key": oracle.key_positions(positions[some], plan.model.chunking),
            "intra": places.intra,
            "successive": places.successive,
            "inter": places.inter,
            "successive critical": places.successive_critical,
            "inter critical": places.inter_critical,
        }
        for name, place in at.items():
            x = (k if name == "key" else q)[some].double()
            half = plan.model.dim // 2
            frequency = plan.model.base ** (-torch.arange(half, device=x.device, dtype=torch.float64) / half)
            off = ANGLE * place[:, None].double() * frequency + 3 * UNIT[plan.model.dtype]
            bound = (x[..., :half].abs() + x[..., half:].abs()) * off[:, None]
            want = oracle.rotate(x, place, plan.model.base)
            what = f"{name} of tokens {int(positions[0])} to {int(positions[-1])}"
            self.worst.within("rotated", what, turned[name][some], want, SLACK * torch.cat((bound, bound), dim=-1))

    def _some(self, count: int, most: int) -> Tensor:
        """At most `most` numbers below `count`, including the first and the last: int64, ascending."""
        more = torch.randint(count, (most,), generator=self.random, device=self.shape.device)
        more[0], more[-1] = 0, count - 1
        return more.unique()

    def _rows(self, span: Span, got: Tensor, lines: list[list[Stage | None]]) -> None:
        """Compare the output at sampled rows of sampled blocks of 64 with the oracle.

        Args:
            span: of the rows.
            got: `[queries, heads, dim]`, the layer's output for the span.
            lines: of every head, by stage; empty for dense attention.
        """
        queries = span.after - span.first
        for block in self._some(-(-queries // BLOCK), self.plan.blocks).tolist():
            inside = min(BLOCK, queries - block * BLOCK)
            some = self._some(inside, 4) + block * BLOCK
            variants = oracle.RotatedQueries(*(q[some] for q in span.variants))
            if self.sparse:
                reference = self._sparse(variants, some + span.first, span, lines)
            else:
                reference = self._dense(variants, some + span.first, span.at, span.scale, 0.0)
            self.worst.within("output", f"{span.what}, block {block}", got[some], reference.out, reference.out_bound)
            self.rows += len(some)

    def _dense(
        self, variants: oracle.RotatedQueries, positions: Tensor, at: Cached, scale: float, logit: float
    ) -> Reference:
        """The expected output of queries of one chunk for dense attention.

        Args:
            variants: `[queries, heads, dim]`.
            positions: int64 `[queries]`, absolute.
            at: the cache up to at least the last query.
            scale: the factor of logits.
            logit: additional error of logits besides the kernel's roundings.
        """
        group, stride = self.plan.model.heads // self.plan.model.kv_heads, self.plan.model.chunking.stride
        rows = positions.repeat_interleave(group)
        parts = []
        for head in range(self.plan.model.kv_heads):
            # Heads that share keys are stacked as rows, so that keys are not repeated for each.
            of_head = slice(head * group, (head + 1) * group)
            queries = oracle.RotatedQueries(*(q[:, of_head].double().flatten(0, 1)[:, None] for q in variants))
            k, v = at.k[:, head : head + 1].double(), at.both[:, head : head + 1]
            part = oracle.attend_stages(queries, k, v, rows, stride, scale)
            size = (len(positions), group)
            parts.append(oracle.Partial(part.out.view(*size, -1), part.lse.view(size)))
        return self._bounded(parts, variants, at, scale, logit)

    def _sparse(
        self, variants: oracle.RotatedQueries, positions: Tensor, span: Span, lines: list[list[Stage | None]]
    ) -> Reference:
        """The expected output of queries of one row of 64 with the lines of their span; arguments as in `_dense`."""
        at, stride, parts = span.at, self.plan.model.chunking.stride, []
        group = self.plan.model.heads // self.plan.model.kv_heads
        for head in range(self.plan.model.heads):
            queries = oracle.RotatedQueries(*(q[:, head].double() for q in variants))
            k, v = at.k[:, head // group], at.both[:, head // group]
            of_head = oracle.SpanLines(span.first, span.after, stride, lines[head])
            part = oracle.attend_lines(queries, k, v, positions, of_head, span.scale)
            parts.append(oracle.Partial(part.out[:, None], part.lse[:, None]))
        return self._bounded(parts, variants, at, span.scale, 0.0)

    def _bounded(
        self, parts: list[oracle.Partial], variants: oracle.RotatedQueries, at: Cached, scale: float, logit: float
    ) -> Reference:
        """The output of all heads, with its bounds."""
        whole = oracle.Partial(torch.cat([part.out for part in parts], 1), torch.cat([part.lse for part in parts], 1))
        longest = torch.stack([q.double().abs() for q in variants]).amax(0)
        roundings = Roundings(at.largest, len(at.k), scale, self.plan.model.dtype, merged=True, logit=logit)
        return bounded(whole, longest, roundings)

    def _lines(self, span: Span, asked: list[Conversion], sizes: list[tuple[int, int]]) -> list[list[Stage | None]]:
        """The lines of every head, by stage, after checking that they are a correct choice.

        Args:
            span: that they were chosen for.
            asked: the conversions that the layer called, by stage.
            sizes: the numbers of vertical and slash lines of every head.
        """
        voters = slice(-min(span.after - span.first, oracle.VOTERS), None)
        names = ("intra", "successive critical", "inter critical")
        queries = oracle.RotatedQueries(*(span.turned[name][voters] for name in names))
        stride = self.plan.model.chunking.stride
        voting = Voting(span.first, span.after, stride, queries, span.at.k, span.scale, span.what)
        lines, share = checked(voting, asked, sizes, UNIT[self.plan.model.dtype])
        self.figures["lines chosen as the oracle does"] = min(
            share, self.figures.get("lines chosen as the oracle does", 1.0)
        )
        return lines


@dataclass(frozen=True)
class Cached:
    """Keys and values in the cache.

    Attributes:
        k: `[end, kv_heads, dim]`, rotated.
        v: as `k`, not rotated.
        both: `[end, kv_heads, 2 * dim]`, values and their absolute values.
        largest: of keys and values, for bounds.
    """

    k: Tensor
    v: Tensor
    both: Tensor
    largest: Largest


@dataclass(frozen=True)
class Span:
    """The tokens of one piece in one chunk.

    Attributes:
        first: the first token.
        after: the token after the last.
        turned: `[queries, heads, dim]`, the queries and keys by kind of rotation.
        at: the cache up to the last token.
        scale: the factor of logits.
        what: names the tokens in messages.
    """

    first: int
    after: int
    turned: dict[str, Tensor]
    at: Cached
    scale: float
    what: str

    @property
    def variants(self) -> oracle.RotatedQueries:
        """The queries as attention uses them."""
        return _variants(self.turned)


def _variants(turned: dict[str, Tensor]) -> oracle.RotatedQueries:
    return oracle.RotatedQueries(turned["intra"], turned["successive"], turned["inter"])
