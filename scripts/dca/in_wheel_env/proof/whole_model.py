"""A tiny random model, made on the spot, and the oracle's whole forward pass of it.

Its weights make attention far from uniform, so that a wrong position, key or chunk shows in every word.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import oracle
from .layer import Model

# Weights of queries and keys, and of the output of attention, relative to what keeps the size of activations.
SHARP, LOUD = 1.6, 3.0
EPS = 1e-6


@dataclass(frozen=True)
class Tiny:
    """A model with dual chunk attention.

    Attributes:
        attention: of its layers.
        family: `architectures` and `model_type` of its config; the weights have the names of that architecture's.
        vocabulary: words; the first ones are special.
        layers: their number.
        longest: tokens that it allows, `max_position_embeddings`.
        sizes: numbers of vertical and slash lines of every head; None for dense attention.
        threshold: prompts above it are sparse.
    """

    attention: Model
    family: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: int = 512
    layers: int = 2
    longest: int = 1024
    sizes: tuple[tuple[int, int], ...] | None = None
    threshold: int = 0

    @property
    def hidden(self) -> int:
        """Elements of an activation."""
        return self.attention.heads * self.attention.dim

    @property
    def inner(self) -> int:
        """Elements inside of the feed-forward layers."""
        return 2 * self.hidden

    def config(self) -> dict[str, Any]:
        """Its config.json."""
        attention = self.attention
        dual: dict[str, Any] = {"chunk_size": attention.chunking.size, "local_size": attention.chunking.local}
        dual["original_max_position_embeddings"] = attention.original
        if self.sizes is not None:
            table = {str(head): ["vertical_and_slash", *size, 1.0] for head, size in enumerate(self.sizes)}
            dual |= {
                "sparse_attention_config": [table] * self.layers,
                "sparse_attention_enabled": True,
                "sparse_attention_threshold": self.threshold,
            }
        return {
            **self.family,
            "hidden_size": self.hidden,
            "intermediate_size": self.inner,
            "num_hidden_layers": self.layers,
            "num_attention_heads": attention.heads,
            "num_key_value_heads": attention.kv_heads,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": self.longest,
            "rope_theta": attention.base,
            "rms_norm_eps": EPS,
            "hidden_act": "silu",
            "tie_word_embeddings": False,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "torch_dtype": str(attention.dtype).rpartition(".")[2],
            "use_sliding_window": False,
            "dual_chunk_attention_config": dual,
        }

    def weights(self, seed: int) -> dict[str, Tensor]:
        """Random weights, in the model's dtype."""
        random = torch.Generator().manual_seed(seed)
        attention, hidden = self.attention, self.hidden

        def drawn(*shape: int, spread: float) -> Tensor:
            return (torch.randn(shape, generator=random) * spread).to(attention.dtype)

        ones = torch.ones(hidden, dtype=attention.dtype)
        keys, even = attention.kv_heads * attention.dim, hidden**-0.5
        weights = {
            "model.embed_tokens.weight": drawn(self.vocabulary, hidden, spread=1.0),
            "model.norm.weight": ones.clone(),
            "lm_head.weight": drawn(self.vocabulary, hidden, spread=2 * even),
        }
        for layer in range(self.layers):
            at = f"model.layers.{layer}"
            for name, rows, spread, bias in (
                ("q_proj", hidden, SHARP * even, 0.3),
                ("k_proj", keys, SHARP * even, 0.3),
                ("v_proj", keys, even, 0.1),
            ):
                weights[f"{at}.self_attn.{name}.weight"] = drawn(rows, hidden, spread=spread)
                weights[f"{at}.self_attn.{name}.bias"] = drawn(rows, spread=bias)
            weights[f"{at}.self_attn.o_proj.weight"] = drawn(hidden, hidden, spread=LOUD * even)
            weights[f"{at}.mlp.gate_proj.weight"] = drawn(self.inner, hidden, spread=even)
            weights[f"{at}.mlp.up_proj.weight"] = drawn(self.inner, hidden, spread=even)
            weights[f"{at}.mlp.down_proj.weight"] = drawn(hidden, self.inner, spread=self.inner**-0.5)
            weights[f"{at}.input_layernorm.weight"] = ones.clone()
            weights[f"{at}.post_attention_layernorm.weight"] = ones.clone()
        return weights

    def write(self, folder: Path, seed: int) -> dict[str, Tensor]:
        """Write the model into a folder, and return its weights."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = self.weights(seed)
        (folder / "config.json").write_text(json.dumps(self.config(), indent=1))
        save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
        return weights


def ordinary(model: Tiny) -> Tiny:
    """The same model with ordinary attention: everything is in one chunk, and no length has a factor."""
    chunking = oracle.Chunking(2 * model.longest, model.longest)
    return replace(model, attention=replace(model.attention, chunking=chunking, original=0), sizes=None)


def forward(model: Tiny, weights: dict[str, Tensor], tokens: list[int], prompt: int) -> Tensor:
    """The logarithms of the probabilities of each next word, in float32 but for the attention's float64.

    Args:
        model: the model; attention is dense, whatever its sizes.
        weights: of the model.
        tokens: a prompt and the words after it.
        prompt: tokens of the prompt.

    Returns:
        `[tokens, vocabulary]`.
    """
    attention, count = model.attention, len(tokens)
    own = {name: tensor.float() for name, tensor in weights.items()}
    # Keys are cached with the factor of the length at that moment, and queries get that of theirs.
    factors = torch.tensor(
        [oracle.length_factor(max(prompt, place + 1), attention.original) for place in range(count)],
        dtype=torch.float64,
    )[:, None, None]
    dual = oracle.DualChunk(attention.chunking, attention.base, attention.scale)
    x = own["model.embed_tokens.weight"][torch.tensor(tokens)]
    for layer in range(model.layers):
        at = f"model.layers.{layer}"
        y = _norm(x, own[f"{at}.input_layernorm.weight"])
        q, k, v = (
            (y @ own[f"{at}.self_attn.{name}.weight"].t() + own[f"{at}.self_attn.{name}.bias"])
            .view(count, -1, attention.dim)
            .double()
            for name in ("q_proj", "k_proj", "v_proj")
        )
        out = oracle.prefill(q * factors, k * factors, v, dual).out.float()
        x = x + out.flatten(1) @ own[f"{at}.self_attn.o_proj.weight"].t()
        y = _norm(x, own[f"{at}.post_attention_layernorm.weight"])
        gate, up = (y @ own[f"{at}.mlp.{name}.weight"].t() for name in ("gate_proj", "up_proj"))
        x = x + (torch.nn.functional.silu(gate) * up) @ own[f"{at}.mlp.down_proj.weight"].t()
    return (_norm(x, own["model.norm.weight"]) @ own["lm_head.weight"].t()).log_softmax(-1)


def _norm(x: Tensor, weight: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS) * weight
