"""The memory of one GPU while a model is served, as formulas: pure functions of numbers, without I/O.

A rank is one of the `tp` GPUs that share the heads (tensor parallel) in one of the `pp` stages that share the layers
(pipeline parallel). All amounts are bytes of one rank. Symbols as in docs/serve.md: N tokens in a step, K tokens of the
prompt so far, H query heads and kv key heads of one rank, d elements of a head, h elements of a hidden state, i
elements between the two halves of an MLP.

The formulas are derived from code, not measured: sighingnow/vllm at commit 91d5476.
`transients` is derived from vllm/attention/backends/dual_chunk_flash_attn.py, `table_bytes` from
vllm/model_executor/layers/rotary_embedding.py, `mlp_bytes` from vllm/model_executor/layers/fused_moe/fused_moe.py,
`step_bytes` from vllm/worker/worker.py, and `free_blocks` from vllm/core/block_manager.py. They reproduce the official
minima, and the failure of 14B on four GPUs of 80 GB (docs/serve.md).
"""

from __future__ import annotations

import math
from functools import lru_cache

from dca.foundation.documents import Value
from dca.serve.layers import Layers
from dca.serve.shape import Quantized, Shape

HALF = 2
"""Bytes of a 16-bit number: activations, keys and values."""
SINGLE = 4
"""Bytes of a 32-bit number."""
INDEX = 4
"""Bytes of an index in the lists of the sparse kernel."""
ROWS = 64
"""Queries that share one list of keys; also the last queries of a prompt, whose scores select those keys."""
THRESHOLD = 32_768
"""Longest prompt with dense attention (the default of sparse_attention_threshold, which no published model sets)."""
EXPERT_TOKENS = 32_768
"""Tokens for which the experts are computed at once (VLLM_FUSED_MOE_CHUNK_SIZE)."""
PADDED = {"mxfp4": (256, 128)}
"""Methods whose kernels take experts whose inner and outer width are multiples of these."""
IMAGE_TOKENS = 16_384
"""Tokens of the largest image of models that take images of any size; the profile run has one, however short a step."""
LOGIT = HALF + 2 * SINGLE
"""Bytes of each logit of a profile run that samples greedily: in 16 bits, in 32 bits, and their softmax in 32 bits."""
BLOCK = 16
"""Tokens per block of the KV cache, vLLM's default."""
WATERMARK = 0.01
"""Share of all blocks that a prompt must leave free in the V0 engine (BlockSpaceManager); V1 has no watermark."""


class Layout(Value):
    """How a model is distributed over GPUs.

    Args:
        tp: ranks that share every layer's heads.
        pp: stages that share the layers.
        dcp: ranks of those of `tp` that share the tokens of the KV cache (decode context parallel).
        absorbed: whether the engine also keeps the products of the matrices around compressed keys and values.
    """

    tp: int = 1
    pp: int = 1
    dcp: int = 1
    absorbed: bool = False


def kv_heads(shape: Shape, layout: Layout) -> int:
    """Key heads of one rank; with more ranks than key heads, several ranks hold the same head."""
    return max(1, shape.kv_heads // layout.tp)


def layers(shape: Shape, layout: Layout) -> int:
    """Layers of the largest stage."""
    return -(-shape.layers // layout.pp)


def stored_bytes(stored: Quantized, part: str, weights: float) -> float:
    """Bytes of the linear weights of a part of the layers."""
    return weights * stored.width(part) / 8


def attention_weights(shape: Shape, layout: Layout, group: Layers) -> tuple[float, float]:
    """Weights of one layer's attention on one rank: of linear layers, and those that are never quantized.

    Compressed queries, keys and values are computed whole on every rank. Engines keep the matrix that expands keys and
    values a second time, in 16 bits, for the kernels that work on the compressed form.
    """
    tp, hidden, heads = layout.tp, shape.hidden, group.heads / layout.tp
    if group.kind == "none":
        return 0.0, 0.0
    if group.kind == "state" and group.state is not None:
        own = group.state
        keys, values = own.key_heads * own.key_dim / tp, own.value_heads * own.value_dim / tp
        mixed = (2 * keys + (1 + own.gates) * values + 2 * own.value_heads / tp) * hidden
        # The first Mamba makes steps and state from each channel.
        steps = values * (2 * own.rank + 3 * own.key_dim) if own.rank else 0.0
        return mixed + values * hidden, (2 * keys + values) * own.kernel + 2 * own.value_heads / tp + steps
    out = heads * group.value_dim * hidden
    if group.kind == "latent":
        expanded = group.latent * heads * (group.key_dim - group.rotary + group.value_dim)
        absorbed = group.latent * heads * ((group.query_rank or hidden) + hidden)
        absorbed *= layout.absorbed and shape.quantized.method != "fp8"
        query = heads * group.key_dim * (group.query_rank or hidden) + hidden * group.query_rank
        return query + hidden * (group.latent + group.rotary) + expanded + out, expanded + absorbed
    kv = max(1, group.kv_heads / tp)
    qkv = heads * group.key_dim * (1 + group.gated) + kv * (group.key_dim + group.value_dim)
    return (group.taken or hidden) * qkv + out, qkv * shape.bias


def layer_weights(shape: Shape, layout: Layout, group: Layers, stored: Quantized) -> float:
    """Bytes of one layer's weights on one rank.

    A layer has h*(H + 2*kv)*d and H*d*h linear weights in attention, and 3*h*i in a dense MLP or in each expert of a
    mixture. A mixture's router, biases and norms are not quantized.
    """
    tp, each = layout.tp, group.matrices * shape.hidden
    attention, plain = attention_weights(shape, layout, group)
    expert, wide = group.expert_inner / tp, group.expert_hidden
    outer = wide or shape.hidden
    if stored.method in PADDED:
        inner_unit, outer_unit = PADDED[stored.method]
        expert = math.ceil(group.expert_inner / inner_unit) * inner_unit / tp
        outer = math.ceil(outer / outer_unit) * outer_unit
    return (
        stored_bytes(stored, "state" if group.kind == "state" else "attention", attention)
        + stored_bytes(stored, "dense", each * group.inner / tp)
        + stored_bytes(stored, "experts", group.experts * group.matrices * outer * expert)
        + HALF * 2 * shape.hidden * wide
        + stored_bytes(stored, "shared", each * group.shared_inner / tp)
        + HALF * (plain + shape.hidden * group.experts + 2 * shape.hidden)
    )


@lru_cache(1024)
def weight_bytes(shape: Shape, layout: Layout, stored: Quantized | None = None) -> float:
    """Weights: linear layers as stored, everything else in 16 bits.

    Args:
        shape: the model.
        layout: how it is distributed.
        stored: replaces the shape's own, such as `Quantized()` before the engine has quantized the weights.
    """
    stored = shape.quantized if stored is None else stored
    tp, share = layout.tp, layers(shape, layout) / shape.layers
    # Layers that share blocks of weights have no more of them than there are blocks.
    sets = ((min(group.count, group.copies or group.count), group) for group in shape.parts)
    inside = sum(number * layer_weights(shape, layout, group, stored) for number, group in sets) * share
    # The first stage has the embedding, the last the output; a single stage has both, which a tied model shares.
    embeddings = shape.vocabulary * shape.hidden / tp * HALF
    if layout.pp == 1 and not shape.tied:
        embeddings += stored_bytes(stored, "head", embeddings / HALF)
    embeddings += shape.vocabulary * shape.per_layer * layers(shape, layout) / tp * HALF
    return inside + embeddings + HALF * (shape.hidden + shape.tower / tp)


def table_bytes(shape: Shape) -> float:
    """Rotary tables, complete on every rank: (rows + 4 chunks)*d*2 with dual chunk attention, rows*d*2 without.

    Without it, the rows are as many as the scaling reaches, and d is the share of a head that is rotated.

    A plugin has one of float32 with a row for each position of a chunk: (chunk_size + 1)*d*4.
    """
    if shape.merged:
        return (shape.chunk_size + 1) * shape.head_dim * SINGLE
    if shape.tables and not shape.dual_chunk:
        return shape.tables
    return (shape.rows + 4 * shape.chunk) * shape.head_dim * HALF


def layer_token_bytes(group: Layers, layout: Layout, width: float = HALF) -> float:
    """What one layer caches of a token: 2*kv*d*width, or (latent + rotary)*width, which ranks do not share.

    Args:
        group: the layer.
        layout: how the model is distributed.
        width: bytes of one number.
    """
    if group.kind == "latent" and group.expanded:
        # The kernel takes values as wide as keys.
        return max(1, group.heads // layout.tp) * 2 * group.key_dim * width
    if group.kind == "latent":
        return (group.latent + group.rotary) * width + group.index
    if group.kind in ("state", "none") or not group.cached:
        return 0.0
    return max(1, group.kv_heads // layout.tp) * (group.key_dim + group.value_dim) * width


def state_bytes(group: Layers, layout: Layout, ahead: int = 0) -> float:
    """The recurrent state of one layer for one request: the convolution's last tokens and a matrix for each head.

    Args:
        group: the layer, of the kind `state`.
        layout: how the model is distributed.
        ahead: tokens that a draft proposes at once.
    """
    own = group.state
    if own is None:
        return 0.0
    channels = 2 * own.key_heads * own.key_dim + own.value_heads * own.value_dim
    matrix = own.value_heads * own.value_dim * own.key_dim * own.width
    return (channels * (own.kernel - 1 + ahead) * HALF + matrix) / layout.tp


@lru_cache(1024)
def token_bytes(shape: Shape, layout: Layout, width: float = HALF) -> float:
    """What all layers of a stage cache of a token that every layer keeps: 2*layers*kv*d*width.

    Args:
        shape: the model.
        layout: how it is distributed.
        width: bytes of one number: 2, or 1 in an FP8 KV cache.
    """
    whole = sum(group.count * layer_token_bytes(group, layout, width) for group in shape.parts)
    return whole * layers(shape, layout) / shape.layers / layout.dcp


def kept_bytes(shape: Shape, layout: Layout, width: float = HALF) -> float:
    """What the layers of a stage that keep every token cache of one token; windows, chunks and states stop growing.

    Args:
        shape: the model.
        layout: how it is distributed.
        width: bytes of one number.
    """
    kept = [group for group in shape.parts if group.kind in ("full", "latent")]
    whole = sum(group.count * layer_token_bytes(group, layout, width) for group in kept)
    return whole * layers(shape, layout) / shape.layers / layout.dcp


def free_blocks(blocks: int, watermark: float = WATERMARK) -> int:
    """Blocks of the KV cache that a prompt must leave free.

    Args:
        blocks: blocks of the whole cache.
        watermark: share of them that stays free.
    """
    # In floating point, as the engine computes it.
    return int(watermark * blocks)


def hidden_bytes(shape: Shape, tokens: int) -> float:
    """The hidden states of a step of N tokens and their residuals: 2*N*h*2."""
    return 2 * tokens * shape.hidden * HALF


@lru_cache(1024)
def mlp_bytes(shape: Shape, layout: Layout, tokens: int) -> float:
    """The inner activations of the widest MLP, 3*N*i/tp*2: the fused gate and up projections, and their product."""
    return max(_inner_bytes(shape, layout, group, tokens) for group in shape.parts)


def _inner_bytes(shape: Shape, layout: Layout, group: Layers, tokens: int) -> float:
    dense = tokens * 3 * (group.inner + group.shared_inner) / layout.tp * HALF
    if not group.experts:
        return dense
    # Each of the three buffers of a fused mixture has a row for every expert chosen by a token.
    computed = min(tokens, EXPERT_TOKENS) * group.chosen
    mixture = computed * (3 * group.expert_inner / layout.tp + (group.expert_hidden or shape.hidden)) * HALF
    return mixture + tokens * shape.hidden * HALF + dense


@lru_cache(1024)
def projection_bytes(shape: Shape, layout: Layout, tokens: int) -> float:
    """Queries, keys and values of a step, the output of the fused projection: N*(H + 2*kv)*d*2."""
    return tokens * max(_projected(group, layout) for group in shape.parts) * HALF


def _projected(group: Layers, layout: Layout) -> float:
    heads = group.heads / layout.tp
    if group.kind == "state" and group.state is not None:
        own = group.state
        return (2 * own.key_heads * own.key_dim + 2 * own.value_heads * own.value_dim) / layout.tp
    if group.kind == "latent":
        # Of the prompt's own tokens, keys and values are expanded for every head.
        return group.query_rank + group.latent + heads * (2 * group.key_dim + group.value_dim)
    kv = max(1, group.kv_heads // layout.tp) if group.kv_heads else 0
    return heads * group.key_dim * (1 + group.gated) + kv * (group.key_dim + group.value_dim)


@lru_cache(1024)
def query_bytes(shape: Shape, layout: Layout, tokens: int) -> float:
    """One tensor of queries, or of attention outputs: N*H*d*2."""
    return tokens * max(group.heads / layout.tp * group.key_dim for group in shape.parts) * HALF


def logits_bytes(shape: Shape, sequences: int, each: float = LOGIT) -> float:
    """Logits of the profile run, for each sequence and word of the vocabulary; the first rank has those of all ranks.

    Args:
        shape: the model.
        sequences: max_num_seqs.
        each: bytes of one logit with its copies.
    """
    return 0.0 if shape.encoder else sequences * shape.vocabulary * each


MERGED = 8
"""What a plugin for dual chunk attention holds more in a step, in tensors of queries with 16 bits.

These are rotated queries, the results of three calls, and two float32 copies while queries are rotated. The engine's
profile run measures them all.
"""


GROUPED = 2**30
"""Bytes up to which a plugin attends several key heads of a sparse prompt together."""
SCORED = 16_384
"""Keys whose scores a plugin has at a time."""
WEIGHED = 4096
"""Queries whose results a plugin merges at a time."""


class Selected(Value):
    """What a plugin holds for the key heads that it attends sparsely together, in bytes; the profile run measures it.

    K is the longest request, n the query heads that share these key heads, S the queries of a step in one chunk.

    Args:
        gathered: keys and values of the prompt so far, 2*K*kv*d*2.
        scores: scores of the last 64 queries against a block of keys, three times, these keys in 32 bits, and what is
            collected of each key: n*(3*68*(SCORED + 64)*4 + K*32) + 2*SCORED*kv*d*4.
        lists: blocks and columns of one kind of chunks, and the sorted lines: n*(S/64*(vertical + slash + 2)*4 +
            (vertical + slash)*32).
        outputs: rotated queries, three results, and the merge: S*(n*d*(2*2 + 12) + d*8) + min(S, WEIGHED)*n*d*16.
    """

    gathered: float = 0.0
    scores: float = 0.0
    lists: float = 0.0
    outputs: float = 0.0

    @property
    def total(self) -> float:
        """The most at a time: scores are gone when lists are made."""
        return self.gathered + max(self.scores, self.lists + self.outputs)


def selected(shape: Shape, layout: Layout, tokens: int, longest: int) -> Selected:
    """What a plugin holds for sparse attention: of as many key heads as `GROUPED` allows, and of one at least.

    Args:
        shape: the model.
        layout: how it is distributed.
        tokens: maximum tokens of a step.
        longest: tokens of the longest request.
    """
    if not shape.merged or not shape.vertical:
        return Selected()
    every, dim = kv_heads(shape, layout), shape.head_dim
    share, step = int(shape.heads / layout.tp) // every, min(tokens, shape.chunk, longest)
    lines, scored = shape.vertical + shape.slash, min(SCORED, longest)

    def group(kv: int) -> Selected:
        heads = kv * share
        return Selected(
            gathered=2 * longest * kv * dim * HALF,
            scores=heads * (3 * (ROWS + 4) * (scored + ROWS) * SINGLE + longest * 32) + 2 * scored * kv * dim * SINGLE,
            lists=heads * (math.ceil(step / ROWS) * (lines + 2) * INDEX + lines * 32),
            outputs=step * (heads * dim * (2 * HALF + 12) + dim * 8) + min(step, WEIGHED) * heads * dim * 16,
        )

    fit = [one for kv in range(1, every + 1) if (one := group(kv)).total <= GROUPED]
    return fit[-1] if fit else group(1)


def step_bytes(
    shape: Shape, layout: Layout, tokens: int, sequences: int = 1, each: float = LOGIT, longest: int = 0
) -> float:
    """The peak of one step without keys of earlier steps: what vLLM's profile run measures.

    Args:
        shape: the model.
        layout: how it is distributed.
        tokens: tokens of the step, at most max_num_batched_tokens.
        sequences: concurrent sequences, at most max_num_seqs.
        each: bytes of one logit with its copies.
        longest: tokens of the longest request, for which a plugin reserves the buffers of sparse attention.
    """
    # Dual chunk attention has five tensors of queries instead of one, all alive during the computation.
    query = query_bytes(shape, layout, tokens)
    own = max(MERGED * shape.merged * query, selected(shape, layout, tokens, longest).total)
    attention = projection_bytes(shape, layout, tokens) + ((5 if shape.dual_chunk else 1) + 2) * query + own
    inside = max(mlp_bytes(shape, layout, tokens), attention)
    # Logits are computed from the last hidden states, when the layers' own are free again.
    logits = logits_bytes(shape, min(sequences, tokens), each) + hidden_bytes(shape, tokens) / 2
    seen = max(tokens, IMAGE_TOKENS) if shape.any_image else tokens
    images = seen * (shape.tower_width + shape.hidden) * HALF if shape.tower_width else 0.0
    return max(hidden_bytes(shape, tokens) + inside, logits, images)


class Transients(Value):
    """Temporary buffers of attention in the layer being computed, in bytes; the profile run measures none of them.

    Args:
        gathered: keys and values of the prompt so far, gathered from the blocks of the KV cache, 2*K*kv*d*2.
        repeated: the same, repeated for every query head, 2*K*H*d*2.
        scores: scores of the last 64 queries against all keys, 64*K*H*8: 16-bit parts, joined, and their 32-bit
            softmax. The diagonals of one head, summed later, take less than the parts that are freed by then.
        lists: lists of blocks and columns for each head and each 64 queries, as wide as the table's widest entry,
            H*N/64*(vertical + slash)*4.
        outputs: outputs of the three kinds of chunks, and joined, 6*N*H*d*2.
    """

    gathered: float = 0.0
    repeated: float = 0.0
    scores: float = 0.0
    lists: float = 0.0
    outputs: float = 0.0

    @property
    def total(self) -> float:
        """The sum."""
        return self.gathered + self.repeated + self.scores + self.lists + self.outputs


def transients(shape: Shape, layout: Layout, tokens: int, prompt: int) -> Transients:
    """Temporary buffers of attention at the end of a prompt.

    Args:
        shape: the model.
        layout: how it is distributed.
        tokens: maximum tokens of a step; a shorter prompt is one step.
        prompt: tokens computed so far, including those of the step.
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
    """The peak of one layer's attention at the end of a prompt, including hidden states and queries.

    Args:
        shape: the model.
        layout: how it is distributed.
        tokens: maximum tokens of a step.
        prompt: tokens computed so far, including those of the step.
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
    """The peak besides weights, tables and KV cache at the end of a prompt.

    Args:
        shape: the model.
        layout: how it is distributed.
        tokens: maximum tokens of a step.
        prompt: tokens computed so far, including those of the step.
        sequences: maximum concurrent sequences.
    """
    step = step_bytes(shape, layout, min(tokens, max(prompt, 1)), sequences)
    return max(step, layer_bytes(shape, layout, tokens, prompt))


def list_limit(shape: Shape, layout: Layout) -> int | None:
    """The largest step whose lists the sparse kernel can index; their offsets have 32 bits.

    Returns:
        Tokens; None when no step is too long, because one call never exceeds a chunk.
    """
    if not shape.sparse:
        return None
    widest = max(shape.vertical, shape.slash)
    heads = shape.heads // layout.tp
    if heads * math.ceil(shape.chunk / ROWS) * widest < 2**31:
        return None
    return (2**31 - 1) // (heads * widest) * ROWS
