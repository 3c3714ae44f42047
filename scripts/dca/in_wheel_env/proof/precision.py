"""Whether the layer chooses its lines in float32, whatever dtype its queries and keys have.

In the dtype of the model, softmax and its sums round away the differences that the choice depends on: such a layer
attends other keys than the model was trained with, and raises no error. Where logits are rounded to the dtype as well,
as a model's are, nearly equal lines cannot be told apart. So the queries and keys of this case are 1 and -1: their
products are whole numbers that every dtype holds, and `scale` is a power of two. Only softmax and sums are left to
round.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ContextManager

import torch
from torch import Tensor

from .. import oracle
from .case import Case
from .choice import Voting, checked
from .layer import Conversation, Layer, Modules, Shape
from .lengths import cuts, source
from .stand_ins import conversions, without_sparse_attention

CHUNKING, PAGE = oracle.Chunking(640, 192), 16
HEADS, KV_HEADS, DIM = 8, 2, 128
SIZES = ((48, 131), (200, 180), (130, 240), (300, 160), (90, 220), (250, 140), (160, 200), (110, 260))
# Those that models are served in.
DTYPES = (torch.bfloat16, torch.float16)
# Spans of a prompt that are cut at random places, besides at the ends of chunks.
PIECES = 6


@dataclass(frozen=True)
class Exact(Shape):
    """A shape whose factor of logits every dtype holds."""

    @property
    def scale(self) -> float:
        """A power of two near to `dim ** -0.5`."""
        return 2.0**-4


def cases(
    modules: Modules, dtypes: Sequence[torch.dtype], host: Callable[[], ContextManager[Any]], device: str
) -> list[Case]:
    """One case for each dtype.

    Args:
        modules: of the wheel.
        dtypes: of queries, keys and values.
        host: the context, instead of an engine, that the layer is built and called in.
        device: to run on.
    """
    return [
        Case(
            f"selection/{name}",
            f"lines are chosen in float32, also for queries and keys in {name}",
            partial(_choice, modules, dtype, host, device),
        )
        for dtype, name in ((dtype, str(dtype).rpartition(".")[2]) for dtype in dtypes)
    ]


def _choice(
    modules: Modules, dtype: torch.dtype, host: Callable[[], ContextManager[Any]], device: str, seed: int
) -> dict[str, Any]:
    rng, random_signs = source(seed, str(dtype)), torch.Generator().manual_seed(seed)
    tokens = rng.randint(4 * CHUNKING.stride + 130, 5 * CHUNKING.stride)
    pages = -(-tokens // PAGE)
    shape = Exact(HEADS, KV_HEADS, DIM, 1e4, CHUNKING, 0, dtype, tokens, PAGE, device)
    with host(), torch.device(device):
        layer = Layer(modules, shape, pages, SIZES, threshold=1)
    conversation = Conversation(torch.randperm(pages, generator=random_signs).to(device), tokens)

    def signs(count: int, heads: int) -> Tensor:
        drawn = torch.randint(0, 2, (count, heads * DIM), generator=random_signs) * 2 - 1
        return drawn.to(dtype).to(device)

    shares = []
    for count in cuts(rng, tokens, PIECES):
        # As the rotary embedding orders them: query, key, succ, inter, succ critical, inter critical.
        turned = tuple(signs(count, KV_HEADS if n == 1 else HEADS) for n in range(6))
        with host(), conversions(modules.backend) as asked, without_sparse_attention(modules.backend):
            layer.run(turned, signs(count, KV_HEADS), layer.metadata([(conversation, count)]))
        begin, conversation.done = conversation.done, conversation.done + count
        keys = layer.cache[0][conversation.pages].flatten(0, 1)
        sizes = list(SIZES)
        for first, after in oracle.spans(begin, begin + count, CHUNKING.stride):
            # A size that a span clips stays clipped for the other spans of a call.
            sizes = [(min(vertical, after), min(slash, after)) for vertical, slash in sizes]
            rows = slice(max(first, after - oracle.VOTERS) - begin, after - begin)
            voters = (turned[n][rows].view(-1, HEADS, DIM) for n in (0, 4, 5))
            voting = Voting(
                first,
                after,
                CHUNKING.stride,
                oracle.RotatedQueries(*voters),
                keys[:after],
                shape.scale,
                f"tokens {first} to {after - 1} of {tokens}",
            )
            stages = 1 + min(first // CHUNKING.stride, 2)
            shares.append(checked(voting, asked[:stages], sizes, 0.0)[1])
            asked = asked[stages:]
    return {"tokens": tokens, "spans": len(shares), "lines chosen as the oracle does": min(shares)}
