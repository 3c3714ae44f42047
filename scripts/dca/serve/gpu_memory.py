"""The memory of one GPU while a model is served, as formulas: pure functions of numbers, without any I/O.

A rank is one GPU of `tp` that share the heads (tensor parallel) and of `pp` that share the layers (pipeline parallel).
All amounts are bytes of one rank. Symbols are those of docs/serve.md: N tokens in a step, K in the prompt so far, H
query heads and kv key heads of one rank, d elements of a head, h of a token's hidden state, i between the halves of an
MLP.

The formulas were derived from code and are not measured. The code is sighingnow/vllm at commit 91d5476,
which a recipe pins; under vllm/ there attention/backends/dual_chunk_flash_attn.py for `transients`,
model_executor/layers/rotary_embedding.py for `table_bytes`, model_executor/layers/fused_moe/fused_moe.py for
`mlp_bytes`, worker/worker.py for what `step_bytes` counts, and core/block_manager.py for `free_blocks`. They reproduce
the official minima, and the failure of 14B on four GPUs of 80 GB (docs/serve.md).
"""

from __future__ import annotations

import math

from dca.foundation.documents import Value
from dca.serve.shape import Quantized, Shape, scale_bits

HALF = 2
"""Bytes of a 16-bit number, as which activations, keys and values are kept."""
SINGLE = 4
"""Bytes of a 32-bit number."""
INDEX = 4
"""Bytes of an index in the lists of the sparse kernel."""
ROWS = 64
"""Queries that share a list of keys, and queries that the choice of keys is made from."""
THRESHOLD = 32_768
"""Tokens up to which a prompt is computed densely (sparse_attention_threshold, as no published model sets it)."""
EXPERT_TOKENS = 32_768
"""Tokens of which the experts are computed at once (VLLM_FUSED_MOE_CHUNK_SIZE)."""
BLOCK = 16
"""Tokens of one block of the KV cache, as vLLM has it by itself."""
WATERMARK = 0.01
"""The share of all blocks that a prompt must leave free in the V0 engine (BlockSpaceManager; V1 has no such)."""


class Layout(Value):
    """How a model is spread.

    Args:
        tp: ranks that share every layer's heads.
        pp: stages that share the layers.
    """

    tp: int = 1
    pp: int = 1


def kv_heads(shape: Shape, layout: Layout) -> int:
    """Key heads of one rank: where there are more ranks than key heads, each head is on several."""
    return max(1, shape.kv_heads // layout.tp)


def layers(shape: Shape, layout: Layout) -> int:
    """Layers of the stage that has most."""
    return math.ceil(shape.layers / layout.pp)


def weight_bytes(shape: Shape, layout: Layout, stored: Quantized | None = None) -> float:
    """Weights: linear layers as they are stored, everything else in 16 bits.

    A layer has h*(H + 2*kv)*d and H*d*h linear weights in attention, and 3*h*i in the MLP of a dense model or in each
    expert of a mixture, whose router is not quantized. Biases and norms are counted with what is not quantized.

    Args:
        shape: the model.
        layout: how it is spread.
        stored: in place of the shape's own, such as `Quantized()` for before the engine has quantized them.
    """
    stored = shape.quantized if stored is None else stored
    tp, heads, kv = layout.tp, shape.heads / layout.tp, kv_heads(shape, layout)
    qkv, dim = heads + 2 * kv, shape.head_dim
    attention = shape.hidden * qkv * dim + heads * dim * shape.hidden
    if shape.experts:
        linear = attention + shape.experts * 3 * shape.hidden * shape.expert_inner / tp
        router = shape.hidden * shape.experts
    else:
        linear = attention + 3 * shape.hidden * shape.inner / tp
        router = 0
    unquantized = router + (qkv * dim * shape.bias + 2 * shape.hidden)
    layer = linear * (stored.bits + scale_bits(stored)) / 8 + HALF * unquantized
    # The first stage has the embedding and the last the output; a single one has both, which a tied model shares.
    embeddings = 2 if layout.pp == 1 and not shape.tied else 1
    return layers(shape, layout) * layer + HALF * (embeddings * shape.vocabulary * shape.hidden / tp + shape.hidden)


def table_bytes(shape: Shape) -> float:
    """Rotary tables, which every rank has whole: (rows + 4 chunks)*d*2 with dual chunk attention, rows*d*2 without."""
    return (shape.rows + 4 * shape.chunk) * shape.head_dim * HALF


def token_bytes(shape: Shape, layout: Layout, width: float = HALF) -> float:
    """Keys and values of one token: 2*layers*kv*d*width.

    Args:
        shape: the model.
        layout: how it is spread.
        width: bytes of one number: 2, or 1 of an FP8 KV cache.
    """
    return 2 * layers(shape, layout) * kv_heads(shape, layout) * shape.head_dim * width


def free_blocks(blocks: int, watermark: float = WATERMARK) -> int:
    """Blocks of the KV cache that a prompt must leave free.

    Args:
        blocks: of the whole cache.
        watermark: the share of them.
    """
    # As the engine computes it, in floating point.
    return int(watermark * blocks)


def hidden_bytes(shape: Shape, tokens: int) -> float:
    """The hidden state of a step of N tokens and the residual beside it: 2*N*h*2."""
    return 2 * tokens * shape.hidden * HALF


def mlp_bytes(shape: Shape, layout: Layout, tokens: int) -> float:
    """Both inner activations of an MLP, 3*N*i/tp*2: the fused gate and up projection, and their product."""
    if not shape.experts:
        return tokens * 3 * shape.inner / layout.tp * HALF
    # Each of the three buffers of a fused mixture has a row for every expert that a token chose.
    computed = min(tokens, EXPERT_TOKENS) * shape.chosen
    return computed * (3 * shape.expert_inner / layout.tp + shape.hidden) * HALF + tokens * shape.hidden * HALF


def projection_bytes(shape: Shape, layout: Layout, tokens: int) -> float:
    """Queries, keys and values of a step, as the fused projection gives them: N*(H + 2*kv)*d*2."""
    return tokens * (shape.heads / layout.tp + 2 * kv_heads(shape, layout)) * shape.head_dim * HALF


def query_bytes(shape: Shape, layout: Layout, tokens: int) -> float:
    """One tensor of queries, or of attention's output: N*H*d*2."""
    return tokens * shape.heads / layout.tp * shape.head_dim * HALF


def logits_bytes(shape: Shape, layout: Layout, sequences: int) -> float:
    """Logits of the profile run, for each sequence: 16-bit, 32-bit, and their 32-bit softmax."""
    return sequences * shape.vocabulary * (HALF + 2 * SINGLE) / (layout.tp if layout.tp > 1 else 1)


def step_bytes(shape: Shape, layout: Layout, tokens: int, sequences: int = 1) -> float:
    """The peak of one step without any keys of before: what vLLM's profile run measures.

    Args:
        shape: the model.
        layout: how it is spread.
        tokens: of the step, at most max_num_batched_tokens.
        sequences: at once, at most max_num_seqs.
    """
    # Dual chunk attention has five tensors of queries in place of one, and all of them while it computes.
    queries = (5 if shape.dual_chunk else 1) + 2
    attention = projection_bytes(shape, layout, tokens) + queries * query_bytes(shape, layout, tokens)
    inside = max(mlp_bytes(shape, layout, tokens), attention)
    return hidden_bytes(shape, tokens) + inside + logits_bytes(shape, layout, sequences)


class Transients(Value):
    """What attention needs beside, in the layer that is being computed; nothing of it is in the profile run.

    All are bytes.

    Args:
        gathered: keys and values of the prompt so far, gathered from the blocks of the KV cache, 2*K*kv*d*2.
        repeated: the same for every query head, 2*K*H*d*2.
        scores: of the last 64 queries against all keys, 64*K*H*8: 16-bit parts, joined, and their 32-bit softmax. The
            diagonals of one head, summed later, take less than the parts that are gone by then.
        lists: of blocks and columns for each head and each 64 queries, as wide as the widest entry of the table,
            H*N/64*(vertical + slash)*4.
        outputs: of the three kinds of chunks, and joined, 6*N*H*d*2.
    """

    gathered: float = 0.0
    repeated: float = 0.0
    scores: float = 0.0
    lists: float = 0.0
    outputs: float = 0.0

    @property
    def total(self) -> float:
        """All at once."""
        return self.gathered + self.repeated + self.scores + self.lists + self.outputs


def transients(shape: Shape, layout: Layout, tokens: int, prompt: int) -> Transients:
    """What attention needs beside, at the end of a prompt.

    Args:
        shape: the model.
        layout: how it is spread.
        tokens: of a step, at most; shorter prompts are one step.
        prompt: tokens that have been computed, those of the step among them.
    """
    if not shape.dual_chunk:
        # Kernels read the blocks of the KV cache in place.
        return Transients()
    step, heads, kv, dim = min(tokens, prompt), shape.heads / layout.tp, kv_heads(shape, layout), shape.head_dim
    gathered = 2 * prompt * kv * dim * HALF
    if not shape.sparse or prompt <= THRESHOLD:
        # Dense attention computes one head at a time.
        return Transients(gathered=gathered, outputs=6 * step * dim * HALF + step * heads * dim * HALF)
    return Transients(
        gathered=gathered,
        repeated=2 * prompt * heads * dim * HALF,
        scores=ROWS * prompt * heads * (2 * HALF + SINGLE),
        lists=heads * math.ceil(step / ROWS) * (shape.vertical + shape.slash) * INDEX,
        outputs=6 * step * heads * dim * HALF,
    )


def layer_bytes(shape: Shape, layout: Layout, tokens: int, prompt: int) -> float:
    """The peak of the attention of one layer at the end of a prompt, its hidden states and queries included.

    Args:
        shape: the model.
        layout: how it is spread.
        tokens: of a step, at most.
        prompt: tokens that have been computed, those of the step among them.
    """
    step = min(tokens, prompt)
    queries = 5 if shape.dual_chunk else 1
    return (
        hidden_bytes(shape, step)
        + projection_bytes(shape, layout, step)
        + queries * query_bytes(shape, layout, step)
        + transients(shape, layout, tokens, prompt).total
    )


def peak_bytes(shape: Shape, layout: Layout, tokens: int, prompt: int, sequences: int = 1) -> float:
    """The most that is held beside weights, tables and KV cache at the end of a prompt.

    Args:
        shape: the model.
        layout: how it is spread.
        tokens: of a step, at most.
        prompt: tokens that have been computed, those of the step among them.
        sequences: at once, at most.
    """
    step = step_bytes(shape, layout, min(tokens, max(prompt, 1)), sequences)
    return max(step, layer_bytes(shape, layout, tokens, prompt))


def list_limit(shape: Shape, layout: Layout) -> int | None:
    """The most tokens of a step whose lists the sparse kernel can find: it counts their offsets in 32 bits.

    Returns:
        Tokens; None where no step is too long, as one call never goes past a chunk.
    """
    if not shape.sparse:
        return None
    widest = max(shape.vertical, shape.slash)
    heads = shape.heads // layout.tp
    if heads * math.ceil(shape.chunk / ROWS) * widest < 2**31:
        return None
    return (2**31 - 1) // (heads * widest) * ROWS
