"""Tiny random models, and what they must say, by a whole model with the oracle's distance of every pair."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dca.in_wheel_env import oracle

VOCABULARY, LAYERS, EPSILON, BASE = 1024, 2, 1e-6, 1e4
# Without dual chunk attention all tokens are of one chunk.
ONE_CHUNK = oracle.Chunking(2**20 + 1, 1)


@dataclass(frozen=True)
class Tiny:
    """A model.

    Attributes:
        heads: of the queries.
        kv_heads: of the keys.
        dim: of a head.
        dual: its `dual_chunk_attention_config`, if it has one.
        seed: of its weights.
        table: how many vertical and slash lines each head gets, in every layer, if long prompts are attended sparsely.
        positions: tokens of the longest request.
        dtype: of its weights.
    """

    heads: int = 4
    kv_heads: int = 2
    dim: int = 64
    dual: dict[str, Any] | None = None
    seed: int = 0
    table: tuple[tuple[int, int], ...] = ()
    positions: int = 1024
    dtype: str = "float32"

    @property
    def hidden(self) -> int:
        """Of all heads together."""
        return self.heads * self.dim


def make(folder: Path, tiny: Tiny, family: dict[str, Any]) -> None:
    """Write config and weights; queries and keys are large, so that a wrong distance shows.

    Args:
        folder: to make.
        tiny: the model.
        family: `architectures` and `model_type` of its config; the weights have the names of that architecture's.
    """
    folder.mkdir(parents=True)
    config: dict[str, Any] = {
        **family,
        "hidden_size": tiny.hidden,
        "intermediate_size": 2 * tiny.hidden,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": tiny.heads,
        "num_key_value_heads": tiny.kv_heads,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": tiny.positions,
        "rope_theta": BASE,
        "rms_norm_eps": EPSILON,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 2,
        "torch_dtype": tiny.dtype,
        "use_sliding_window": False,
    }
    if tiny.dual:
        config["dual_chunk_attention_config"] = tiny.dual
    (folder / "config.json").write_text(json.dumps(config))
    if tiny.table:
        layer = {str(head): ["vertical_and_slash", *sizes, 1.0] for head, sizes in enumerate(tiny.table)}
        (folder / "sparse_attention_config.json").write_text(json.dumps([layer] * LAYERS))
    weights = {name: weight.to(getattr(torch, tiny.dtype)) for name, weight in _weights(tiny).items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})


def _weights(tiny: Tiny) -> dict[str, Tensor]:
    one = torch.Generator().manual_seed(tiny.seed)
    hidden, keys = tiny.hidden, tiny.kv_heads * tiny.dim

    def normal(*shape: int, spread: float) -> Tensor:
        return torch.randn(*shape, generator=one) * spread

    narrow = hidden**-0.5
    weights = {
        "model.embed_tokens.weight": normal(VOCABULARY, hidden, spread=1),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": normal(VOCABULARY, hidden, spread=2 * narrow),
    }
    for layer in range(LAYERS):
        shapes = {
            "self_attn.q_proj.weight": ((hidden, hidden), 1.6 * narrow),
            "self_attn.q_proj.bias": ((hidden,), 0.3),
            "self_attn.k_proj.weight": ((keys, hidden), 1.6 * narrow),
            "self_attn.k_proj.bias": ((keys,), 0.3),
            "self_attn.v_proj.weight": ((keys, hidden), narrow),
            "self_attn.v_proj.bias": ((keys,), 0.1),
            "self_attn.o_proj.weight": ((hidden, hidden), 3 * narrow),
            "mlp.gate_proj.weight": ((2 * hidden, hidden), narrow),
            "mlp.up_proj.weight": ((2 * hidden, hidden), narrow),
            "mlp.down_proj.weight": ((hidden, 2 * hidden), (2 * hidden) ** -0.5),
        }
        weights |= {f"model.layers.{layer}.{name}": normal(*shape, spread=s) for name, (shape, s) in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(hidden)
    return weights


def _attended(q: Tensor, k: Tensor, v: Tensor, dual: oracle.DualChunk, sparse: Sparse | None) -> Tensor:
    """Dual chunk attention of a whole sequence: by the distance of every pair, or as a step attends it sparsely."""
    if sparse is None:
        return oracle.plain_attention(q, k, v, dual).out
    parts = []
    for begin in range(0, sparse.prompt, sparse.piece):
        end = min(begin + sparse.piece, sparse.prompt)
        parts.append(oracle.sparse_prefill(q[begin:end], k[:end], v[:end], dual, list(sparse.sizes))[0].out)
    # Generated tokens are attended densely.
    parts.append(oracle.plain_attention(q[sparse.prompt :], k, v, dual).out)
    return torch.cat(parts)


@dataclass(frozen=True)
class Sparse:
    """How a prompt is attended sparsely: its tokens, those of a step, and the lines of each head."""

    prompt: int
    piece: int
    sizes: tuple[tuple[int, int], ...]


def whole_model(folder: Path, tiny: Tiny, tokens: list[int], prompt: int, piece: int = 0) -> Tensor:
    """Log-probabilities `[tokens, vocabulary]` of what follows each token, in float32, without a cache or blocks.

    Args:
        folder: of the model.
        tiny: what it was made from.
        tokens: prompt and answer.
        prompt: how many of them are the prompt's.
        piece: tokens of a step of its prefill, if it is attended sparsely.
    """
    sparse = Sparse(prompt, piece, tiny.table) if piece else None
    weights = {name: weight.float() for name, weight in load_file(str(folder / "model.safetensors")).items()}
    chosen = tiny.dual or {}
    chunking = oracle.Chunking(chosen["chunk_size"], chosen["local_size"]) if chosen else ONE_CHUNK
    dual = oracle.DualChunk(chunking, BASE, tiny.dim**-0.5)
    least = prompt if chosen.get("length_factor") == "prompt" else 0
    original = chosen.get("original_max_position_embeddings", 0)
    factors = [oracle.length_factor(max(place + 1, least), original) ** 2 for place in range(len(tokens))]
    x = weights["model.embed_tokens.weight"][torch.tensor(tokens)]

    def norm(x: Tensor, weight: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPSILON) * weight

    for layer in range(LAYERS):
        own = {name.split(".", 3)[3]: w for name, w in weights.items() if name.startswith(f"model.layers.{layer}.")}
        y = norm(x, own["input_layernorm.weight"])
        q, k, v = (
            torch.nn.functional.linear(y, own[f"self_attn.{name}_proj.weight"], own[f"self_attn.{name}_proj.bias"])
            for name in "qkv"
        )
        q, k, v = (each.unflatten(-1, (-1, tiny.dim)) for each in (q, k, v))
        q = q * torch.tensor(factors)[:, None, None]
        attended = _attended(q, k, v, dual, sparse)
        x = x + attended.flatten(1) @ own["self_attn.o_proj.weight"].T
        y = norm(x, own["post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(y @ own["mlp.gate_proj.weight"].T)
        x = x + (gate * (y @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
    return (norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T).log_softmax(-1)
