# SPDX-License-Identifier: Apache-2.0
"""What the plugin reads from vLLM's configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .chunking import Chunking

KEY = "dual_chunk_attention_config"
# In `dual_chunk_attention_config`: which length sharpens a query, its own position's or the whole prompt's.
FACTOR, TOKEN, PROMPT = "length_factor", "token", "prompt"
# The longest prompt that is attended densely, where the config does not say; and the vertical lines that a number of
# them stands for where it does not stand for itself.
THRESHOLD, RAISED = 32_768, {30: 130}
# Fewer slash lines may leave a query without its own key.
LEAST_SLASH = 100


@dataclass(frozen=True)
class Settings:
    """The numbers of `dual_chunk_attention_config`.

    Attributes:
        chunking: the lengths of the chunks.
        original: `original_max_position_embeddings`; 0 turns the length factor off.
        whole_prompt: whether the factor is that of the whole prompt, as in the fork.
        threshold: the longest prompt that is attended densely; `None` where all are.
    """

    chunking: Chunking
    original: int
    whole_prompt: bool
    threshold: int | None


@dataclass(frozen=True)
class Rope:
    """The rotary embedding that a model's config asks for, as vLLM's `get_rope` reads it.

    Attributes:
        dim: rotated dimensions of a head.
        base: `rope_theta`.
        rows: `max_position_embeddings`, in tokens.
        kind: `rope_type`.
    """

    dim: int
    base: float
    rows: int
    kind: str


def dual_chunk(vllm_config: Any) -> Mapping[str, Any] | None:
    """The model's `dual_chunk_attention_config`; `None` where it has none, or there is no model."""
    model = getattr(vllm_config, "model_config", None)
    for config in (getattr(model, "hf_config", None), getattr(model, "hf_text_config", None)):
        if found := getattr(config, KEY, None):
            return found  # type: ignore[no-any-return] # whatever it is, `unusable` says what is wrong with it
    return None


def unusable(config: Any) -> str | None:
    """What is wrong with the numbers of a `dual_chunk_attention_config`; `None` if nothing is."""
    if not isinstance(config, Mapping):
        return f"{KEY} is not an object but {config!r}"
    for name in ("chunk_size", "local_size"):
        if not _is_count(config.get(name)) or not config[name]:
            return f"{name} must be a positive number of tokens, not {config.get(name)!r}"
    if config["local_size"] >= config["chunk_size"]:
        return f"local_size must be less than chunk_size, not {config['local_size']} of {config['chunk_size']}"
    original = config.get("original_max_position_embeddings") or 0
    if not _is_count(original):
        return f"original_max_position_embeddings must be a number of tokens, not {original!r}"
    if config.get(FACTOR, TOKEN) not in (TOKEN, PROMPT):
        return f"{FACTOR} must be {TOKEN!r} or {PROMPT!r}, not {config[FACTOR]!r}"
    threshold = config.get("sparse_attention_threshold", THRESHOLD)
    if not _is_count(threshold):
        return f"sparse_attention_threshold must be a number of tokens, not {threshold!r}"
    return None


def is_sparse(config: Mapping[str, Any]) -> bool:
    """Whether long prompts are attended sparsely: as the config says, else if it has a table."""
    enabled = config.get("sparse_attention_enabled")
    return bool(config.get("sparse_attention_config") if enabled is None else enabled)


def lacking(table: Any, layers: int, heads: int) -> str | None:
    """What a sparse table lacks for a model of so many layers and heads; `None` if nothing."""
    if not isinstance(table, list) or len(table) < layers:
        return f"it must be a list of {layers} layers"
    for number, layer in enumerate(table[:layers]):
        for head in map(str, range(heads)):
            entry = layer.get(head) if isinstance(layer, Mapping) else None
            if not isinstance(entry, list) or len(entry) < 3 or not all(map(_is_count, entry[1:3])):
                return f"layer {number} has no entry of lines for head {head}"
            if entry[0] != "vertical_and_slash":
                return f"layer {number}, head {head} is of the type {entry[0]!r}, not 'vertical_and_slash'"
            if entry[1] < 1 or entry[2] < LEAST_SLASH:
                return (
                    f"layer {number}, head {head} needs a vertical line and {LEAST_SLASH} slash lines, not {entry[1:3]}"
                )
    return None


def sizes(config: Mapping[str, Any], layer: int, heads: range) -> tuple[tuple[int, int], ...]:
    """How many vertical and slash lines some heads of a layer get, by a table that lacks nothing."""
    entries = config["sparse_attention_config"][layer]
    return tuple((RAISED.get(entry[1], entry[1]), entry[2]) for entry in (entries[str(head)] for head in heads))


def read(config: Mapping[str, Any]) -> Settings:
    """The numbers of a config that `unusable` finds nothing wrong with."""
    return Settings(
        chunking=Chunking(config["chunk_size"], config["local_size"]),
        original=config.get("original_max_position_embeddings") or 0,
        whole_prompt=config.get(FACTOR, TOKEN) == PROMPT,
        threshold=config.get("sparse_attention_threshold", THRESHOLD) if is_sparse(config) else None,
    )


def rope(vllm_config: Any, head_size: int) -> Rope:
    """The rotary embedding of the model, for heads of `head_size`."""
    config = vllm_config.model_config.hf_text_config
    parameters = getattr(config, "rope_parameters", None) or {}
    return Rope(
        dim=int(parameters.get("rope_dim") or head_size * parameters.get("partial_rotary_factor", 1.0)),
        base=float(parameters.get("rope_theta", 10000)),
        rows=int(getattr(config, "max_position_embeddings", 0) or 0),
        kind=str(parameters.get("rope_type", "default")),
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
