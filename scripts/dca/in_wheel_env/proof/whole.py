"""The wheel's whole layer at the lengths of a 1M model, against the oracle on rows here and there.

The layer runs as in the engine, a piece of the prompt at a time, and nothing of it is replaced but its rank. What it
does is then followed step by step, each from what the step before really gave:

- Rotated queries and keys are those of the oracle, within what the dtype of the tables allows.
- The cache holds the rotated keys, times the length factor, and the values.
- The lines that went into the index conversion are those of one choice for each head, fall to the stages as they
  must, and no line was left out that scores higher than a chosen one. Scores differ by the rounding of logits to the
  dtype, so that which of two nearly equal lines is chosen is left to the wheel.
- The answer at rows here and there is what the oracle says of the rotated queries, the cache and those lines.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ContextManager
from unittest import mock

import torch
from torch import Tensor

from .. import oracle
from ..oracle import Stage
from .bounds import SLACK, UNIT, Largest, Reference, Worst, bounded, with_absolutes
from .case import Case, Wrong
from .conversion import BLOCK, Kernel
from .layer import ONE_OF_FOUR, Conversation, Layer, Model, Modules, Shape
from .speed import Clock
from .stand_ins import on_cpu

# Queries are sharpened: attention that is spread over a million keys answers zero, whatever it does.
SHARP = 3.0
# Angles are products of two float32 numbers, one of them a power.
ANGLE = 2.0**-21


@dataclass(frozen=True)
class Plan:
    """What the layer is run on.

    Attributes:
        model: as one GPU sees it.
        lengths: of the prompts, by what they are called.
        piece: tokens that the engine prefills at once.
        sizes: numbers of vertical and slash lines of every head.
        threshold: prompts above it are sparse.
        blocks: rows of 64 queries of each piece and chunk that are looked at.
    """

    model: Model
    lengths: dict[str, int]
    piece: int
    sizes: tuple[tuple[int, int], ...]
    threshold: int
    blocks: int


# Sizes from the model's table, the largest among them.
FULL = Plan(
    ONE_OF_FOUR,
    lengths={"1-chunk": 262_144, "2-chunks": 524_288, "4-chunks": 1_048_576},
    piece=131_072,
    sizes=(*[(1000, 6096)] * 3, (30, 800), (3048, 8144), (22_032, 18_532), (19_532, 24_528)),
    threshold=32_768,
    blocks=8,
)
# The same in small: four chunks, pieces that are no multiple of anything.
QUICK = Plan(
    Model(
        heads=4, kv_heads=2, dim=128, base=1e6, chunking=oracle.Chunking(2560, 512), original=2560, dtype=torch.bfloat16
    ),
    lengths={"small": 6_900},
    piece=1_990,
    sizes=((100, 200), (30, 150), (300, 250), (64, 101)),
    threshold=1000,
    blocks=4,
)


def cases(modules: Modules, plan: Plan, device: str, kernel: Kernel) -> list[Case]:
    """Dense and sparse, at each length; on a CPU by the stand-ins of `composition`, with an index conversion."""
    if device == "cpu":
        host: Callable[[], ContextManager[Any]] = partial(on_cpu, modules.backend, modules.rotary, kernel)
    else:
        host = partial(_on_gpu, modules.backend)
    found = []
    for (title, tokens), sparse in itertools.product(plan.lengths.items(), (False, True)):
        kind = "sparse" if sparse else "dense"
        more = "" if sparse else ", and a decoded token"
        proves = f"the whole layer, {kind}, on a prompt of {tokens:,} tokens{more}"
        found.append(
            Case(f"layer/{kind}/{title}", proves, partial(_layer, modules, host, plan, device, tokens, sparse))
        )
    return found


@contextlib.contextmanager
def _on_gpu(backend: Any) -> Iterator[None]:
    """The layer asks for its rank in a group of processes that there is none of here."""
    with mock.patch.object(backend, "get_tensor_model_parallel_rank", return_value=0):
        yield


def _layer(
    modules: Modules,
    host: Callable[[], ContextManager[Any]],
    plan: Plan,
    device: str,
    tokens: int,
    sparse: bool,
    seed: int,
) -> dict[str, Any]:
    run = Run(modules, host, plan, device, tokens, sparse, seed)
    for begin in range(0, tokens, plan.piece):
        run.prefill(min(begin + plan.piece, tokens))
    if not sparse:
        run.decode()
    return {"tokens": tokens, "rows": run.rows, "ms in the layer": run.spent, **run.figures, **run.worst.figures}


class Run:
    """One prompt on its way through the layer.

    Attributes:
        worst: the differences nearest to their bounds.
        rows: how many rows were looked at.
        spent: milliseconds in the layer, its rotary embedding not counted.
        figures: what else there is to tell.
    """

    def __init__(
        self,
        modules: Modules,
        host: Callable[[], ContextManager[Any]],
        plan: Plan,
        device: str,
        tokens: int,
        sparse: bool,
        seed: int,
    ) -> None:
        self.modules, self.host, self.plan, self.sparse = modules, host, plan, sparse
        self.random = torch.Generator(device).manual_seed(seed)
        self.shape = Shape(**vars(plan.model), positions=tokens + 1, device=device)
        pages = -(-(tokens + 1) // self.shape.page)
        # As the engine builds a model; some tables are large.
        with host(), torch.device(device):
            self.layer = Layer(modules, self.shape, pages, plan.sizes if sparse else None, plan.threshold)
        order = torch.randperm(pages, generator=self.random, device=device)
        self.one = Conversation(order, tokens)
        self.worst, self.rows, self.spent = Worst(), 0, 0.0
        self.figures: dict[str, Any] = {}

    def _draw(self, count: int, heads: int, spread: float = 1.0) -> Tensor:
        shape = (count, heads, self.plan.model.dim)
        return (torch.randn(shape, generator=self.random, device=self.shape.device) * spread).to(self.plan.model.dtype)

    def _step(self, count: int) -> tuple[dict[str, Tensor], Tensor, list[Call]]:
        """The next tokens through the layer: rotated queries, its answer, and the conversions that it asked for."""
        plan, first = self.plan, self.one.done
        q, k, v = (
            self._draw(count, plan.model.heads, SHARP),
            self._draw(count, plan.model.kv_heads),
            self._draw(count, plan.model.kv_heads),
        )
        positions = torch.arange(first, first + count, device=self.shape.device)
        found: list[Tensor] = []
        with self.host(), _conversions(self.modules.backend) as calls:
            turned = self.layer.turn(positions, q, k)
            metadata = self.layer.metadata([(self.one, count)])
            self.spent += Clock(self.shape.device).time(lambda: found.append(self.layer.run(turned, v, metadata)))
        self.one.done += count
        names = ("intra", "key", "successive", "inter", "successive critical", "inter critical")
        views = {name: one.view(count, -1, plan.model.dim) for name, one in zip(names, turned)}
        self._rotation(positions, q, k, views)
        self._cache(first, views["key"], v)
        return views, found[0], calls

    def prefill(self, end: int) -> None:
        """Up to a token of the prompt."""
        begin = self.one.done
        turned, got, calls = self._step(end - begin)
        scale = self.shape.scale * oracle.length_factor(self.one.prompt, self.plan.model.original)
        sizes = [(oracle.RAISED.get(vertical, vertical), slash) for vertical, slash in self.plan.sizes]
        for first, after in oracle.spans(begin, end, self.plan.model.chunking.stride):
            here = {name: one[first - begin : after - begin] for name, one in turned.items()}
            at = self._cached(after)
            what = f"tokens {first} to {after - 1} of {self.one.prompt}"
            sizes = [(min(vertical, after), min(slash, after)) for vertical, slash in sizes]
            lines: list[list[Stage | None]] = []
            if self.sparse:
                stages = 1 + min(first // self.plan.model.chunking.stride, 2)
                asked, calls = calls[:stages], calls[stages:]
                lines = self._lines(asked, here, at.k, first, after, sizes, scale, what)
            self._rows(here, got[first - begin : after - begin], at, first, after, lines, scale, what)
        if calls:
            raise Wrong(
                f"{len(calls)} conversions of indices more than there are stages, for tokens {begin} to {end - 1}"
            )

    def decode(self) -> None:
        """One token behind the prompt."""
        turned, got, _ = self._step(1)
        end = self.one.done
        at = self._cached(end)
        # The layer sharpens a decoded query itself, and rounds it.
        factor = torch.tensor(
            oracle.length_factor(end, self.plan.model.original), dtype=torch.float32, device=at.k.device
        )
        given = [turned[name].float() for name in ("intra", "successive", "inter")]
        variants = [(q * factor).to(self.plan.model.dtype) for q in given]
        # That factor may differ in its last digits, and then a number here and there is rounded to the other side.
        low, high = (
            torch.stack([(q * (factor * (1 + by))).to(self.plan.model.dtype).double() for q in given])
            for by in (-(2.0**-22), 2.0**-22)
        )
        flips = self.shape.scale * float(torch.linalg.vector_norm(high - low, dim=-1).max() * at.largest.key.max())
        positions = torch.tensor([end - 1], device=at.k.device)
        reference = self._dense(variants, at, positions, self.shape.scale, flips)
        what = f"decode of token {end - 1}"
        self.worst.within("decoded", what, got, reference.out, reference.out_bound)

    def _cached(self, end: int) -> Cached:
        """What the cache holds of the first tokens."""
        pages = self.one.pages[: -(-end // self.shape.page)]
        k, v = (self.layer.cache[part][pages].flatten(0, 1)[:end] for part in (0, 1))
        return Cached(k, v, with_absolutes(v), Largest.of(k, v))

    def _cache(self, first: int, key: Tensor, value: Tensor) -> None:
        at = self._cached(self.one.done)
        what = f"cache of tokens {first} to {self.one.done - 1}"
        want = key.double() * oracle.length_factor(max(self.one.prompt, self.one.done), self.plan.model.original)
        # The factor is rounded to the dtype, and so is the product.
        self.worst.within("cached key", what, at.k[first:], want, SLACK * 2 * UNIT[self.plan.model.dtype] * want.abs())
        if not torch.equal(at.v[first:], value):
            raise Wrong(f"{what}: the values are not those that were given")

    def _rotation(self, positions: Tensor, q: Tensor, k: Tensor, turned: dict[str, Tensor]) -> None:
        """Rotated queries and keys, at rows here and there."""
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

    def _some(self, count: int, wanted: int) -> Tensor:
        """The first and the last of so many, and others: int64, ascending, on the device."""
        more = torch.randint(count, (wanted,), generator=self.random, device=self.shape.device)
        more[0], more[-1] = 0, count - 1
        return more.unique()

    def _rows(
        self,
        turned: dict[str, Tensor],
        got: Tensor,
        at: Cached,
        first: int,
        after: int,
        lines: list[list[Stage | None]],
        scale: float,
        what: str,
    ) -> None:
        """Some rows of some blocks of 64, as the layer's kernels see them."""
        queries = after - first
        for block in self._some(-(-queries // BLOCK), self.plan.blocks).tolist():
            inside = min(BLOCK, queries - block * BLOCK)
            some = self._some(inside, 4) + block * BLOCK
            variants = [turned[name][some] for name in ("intra", "successive", "inter")]
            positions = some + first
            if self.sparse:
                reference = self._sparse(variants, at, positions, (first, after), lines, scale)
            else:
                reference = self._dense(variants, at, positions, scale, 0.0)
            self.worst.within("output", f"{what}, block {block}", got[some], reference.out, reference.out_bound)
            self.rows += len(some)

    def _dense(
        self, variants: Sequence[Tensor], at: Cached, positions: Tensor, scale: float, logit: float
    ) -> Reference:
        group = self.plan.model.heads // self.plan.model.kv_heads
        parts = []
        for one in range(self.plan.model.kv_heads):
            # The heads that share keys stand below each other, so that keys are not repeated for each.
            intra, successive, inter = (
                q[:, one * group : (one + 1) * group].double().flatten(0, 1)[:, None] for q in variants
            )
            k, v = at.k[:, one : one + 1].double(), at.both[:, one : one + 1]
            rows, stride = positions.repeat_interleave(group), self.plan.model.chunking.stride
            part = oracle.attend_stages(intra, successive, inter, k, v, rows, stride, scale)
            size = (len(positions), group)
            parts.append(oracle.Partial(part.out.view(*size, -1), part.lse.view(size)))
        return self._bounded(parts, variants, at, scale, logit)

    def _sparse(
        self,
        variants: Sequence[Tensor],
        at: Cached,
        positions: Tensor,
        span: tuple[int, int],
        lines: list[list[Stage | None]],
        scale: float,
    ) -> Reference:
        group, parts = self.plan.model.heads // self.plan.model.kv_heads, []
        for head in range(self.plan.model.heads):
            intra, successive, inter = (q[:, head].double() for q in variants)
            k, v, stride = at.k[:, head // group], at.both[:, head // group], self.plan.model.chunking.stride
            part = oracle.attend_lines(intra, successive, inter, k, v, positions, span, stride, lines[head], scale)
            parts.append(oracle.Partial(part.out[:, None], part.lse[:, None]))
        return self._bounded(parts, variants, at, scale, 0.0)

    def _bounded(
        self, parts: list[oracle.Partial], variants: Sequence[Tensor], at: Cached, scale: float, logit: float
    ) -> Reference:
        """The heads beside each other, with their bounds."""
        whole = oracle.Partial(torch.cat([part.out for part in parts], 1), torch.cat([part.lse for part in parts], 1))
        longest = torch.stack([q.double().abs() for q in variants]).amax(0)
        dtype = self.plan.model.dtype
        return bounded(whole, longest, at.largest, len(at.k), scale, dtype, merged=True, logit=logit)

    def _lines(
        self,
        asked: list[Call],
        turned: dict[str, Tensor],
        k: Tensor,
        first: int,
        after: int,
        sizes: list[tuple[int, int]],
        scale: float,
        what: str,
    ) -> list[list[Stage | None]]:
        """The lines of every head, by stage, after they were proven to be the right ones."""
        stride, queries = self.plan.model.chunking.stride, after - first
        own = first // stride * stride
        lengths = [(queries, after - own), (queries, stride), (queries, own - stride)]
        for n, call in enumerate(asked):
            if (call.queries, call.keys, call.causal) != (*lengths[n], n == 0):
                raise Wrong(f"{what}: stage {n} was converted for {call.queries} queries and {call.keys} keys")
        if len(asked) != 1 + min(first // stride, 2):
            raise Wrong(f"{what}: {len(asked)} conversions of indices")
        voters = slice(-min(queries, oracle.VOTERS), None)
        group, found = self.plan.model.heads // self.plan.model.kv_heads, []
        same = 0.0
        for head in range(self.plan.model.heads):
            stages = [call.lines(head) for call in asked]
            vertical, slash = _chosen(stages, sizes[head], queries, after, stride, f"{what}, head {head}")
            voting = [
                turned[name][voters, head : head + 1].double()
                for name in ("intra", "successive critical", "inter critical")
            ]
            intra, successive, inter = voting
            keys = k[:, head // group, None].double()
            (want,) = oracle.select_vertical_slash(
                intra, successive, inter, keys, stride, [sizes[head]], scale, queries
            )
            # A logit is a query times `scale`, rounded, times a key, rounded; a score is a sum of their exponentials
            # over that of all, and the higher of two scores may have lost as much as the lower one has won.
            products = max(float((q[:, 0].abs() @ keys[:, 0].abs().t()).max()) for q in voting)
            factor = math.exp(4 * 2 * UNIT[self.plan.model.dtype] * products * scale)
            for name, lines, scores, best in (
                ("vertical", vertical, want.vertical_scores, want.vertical),
                ("slash", slash, want.slash_scores, want.slash),
            ):
                _best(f"{what}, head {head}", name, lines.to(scores.device), scores, factor)
                same += float(torch.isin(lines, best.cpu()).double().mean())
            found.append([*stages, *[None] * (3 - len(stages))])
        share = same / (2 * self.plan.model.heads)
        self.figures["lines chosen as the oracle does"] = min(
            share, self.figures.get("lines chosen as the oracle does", 1.0)
        )
        return found


@dataclass(frozen=True)
class Cached:
    """Keys and values as they lie in the cache.

    Attributes:
        k: `[end, kv_heads, dim]`, rotated.
        v: as `k`, not rotated.
        both: `[end, kv_heads, 2 * dim]`, values and their absolutes.
        largest: of both.
    """

    k: Tensor
    v: Tensor
    both: Tensor
    largest: Largest


@dataclass(frozen=True)
class Call:
    """One conversion that the layer asked for; lines as the op gets them, on the CPU."""

    queries: int
    keys: int
    vertical: Tensor
    slash: Tensor
    vertical_count: list[int]
    slash_count: list[int]
    causal: bool

    def lines(self, head: int) -> Stage:
        """Of one head."""
        vertical, slash = self.vertical[0, head], self.slash[0, head]
        return Stage(vertical[: self.vertical_count[head]].long(), slash[: self.slash_count[head]].long())


@contextlib.contextmanager
def _conversions(backend: Any) -> Iterator[list[Call]]:
    """Listen to the layer as it asks for conversions; they are done as ever."""
    asked: list[Call] = []
    real = backend.ops.convert_vertical_slash_indexes_mergehead

    def listen(
        q_lengths: Tensor,
        k_lengths: Tensor,
        vertical: Tensor,
        slash: Tensor,
        vertical_count: Tensor,
        slash_count: Tensor,
        context: int,
        block_m: int,
        block_n: int,
        causal: bool,
    ) -> Any:
        sizes, counts = (int(q_lengths[0]), int(k_lengths[0])), (vertical_count.tolist(), slash_count.tolist())
        asked.append(Call(*sizes, vertical.cpu(), slash.cpu(), *counts, bool(causal)))
        given = (q_lengths, k_lengths, vertical, slash, vertical_count, slash_count)
        return real(*given, context, block_m, block_n, causal)

    with mock.patch.object(backend.ops, "convert_vertical_slash_indexes_mergehead", listen):
        yield asked


def _chosen(
    stages: list[Stage], size: tuple[int, int], queries: int, end: int, stride: int, what: str
) -> tuple[Tensor, Tensor]:
    """The choice that these lines came from: keys, and keys on which the last query meets the diagonals.

    A stage that nothing was chosen for has a few lines all the same, which may or may not be part of the choice.

    Raises:
        Wrong: there is no such choice of that size.
    """
    own = (end - 1) // stride * stride
    firsts = (own, own - stride, 0)
    lasts = (end - 1, own + queries - 1, own - stride + queries - 1)
    lengths = (end - own, stride, own - stride)
    nothing = torch.zeros(0, dtype=torch.int64)
    verticals, slashes = [], []
    for stage, first, last, keys in zip(stages, firsts, lasts, lengths):
        few = oracle.few_lines(keys)
        verticals.append([stage.vertical + first, *([nothing] if torch.equal(stage.vertical, few) else [])])
        slashes.append([last - stage.slash, *([nothing] if torch.equal(stage.slash, few.flip(0)) else [])])
    for parts in itertools.product(itertools.product(*verticals), itertools.product(*slashes)):
        vertical, slash = (torch.cat(part).unique() for part in parts)
        if (len(vertical), len(slash)) != size:
            continue
        split = oracle.split_lines(vertical, slash, end, queries, stride)
        if all(
            want is not None and torch.equal(want.vertical, got.vertical) and torch.equal(want.slash, got.slash)
            for want, got in zip(split, stages)
        ):
            return vertical, slash
    counts = [(len(stage.vertical), len(stage.slash)) for stage in stages]
    raise Wrong(f"{what}: vertical and slash lines {counts} of the stages come from no choice of {size}")


def _best(what: str, kind: str, lines: Tensor, scores: Tensor, factor: float) -> None:
    """No line that was left out may score higher than a chosen one, by more than a factor."""
    left = torch.ones_like(scores, dtype=torch.bool)
    left[lines] = False
    if not bool(left.any()):
        return
    lowest, highest = float(scores[lines].min()), float(scores[left].max())
    if highest > lowest * factor:
        raise Wrong(
            f"{what}: {kind} line {int(scores.masked_fill(~left, -1).argmax())} scores {highest:.3g} and was left out, "
            f"one that was chosen scores {lowest:.3g}; they may differ by a factor of {factor:.3g}"
        )
