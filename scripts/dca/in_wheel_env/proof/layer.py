"""Builds and calls the wheel's layer and rotary embedding as the engine does, at any size and on any device."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .. import oracle


@dataclasses.dataclass(frozen=True)
class Modules:
    """The two modules of the wheel that compute dual chunk attention."""

    backend: Any
    rotary: Any


@dataclasses.dataclass(frozen=True)
class Model:
    """The parameters of a model that affect its attention layers.

    Attributes:
        heads: query heads of this GPU.
        kv_heads: key heads of this GPU.
        dim: of one head.
        base: `rope_theta`.
        chunking: the lengths of the chunks.
        original: `original_max_position_embeddings`; 0 turns the length factor off.
        dtype: of weights, activations and the KV cache.
    """

    heads: int
    kv_heads: int
    dim: int
    base: float
    chunking: oracle.Chunking
    original: int
    dtype: torch.dtype

    @property
    def scale(self) -> float:
        """The factor of logits, without the length factor."""
        return float(self.dim**-0.5)


# The smaller 1M model, as one of four GPUs sees it.
ONE_OF_FOUR = Model(
    heads=7,
    kv_heads=1,
    dim=128,
    base=1e7,
    chunking=oracle.Chunking(262_144, 8_192),
    original=262_144,
    dtype=torch.bfloat16,
)


@dataclasses.dataclass(frozen=True)
class Shape(Model):
    """A model with the parameters of the engine that affect its attention layers.

    Attributes:
        positions: rows of the table of rotated keys.
        page: tokens of one page of the KV cache.
        device: to run on.
    """

    positions: int
    page: int = 16
    device: str = "cpu"


@dataclasses.dataclass
class Conversation:
    """A prompt and the tokens after it, with its pages in the cache.

    Attributes:
        pages: int64, the pages of the cache for its tokens.
        prompt: the number of tokens of the prompt.
        done: the number of tokens in the cache.
    """

    pages: Tensor
    prompt: int
    done: int = 0

    def slots(self, count: int, page: int) -> Tensor:
        """The slots of the next tokens in the cache: int64 `[count]`."""
        at = torch.arange(self.done, self.done + count, device=self.pages.device)
        return self.pages[at // page] * page + at % page


class Layer:
    """One attention layer of the wheel, with its rotary embedding and an empty paged cache."""

    def __init__(
        self, modules: Modules, shape: Shape, pages: int, sizes: Sequence[tuple[int, int]] | None, threshold: int
    ) -> None:
        """Build it.

        Args:
            modules: of the wheel.
            shape: of the model.
            pages: number of pages of the cache.
            sizes: numbers of vertical and slash lines of every head of every rank; None for dense attention.
            threshold: prompts above it are sparse.
        """
        self.modules, self.shape = modules, shape
        self.cache = torch.full(
            (2, pages, shape.page, shape.kv_heads, shape.dim), torch.nan, dtype=shape.dtype, device=shape.device
        )
        config: dict[str, Any] = {"chunk_size": shape.chunking.size, "local_size": shape.chunking.local}
        if shape.original:
            config["original_max_position_embeddings"] = shape.original
        if sizes is not None:
            table = {str(head): ["vertical_and_slash", *size, 1.0] for head, size in enumerate(sizes)}
            others = {head: ["vertical_and_slash", 33, 103, 1.0] for head in table}
            config |= {
                # It is the second of three layers, to detect whether it uses another layer's lines.
                "sparse_attention_config": [others, table, others],
                "sparse_attention_enabled": True,
                "sparse_attention_threshold": threshold,
            }
        self._layer = implementation(modules, shape, config, 1)
        self._rotary = modules.rotary.DualChunkRotaryEmbedding(
            shape.dim,
            shape.dim,
            shape.positions,
            shape.base,
            True,
            shape.dtype,
            shape.chunking.size,
            shape.chunking.local,
        )

    def turn(self, positions: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        """Rotate: query, key, succ, inter, succ critical, inter critical, each `[tokens, heads * dim]`."""
        return run_rotary(self._rotary, positions, q.flatten(1), k.flatten(1))

    def run(self, turned: tuple[Tensor, ...], value: Tensor, metadata: Any) -> Tensor:
        """The layer's output, `[tokens, heads, dim]`; releases differ in how they pass the queries."""
        query, key, *others = turned
        value = value.flatten(1)
        if "query_succ" in inspect.signature(self._layer.forward).parameters:
            out = self._layer.forward(query, key.clone(), value, self.cache, metadata, 1.0, 1.0, *others)
        else:
            scale = torch.tensor(1.0, device=self.shape.device)
            owner = type("Layer", (), {"_k_scale": scale, "_v_scale": scale})()
            queries = torch.cat((query, *others), dim=-1)
            out = self._layer.forward(owner, queries, key.clone(), value, self.cache, metadata)
        return out.view(-1, self.shape.heads, self.shape.dim)

    def metadata(self, work: Sequence[tuple[Conversation, int]], *, blocks: bool = True) -> Any:
        """The engine's metadata for the next tokens of some sequences; those with an unfinished prompt come first.

        Args:
            work: the sequences, each with a number of tokens.
            blocks: whether the engine passes the pages of prompts, as it does if it prefills in pieces.
        """
        prefills = sum(sequence.done < sequence.prompt for sequence, _ in work)
        lengths = [sequence.done + count for sequence, count in work]
        tokens = [count for _, count in work]
        # The engine passes the whole prompt's length, also while it is prefilled in pieces.
        whole = [max(sequence.prompt, length) for (sequence, _), length in zip(work, lengths)]
        widest = max(len(sequence.pages) for sequence, _ in work)
        table = torch.zeros(len(work), widest, dtype=torch.int32)
        for row, (sequence, _) in zip(table, work):
            row[: len(sequence.pages)] = sequence.pages
        starts = [0, *itertools.accumulate(tokens)]
        shape = self.shape

        def numbers(values: list[int]) -> Tensor:
            return torch.tensor(values, dtype=torch.int32, device=shape.device)

        return call(
            self.modules.backend.DualChunkFlashAttentionMetadata,
            num_prefills=prefills,
            num_prefill_tokens=starts[prefills],
            num_decode_tokens=starts[-1] - starts[prefills],
            slot_mapping=torch.cat([sequence.slots(count, shape.page) for sequence, count in work]),
            multi_modal_placeholder_index_maps=None,
            enable_kv_scales_calculation=False,
            seq_lens=lengths,
            seq_lens_tensor=numbers(lengths),
            orig_seq_lens=whole,
            orig_seq_lens_tensor=numbers(whole),
            max_prefill_seq_len=max(lengths[:prefills], default=0),
            max_decode_seq_len=max(lengths[prefills:], default=0),
            context_lens_tensor=numbers([sequence.done for sequence, _ in work]),
            block_tables=(table if blocks else table[:, :0]).to(shape.device),
            use_cuda_graph=False,
            max_query_len=max(tokens),
            max_decode_query_len=1,
            query_start_loc=numbers(starts),
            seq_start_loc=numbers([0, *itertools.accumulate(lengths)]),
            block_size=shape.page,
            original_max_position_embeddings=shape.original,
            chunk_size=shape.chunking.size,
            local_size=shape.chunking.local,
        )


def implementation(modules: Modules, shape: Shape, config: dict[str, Any], index: int) -> Any:
    """The attention of layer `index`, as the backend makes it for a `dual_chunk_attention_config`."""
    return call(
        modules.backend.DualChunkFlashAttentionImpl,
        num_heads=shape.heads,
        head_size=shape.dim,
        scale=shape.scale,
        num_kv_heads=shape.kv_heads,
        alibi_slopes=None,
        sliding_window=None,
        kv_cache_dtype="auto",
        dual_chunk_attention_config=config,
        layer_idx=index,
        prefix=f"model.layers.{index}.self_attn.attn",
    )


def call(function: Callable[..., Any], **arguments: Any) -> Any:
    """Call a function with the arguments that it has; releases differ in these."""
    known = inspect.signature(function).parameters
    return function(**{name: value for name, value in arguments.items() if name in known})


def run_rotary(rotary: Any, positions: Tensor, q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
    """Each `[tokens, heads * dim]`: query, key, succ, inter, succ critical, inter critical."""
    own = vars(type(rotary))
    forward = rotary.forward_native if "forward_native" in own else rotary.forward
    turned = forward(positions, q, k)
    if len(turned) == 6:
        return tuple(turned)
    query, key = turned
    five = query.chunk(5, dim=-1)
    return (five[0], key, *five[1:])
