"""Measures the times of sparse and dense prefill attention; no case fails because of a time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .. import oracle
from ..oracle import Converted, Stage
from .case import Case, Inputs, Kernels, Ragged, label
from .conversion import BLOCK
from .layer import ONE_OF_FOUR, Model


@dataclass(frozen=True)
class Plan:
    """What is timed.

    Attributes:
        model: as one GPU sees it.
        lengths: of the prompts, in tokens.
        piece: tokens that the engine prefills at once.
        sizes: numbers of vertical and slash lines of a head.
        repeats: how often each piece is timed; the median is reported.
    """

    model: Model
    lengths: tuple[int, ...]
    piece: int
    sizes: tuple[int, int]
    repeats: int = 3


# The sizes are those of most heads in the model's table.
FULL = Plan(
    ONE_OF_FOUR,
    lengths=(32_768, 131_072, 262_144, 524_288, 1_048_576),
    piece=131_072,
    sizes=(1000, 6096),
)

# The share of a constant vector in every query and key. After rotation, its contribution depends on the distance only,
# so that neighbouring diagonals are chosen together, as in trained models; noise scatters them.
PATTERNS = {"banded": 1.0, "scattered": 0.0}


def cases(kernels: Kernels, plan: Plan, device: str) -> list[Case]:
    """One case per pattern; its figures have the curve."""
    return [
        Case(
            f"speed/{name}",
            f"times of sparse and dense prefill, {name} lines",
            partial(_curve, kernels, plan, device, same),
        )
        for name, same in PATTERNS.items()
    ]


def _curve(kernels: Kernels, plan: Plan, device: str, same: float, seed: int) -> dict[str, Any]:
    curve = []
    for tokens in plan.lengths:
        curve.append(_prompt(kernels, plan, device, same, tokens, seed))
        if device != "cpu":
            torch.cuda.empty_cache()
    return {
        "curve": curve,
        "heads": plan.model.heads,
        "key heads": plan.model.kv_heads,
        "vertical": plan.sizes[0],
        "slash": plan.sizes[1],
        "tokens at once": plan.piece,
        "dtype": str(plan.model.dtype).rpartition(".")[2],
    }


def _prompt(kernels: Kernels, plan: Plan, device: str, same: float, tokens: int, seed: int) -> dict[str, Any]:
    """One point of the curve: all pieces of a prompt, each split at the ends of chunks.

    Args:
        kernels: that are timed.
        plan: the inputs.
        device: to run on.
        same: the share of the constant vector, see `PATTERNS`.
        tokens: of the prompt.
        seed: of the random numbers.
    """
    random = torch.Generator(device).manual_seed(seed)
    fixed = torch.randn(1, 1, plan.model.dim, generator=random, device=device) * same

    def draw(count: int, heads: int) -> Tensor:
        noise = torch.randn(count, heads, plan.model.dim, generator=random, device=device)
        return (noise + fixed).to(plan.model.dtype)

    places = oracle.key_positions(torch.arange(tokens, device=device), plan.model.chunking)
    k, v = draw(tokens, plan.model.kv_heads), draw(tokens, plan.model.kv_heads)
    # In parts, to keep only a part of the prompt in float64.
    k = torch.cat(
        [oracle.rotate(part, at, plan.model.base) for part, at in zip(k.split(1 << 16), places.split(1 << 16))]
    )
    total = {"dense ms": 0.0, "sparse ms": 0.0, "selection ms": 0.0, "conversion ms": 0.0, "attention ms": 0.0}
    attended = 0.0
    for begin in range(0, tokens, plan.piece):
        end = min(begin + plan.piece, tokens)
        for first, after in oracle.spans(begin, end, plan.model.chunking.stride):
            span = Span(kernels, plan, k[:after], v[:after], draw(after - first, plan.model.heads), first)
            clock = Clock(device)
            total["dense ms"] += _median([clock.time(span.dense) for _ in range(1 + plan.repeats)])
            runs = [span.sparse(clock) for _ in range(1 + plan.repeats)]
            for part in ("selection ms", "conversion ms", "attention ms"):
                total[part] += _median([run[part] for run in runs])
            total["sparse ms"] += _median([sum(run.values()) for run in runs])
            attended += span.attended() * (after - first)
    ratio = total["dense ms"] / total["sparse ms"] if total["sparse ms"] else 0.0
    return {"tokens": tokens, **total, "ratio": ratio, "keys per query": attended / tokens}


def _median(runs: list[float]) -> float:
    """The median of all runs but the first, which warms up."""
    return statistics.median(runs[1:])


class Clock:
    """Measures milliseconds on a device, with CUDA events on a GPU."""

    def __init__(self, device: str) -> None:
        self._events = device != "cpu"

    def time(self, run: Callable[[], object]) -> float:
        """Run a function and return its time."""
        if not self._events:
            started = time.perf_counter()
            run()
            return (time.perf_counter() - started) * 1e3
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        run()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after))


class Span:
    """The tokens of one piece in one chunk, against all tokens before them."""

    def __init__(self, kernels: Kernels, plan: Plan, k: Tensor, v: Tensor, q: Tensor, first: int) -> None:
        """Rotate the queries.

        Args:
            kernels: that are timed.
            plan: the inputs.
            k: `[tokens, kv_heads, dim]`, of all tokens up to the last of the span, rotated.
            v: as `k`, not rotated.
            q: `[queries, heads, dim]`, of the span, not rotated.
            first: the first token of the span.
        """
        self.kernels, self.plan, self.k, self.v = kernels, plan, k, v
        self.end, self.stride = k.shape[0], plan.model.chunking.stride
        places = oracle.query_positions(torch.arange(first, self.end, device=q.device), plan.model.chunking)

        def turn(at: Tensor, rows: slice = slice(None)) -> Tensor:
            return torch.cat(
                [oracle.rotate(*part, plan.model.base) for part in zip(q[rows].split(1 << 15), at[rows].split(1 << 15))]
            )

        voters = slice(-min(len(q), 64), None)
        self.turned = oracle.RotatedQueries(*(turn(at) for at in (places.intra, places.successive, places.inter)))
        self.voting = oracle.RotatedQueries(
            *(turn(at, voters) for at in (places.intra, places.successive_critical, places.inter_critical))
        )
        own = first // self.stride * self.stride
        # The keys of the stages: own chunk, previous chunk, all older ones.
        borders = ((own, self.end), (own - self.stride, own), (0, own - self.stride))
        self.stages = [(begin, after) for begin, after in borders if begin >= 0 and after > begin]
        self.lines: list[list[Stage]] = []
        self.converted: list[Converted] = []

    @property
    def queries(self) -> int:
        """The number of queries."""
        return len(self.turned.intra)

    @property
    def scale(self) -> float:
        """The factor of logits."""
        return self.plan.model.scale

    def dense(self) -> Tensor:
        """Flash attention in each stage, merged."""
        parts = []
        for n, (begin, after) in enumerate(self.stages):
            inputs = Inputs(self.turned[n], self.k[begin:after], self.v[begin:after], self.scale, n == 0)
            parts.append(self.kernels.dense(inputs, Ragged.of([self.queries], [after - begin], self.k.device)))
        return _merged(parts)

    def sparse(self, clock: Clock) -> dict[str, float]:
        """Sparse attention: milliseconds of choosing lines, of the conversion, and of attention and merge."""
        return {
            "selection ms": clock.time(self._select),
            "conversion ms": clock.time(self._convert),
            "attention ms": clock.time(self._attend),
        }

    def _select(self) -> None:
        sizes = [self.plan.sizes] * self.plan.model.heads
        chosen = oracle.select_vertical_slash(self.voting, self.k, self.stride, sizes, self.scale, self.queries)
        stages = [(head.intra, head.successive, head.inter)[: len(self.stages)] for head in chosen]
        self.lines = [[stage for stage in column if stage] for column in zip(*stages)]

    def _convert(self) -> None:
        self.converted = [
            self._converted(lines, after - begin, n == 0)
            for n, (lines, (begin, after)) in enumerate(zip(self.lines, self.stages))
        ]

    def _converted(self, lines: list[Stage], keys: int, causal: bool) -> Converted:
        return _blocks(self.kernels, lines, (self.queries, keys), causal)

    def _attend(self) -> Tensor:
        parts = []
        for n, (converted, (begin, after)) in enumerate(zip(self.converted, self.stages)):
            q, k, v = self.turned[n][None], self.k[None, begin:after], self.v[None, begin:after]
            out, lse = self.kernels.sparse(Inputs(q, k, v, self.scale, n == 0), converted)
            parts.append((out[0], lse[0]))
        return _merged(parts)

    def attended(self) -> float:
        """The average number of keys that a query attends, counting complete blocks."""
        return sum(
            float((stage.block_count.double() * BLOCK + stage.column_count.double()).mean()) for stage in self.converted
        )


def _blocks(kernels: Kernels, lines: list[Stage], lengths: tuple[int, int], causal: bool) -> Converted:
    """The blocks and columns of the lines of every head.

    Args:
        kernels: with the index conversion.
        lines: of each head.
        lengths: the number of queries and of keys.
        causal: as the conversion takes it.
    """
    device = lines[0].vertical.device
    rows = -(-lengths[0] // BLOCK)
    padded, counts = [], []
    for name in ("vertical", "slash"):
        of_heads = [getattr(stage, name).to(torch.int32) for stage in lines]
        padded.append(torch.nn.utils.rnn.pad_sequence(of_heads, batch_first=True)[None])
        counts.append(
            torch.tensor([len(lines_of_head) for lines_of_head in of_heads], dtype=torch.int32, device=device)
        )
    shapes = ((), (padded[1].shape[-1],), (), (padded[0].shape[-1],))
    into = Converted(*(torch.empty((1, len(lines), rows, *more), dtype=torch.int32, device=device) for more in shapes))
    counted = [torch.tensor([count], dtype=torch.int32, device=device) for count in lengths]
    kernels.convert_mergehead(*into, *counted, *padded, *counts, lengths[0], BLOCK, BLOCK, causal)
    return into


def _merged(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """The merged outputs of the stages: out `[queries, heads, dim]`, log-sum-exp `[heads, queries]`."""
    if len(parts) == 1:
        return parts[0][0]
    weights = torch.softmax(torch.stack([lse for _, lse in parts]), dim=0).transpose(1, 2)[..., None]
    merged = parts[0][0] * weights[0]
    for (out, _), weight in zip(parts[1:], weights[1:]):
        merged += out * weight
    return merged.to(parts[0][0].dtype)


# Queries of the launches that a recording is timed with: the last ones of a prompt, as an engine prefills it in pieces.
LAST = 8192


def shapes(kernels: Kernels, device: str, plan: Plan = FULL) -> list[Case]:
    """One case for each length, which launches dense and sparse attention once.

    Queries, keys and values are not written, so that an emulated GPU which runs no kernel needs no memory for them.

    Args:
        kernels: that are launched.
        device: of the tensors.
        plan: lengths, model and numbers of lines.
    """
    return [
        Case(f"shapes/{tokens}", f"launches for {tokens} tokens", partial(_launches, kernels, plan, device, tokens))
        for tokens in plan.lengths
    ]


def _launches(kernels: Kernels, plan: Plan, device: str, tokens: int, seed: int) -> dict[str, Any]:
    model, queries = plan.model, min(LAST, tokens)
    shape = {"dtype": model.dtype, "device": device}
    q = torch.empty(queries, model.heads, model.dim, **shape)
    k, v = (torch.empty(tokens, model.kv_heads, model.dim, **shape) for _ in range(2))
    label(f"{tokens} tokens dense")
    kernels.dense(Inputs(q, k, v, model.scale, True), Ragged.of([queries], [tokens], device))
    chance = torch.Generator().manual_seed(seed)
    # Diagonals beside each other, as in trained models, and such as noise scatters.
    for name, width in (("banded", BLOCK), ("scattered", 1)):
        label(f"{tokens} tokens sparse, {name}")
        lines = [_drawn(plan, tokens, width, chance, device) for _ in range(model.heads)]
        converted = _blocks(kernels, lines, (queries, tokens), True)
        kernels.sparse(Inputs(q[None], k[None], v[None], model.scale, True), converted)
    return {}


def _drawn(plan: Plan, tokens: int, width: int, chance: torch.Generator, device: str) -> Stage:
    """Lines of a head: single keys, and diagonals in groups of a width."""
    verticals, slashes = (min(size, tokens) for size in plan.sizes)
    vertical = torch.randperm(tokens, generator=chance)[:verticals].sort().values
    starts = torch.randperm(tokens // width, generator=chance)[: slashes // width] * width
    distances = (starts[:, None] + torch.arange(width)).flatten().sort(descending=True).values
    return Stage(vertical.to(device), distances.to(device))
