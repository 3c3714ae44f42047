"""How an engine divides its KV cache: blocks that hold some tokens of every layer, or of some layers each.

With layers that are alike, a block holds as many tokens of all layers. V1 divides other models' layers into groups of
equal size; every group takes blocks of its own from one pool, and those of a window, a chunk or a state stop growing
(`vllm/v1/core/kv_cache_utils.py` and `single_type_kv_cache_manager.py`, 0.10 to 0.33).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from dca.serve import gpu_memory
from dca.serve.gpu_memory import HALF, Layout
from dca.serve.layers import Kind
from dca.serve.shape import Shape

NEARLY = 1.25
"""Up to this ratio of the numbers of layers, groups have the size of the larger number."""
UNIT = 16
"""The tokens of a block are a multiple of this."""


@dataclass(frozen=True)
class Rules:
    """What decides how the cache is divided.

    Args:
        block_size: tokens per block that were asked for.
        width: bytes of one number.
        grouped: whether layers are divided into groups, as in V1.
        batched: max_num_batched_tokens.
        reused: whether requests reuse the cache of earlier ones, for which a state is kept twice.
        ahead: tokens that a draft proposes at once.
    """

    block_size: int = gpu_memory.BLOCK
    width: float = HALF
    grouped: bool = False
    batched: int = 2048
    reused: bool = False
    ahead: int = 0


@dataclass(frozen=True)
class Group:
    """Layers that take blocks together.

    Args:
        kind: what they cache.
        count: groups of these layers, each with blocks of its own.
        tokens: tokens of a block.
        span: tokens of a window or chunk.
    """

    kind: Kind
    count: int
    tokens: int
    span: int = 0

    def blocks(self, length: int, rules: Rules) -> int:
        """Blocks that a request of some tokens takes in one of the groups."""
        if self.kind == "state":
            return 1 + rules.reused + rules.ahead
        if self.kind == "window":
            return math.ceil(min(self.span - 1 + rules.batched, length) / self.tokens) + 1
        if self.kind == "chunk":
            return math.ceil(min(self.span + rules.batched, length) / self.tokens)
        return math.ceil(length / self.tokens)


@dataclass(frozen=True)
class Pages:
    """How the cache is divided.

    Args:
        tokens: tokens of a block of the layers that keep all of them.
        bytes: bytes of a block, which any group may take.
        groups: the groups; one when all layers are alike.
    """

    tokens: int
    bytes: float
    groups: tuple[Group, ...]

    @property
    def alike(self) -> bool:
        """Whether all layers keep every token, so that the blocks of one request hold as many tokens as it has."""
        return len(self.groups) == 1 and self.groups[0].count == 1 and self.groups[0].kind in ("full", "latent")

    def request(self, length: int, rules: Rules) -> int:
        """Blocks that one request of some tokens takes."""
        return sum(group.count * group.blocks(length, rules) for group in self.groups)


def pages(shape: Shape, layout: Layout, rules: Rules) -> Pages:
    """How the cache of a model is divided.

    Args:
        shape: the model.
        layout: how it is distributed.
        rules: what decides.
    """
    states = [group for group in shape.groups if group.kind == "state"]
    limited = any(group.kind in ("window", "chunk") for group in shape.groups)
    if not rules.grouped or not (states or limited) or not shape.cached:
        # A V0 engine keeps every token of every layer.
        token = gpu_memory.token_bytes(shape, layout, rules.width)
        return Pages(rules.block_size, token * rules.block_size or 1.0, (Group("full", 1, rules.block_size),))
    # Layers by what they keep of a token: kind, span and bytes.
    counts: dict[tuple[Kind, int, float], int] = {}
    for group in shape.groups:
        each = gpu_memory.layer_token_bytes(group, layout, rules.width) / layout.dcp
        if each:
            key = (group.kind, group.span, each)
            counts[key] = counts.get(key, 0) + group.count
    share = gpu_memory.layers(shape, layout) / shape.layers
    widest = max((each for _, _, each in counts), default=1.0)
    tokens = rules.block_size
    if states:
        # Blocks are made so large that a state fits into one layer's share of a block.
        state = max(gpu_memory.state_bytes(group, layout, rules.ahead) for group in states)
        tokens = max(tokens, math.ceil(math.ceil(state / widest) / UNIT) * UNIT)
    numbers = [max(1, round(number * share)) for number in counts.values()]
    if states:
        numbers.append(max(1, round(sum(group.count for group in states) * share)))
    size = max(numbers) if max(numbers) < NEARLY * min(numbers) else min(numbers)
    groups = [
        # A layer that keeps less of a token has more tokens in a block of the same bytes.
        Group(kind=kind, count=math.ceil(number / size), tokens=tokens * max(1, int(widest / each)), span=span)
        for (kind, span, each), number in zip(counts, numbers, strict=False)
    ]
    if states:
        groups.append(Group(kind="state", count=math.ceil(numbers[-1] / size), tokens=tokens))
    full = min((group.tokens for group in groups if group.kind in ("full", "latent")), default=tokens)
    return Pages(tokens=full, bytes=size * tokens * widest, groups=tuple(groups))
