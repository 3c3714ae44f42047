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


@dataclass(frozen=True)
class Settings:
    """The numbers of `dual_chunk_attention_config`.

    Attributes:
        chunking: the lengths of the chunks.
        original: `original_max_position_embeddings`; 0 turns the length factor off.
        whole_prompt: whether the factor is that of the whole prompt, as in the fork.
    """

    chunking: Chunking
    original: int
    whole_prompt: bool


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
    return None


def read(config: Mapping[str, Any]) -> Settings:
    """The numbers of a config that `unusable` finds nothing wrong with."""
    return Settings(
        chunking=Chunking(config["chunk_size"], config["local_size"]),
        original=config.get("original_max_position_embeddings") or 0,
        whole_prompt=config.get(FACTOR, TOKEN) == PROMPT,
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
