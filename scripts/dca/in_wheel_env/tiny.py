"""Tiny random models, and what they must say, by a whole model with the oracle's distance of every pair.

Their weights make attention far from uniform, so that a wrong position, key or chunk shows in every word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import oracle

VOCABULARY, LAYERS, EPSILON, BASE = 1024, 2, 1e-6, 1e4
# Without dual chunk attention all tokens are of one chunk.
ONE_CHUNK = oracle.Chunking(2**20 + 1, 1)
# Of queries and keys, and of the output of attention, relative to what keeps the size of activations.
SHARP, LOUD = 1.6, 3.0


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

    @property
    def chunking(self) -> oracle.Chunking:
        """The lengths of its chunks."""
        return oracle.Chunking(self.dual["chunk_size"], self.dual["local_size"]) if self.dual else ONE_CHUNK

    @property
    def original(self) -> int:
        """The length from which its logits grow, in tokens; 0 if they never do."""
        return int((self.dual or {}).get("original_max_position_embeddings", 0))


def make(folder: Path, tiny: Tiny, family: Mapping[str, Any]) -> None:
    """Write config, table and weights.

    Args:
        folder: for the files.
        tiny: the model.
        family: `architectures` and `model_type` of its config; the weights have the names of that architecture's.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
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
            "self_attn.q_proj.weight": ((hidden, hidden), SHARP * narrow),
            "self_attn.q_proj.bias": ((hidden,), 0.3),
            "self_attn.k_proj.weight": ((keys, hidden), SHARP * narrow),
            "self_attn.k_proj.bias": ((keys,), 0.3),
            "self_attn.v_proj.weight": ((keys, hidden), narrow),
            "self_attn.v_proj.bias": ((keys,), 0.1),
            "self_attn.o_proj.weight": ((hidden, hidden), LOUD * narrow),
            "mlp.gate_proj.weight": ((2 * hidden, hidden), narrow),
            "mlp.up_proj.weight": ((2 * hidden, hidden), narrow),
            "mlp.down_proj.weight": ((hidden, 2 * hidden), (2 * hidden) ** -0.5),
        }
        weights |= {f"model.layers.{layer}.{name}": normal(*shape, spread=s) for name, (shape, s) in shapes.items()}
        for name in ("input_layernorm", "post_attention_layernorm"):
            weights[f"model.layers.{layer}.{name}.weight"] = torch.ones(hidden)
    return weights


@dataclass(frozen=True)
class Attended:
    """How an engine attends a request.

    Attributes:
        prompt: its tokens, of which the length factor is at least.
        piece: tokens of a step of its prefill, if the prompt is attended sparsely; 0 for dense attention.
        scaled_keys: whether keys are cached with the length factor of their step and queries have that of theirs, as
            vLLM's own backend does it. Otherwise both factors are those of the query.
    """

    prompt: int
    piece: int = 0
    scaled_keys: bool = False


def _attention(q: Tensor, k: Tensor, v: Tensor, tiny: Tiny, how: Attended) -> Tensor:
    """Dual chunk attention of a whole sequence: by the distance of every pair, or as a step attends it sparsely."""
    dual = oracle.DualChunk(tiny.chunking, BASE, tiny.dim**-0.5)
    if not how.piece:
        return oracle.plain_attention(q, k, v, dual).out
    parts = []
    for begin in range(0, how.prompt, how.piece):
        end = min(begin + how.piece, how.prompt)
        parts.append(oracle.sparse_prefill(q[begin:end], k[:end], v[:end], dual, list(tiny.table))[0].out)
    # Generated tokens are attended densely.
    parts.append(oracle.plain_attention(q[how.prompt :], k, v, dual).out)
    return torch.cat(parts)


def whole_model(folder: Path, tiny: Tiny, tokens: list[int], how: Attended) -> Tensor:
    """Log-probabilities `[tokens, vocabulary]` of what follows each token, in float32, without a cache or blocks.

    Args:
        folder: of the model.
        tiny: what it was made from.
        tokens: prompt and answer.
        how: they are attended.
    """
    from safetensors.torch import load_file

    weights = {name: weight.float() for name, weight in load_file(str(folder / "model.safetensors")).items()}
    least = how.prompt if how.scaled_keys or (tiny.dual or {}).get("length_factor") == "prompt" else 0
    factors = torch.tensor(
        [oracle.length_factor(max(place + 1, least), tiny.original) for place in range(len(tokens))]
    )[:, None, None]
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
        q, k = (q * factors, k * factors) if how.scaled_keys else (q * factors**2, k)
        attended = _attention(q, k, v, tiny, how)
        x = x + attended.flatten(1) @ own["self_attn.o_proj.weight"].T
        y = norm(x, own["post_attention_layernorm.weight"])
        gate = torch.nn.functional.silu(y @ own["mlp.gate_proj.weight"].T)
        x = x + (gate * (y @ own["mlp.up_proj.weight"].T)) @ own["mlp.down_proj.weight"].T
    return (norm(x, weights["model.norm.weight"]) @ weights["lm_head.weight"].T).log_softmax(-1)
