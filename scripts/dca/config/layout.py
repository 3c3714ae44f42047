"""A config.json as the engines read it: which part describes the language model, and how its positions are rotated.

Files differ in where they keep the same facts: at the top level or in a part of their own (`text_config`), rotary
settings in `rope_scaling`, `rope_parameters` or both, once or for each type of layer, and sizes under older names. The
order in which places are tried is that of transformers 5 and vLLM 0.32 (`get_text_config`, `patch_rope_parameters`,
`ModelArchConfigConvertorBase`). A layout that is not known is called that; nothing here says that a file is damaged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

DCA, SCALING, PARAMETERS, THETA = "dual_chunk_attention_config", "rope_scaling", "rope_parameters", "rope_theta"
LENGTH, ORIGINAL, TABLE = "max_position_embeddings", "original_max_position_embeddings", "sparse_attention_config"
PARTIAL = "partial_rotary_factor"
# What belongs to the model's shape, whatever the scaling: an edit of the scaling keeps it.
STRUCTURAL = frozenset(
    {
        THETA,
        PARTIAL,
        "rope_dim",
        "mrope_section",
        "xdrope_section",
        "mrope_interleaved",
        "use_fope",
        "apply_yarn_scaling",
    }
)

# Parts that describe the language model of a composite model, the one that counts first.
NESTED = ("thinker_config", "text_config", "llm_config", "language_config", "text_encoder", "decoder", "generator")
# Older names of the same number; where engines look when the usual one is missing.
OTHER_NAMES: dict[str, tuple[str, ...]] = {
    "num_hidden_layers": ("n_layer", "n_layers", "num_layers"),
    "hidden_size": ("n_embd", "d_model", "model_dim"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads", "decoder_attention_heads"),
    "num_key_value_heads": ("n_head_kv", "num_kv_heads", "multi_query_group_num", "num_attention_groups", "kv_n_heads"),
    "head_dim": ("attention_head_dim", "kv_channels", "hidden_size_per_head"),
    "intermediate_size": ("n_inner", "ffn_hidden_size", "ffn_dim", "d_ff", "decoder_ffn_dim"),
    "vocab_size": ("padded_vocab_size", "text_vocab_size"),
    "num_experts": ("n_routed_experts", "num_local_experts", "moe_num_experts"),
    "num_experts_per_tok": (
        "num_experts_per_token",
        "experts_per_token",
        "top_k_experts",
        "moe_topk",
        "moe_top_k",
        "moe_k",
    ),
    "moe_intermediate_size": ("expert_ffn_hidden_size",),
    THETA: ("rotary_emb_base", "rotary_base", "global_rope_theta"),
    PARTIAL: ("rotary_pct", "rotary_emb_fraction"),
    LENGTH: (
        "n_positions",
        "max_seq_len",
        "seq_length",
        "model_max_length",
        "max_target_positions",
        "max_sequence_length",
        "max_seq_length",
        "seq_len",
        "n_ctx",
    ),
}
# The number that engines take for the length, whatever the others are.
OWN_LENGTH = "model_max_length"
# Of the names of a length, the one that engines do not read.
UNREAD_LENGTH = "n_ctx"
# Bases of the layers with a sliding window, of models that keep them apart from rope_theta.
OF_WINDOWS = ("rope_local_base_freq", "swa_rope_theta", "local_rope_theta")
# Lists with one entry for each layer, of models that do not state their number.
LISTS = ("layers_block_type", "layer_types", "block_configs", "hybrid_override_pattern")
# Older names of the same type of scaling.
OTHER_TYPES = {"su": "longrope", "mrope": "default"}
# Types with which max_position_embeddings is not the length that is served: it is multiplied by the factor.
MULTIPLIED = ("linear", "dynamic", "ntk")
# Their max_position_embeddings is the scaled length already.
NOT_MULTIPLIED = ("gemma3",)
# Values of position_embedding_type without a rotary embedding.
UNROTATED = ("nope", "none", "absolute", "learned_absolute", "alibi", "relative_key", "relative_key_query")
ALL = ""


def structural(name: str) -> bool:
    """Whether a rotary setting belongs to the model's shape, and stays when the scaling is replaced."""
    # Temperatures of attention that models name after the one that had it first.
    return name in STRUCTURAL or name.endswith("_scaling_beta")


def _type(name: str) -> str:
    """A scaling's type under the name that transformers 5 gives it; some models put their own before `yarn`."""
    return "yarn" if re.search(r"[-_]yarn$", name) else OTHER_TYPES.get(name, name)


def kind(scaling: dict[str, Any]) -> Any:
    """The type of a scaling, under either name."""
    return scaling.get("rope_type", scaling.get("type"))


def number(value: Any) -> float | None:
    """A finite number as a float; None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def count(value: Any) -> int | None:
    """A positive integer below 2**40; None for everything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 40 else None


def per_layer(scaling: Any) -> bool:
    """Whether a scaling has one object for each type of layer."""
    return isinstance(scaling, dict) and any(isinstance(part, dict) for part in scaling.values())


@dataclass(frozen=True)
class Rotary:
    """The rotary embedding of one type of layer.

    Args:
        layers: the type, as in `layer_types`; empty for all layers.
        path: keys of the object that has its settings; empty when the file has none.
        base_path: keys of its rope_theta; empty when the file has none.
        type: the scaling as transformers 5 names it; `default` without one.
        base: rope_theta; None when the file does not state it, and the model's class has its own.
        parameters: the settings, as they stand in the file.
        original: length before scaling in tokens; None when the file does not state it.
        partial: share of a head's elements that is rotated.
    """

    layers: str = ALL
    path: tuple[str, ...] = ()
    base_path: tuple[str, ...] = ()
    type: str = "default"
    base: float | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    original: int | None = None
    partial: float = 1.0

    @property
    def factor(self) -> float | None:
        """The factor of the scaling; None without one."""
        return number(self.parameters.get("factor"))

    @property
    def scaled(self) -> bool:
        """Whether positions are scaled."""
        return self.type not in ("default", "proportional")


@dataclass(frozen=True)
class Layout:
    """A config.json, as the engines read it.

    Args:
        config: the file's content.
        path: keys of the part that describes the language model; empty for the top level.
        text: that part.
        rotary: the rotary embeddings, that of the layers with full attention first. Never empty.
    """

    config: dict[str, Any]
    path: tuple[str, ...]
    text: dict[str, Any]
    rotary: tuple[Rotary, ...]

    def get(self, name: str) -> Any:
        """A value of the language model under its usual name or an older one; None when the file does not state it."""
        return _named(self.text, name)[1]

    def where(self, name: str) -> tuple[str, ...]:
        """The keys at which the file states that value; those of the usual name when it does not."""
        return (*self.path, _named(self.text, name)[0])

    def count(self, name: str) -> int | None:
        """A positive integer of the language model; None when the file has no usable one."""
        if name == "num_hidden_layers" and self.get(name) is None:
            lists = (self.text.get(key) for key in LISTS)
            return next((len(value) for value in lists if isinstance(value, (list, str)) and value), None)
        return count(self.get(name))

    @property
    def unknown(self) -> str:
        """Why this is not the config of a language model as engines know them, as a clause; empty when it is."""
        missing = [name for name in ("num_hidden_layers", "hidden_size") if self.count(name) is None]
        if not missing or self.text.get("model_type"):
            return ""
        return f"it has no `model_type`, and no usable {' or '.join(f'`{name}`' for name in missing)}"

    @property
    def architectures(self) -> tuple[str, ...]:
        """The model's classes."""
        names = self.config.get("architectures")
        return tuple(name for name in names if isinstance(name, str)) if isinstance(names, list) else ()

    @property
    def model_type(self) -> str:
        """The whole model's type."""
        return str(self.config.get("model_type") or "")

    @property
    def text_type(self) -> str:
        """The language model's type."""
        return str(self.text.get("model_type") or self.model_type)

    @property
    def dtype(self) -> str:
        """Data type of the weights without `torch.`; empty when the file does not state it."""
        for part in (self.config, self.text):
            for name in ("dtype", "torch_dtype"):
                if isinstance(part.get(name), str):
                    return str(part[name]).removeprefix("torch.")
        return ""

    @property
    def quantization(self) -> dict[str, Any]:
        """How the weights are quantized, as the file states it; empty when it does not."""
        for part in (self.config, self.text):
            for name in ("quantization_config", "compression_config"):
                if isinstance(part.get(name), dict):
                    return dict(part[name])
        return {}

    @property
    def tied(self) -> bool | None:
        """Whether input and output share their embeddings; None when the file does not state it."""
        for part in (self.text, self.config):
            if isinstance(part.get("tie_word_embeddings"), bool):
                return bool(part["tie_word_embeddings"])
        return None

    @property
    def head_dim(self) -> int | None:
        """Elements of one head; None when the file does not state enough."""
        size, heads = self.count("hidden_size"), self.count("num_attention_heads")
        dim = self.count("head_dim") or (size // heads if size and heads else None)
        return dim if dim and 2 <= dim <= 4096 else None

    @property
    def rotates(self) -> bool:
        """Whether the file leaves positions to a rotary embedding; it may say that they are learned, or none."""
        if self.count("kv_lora_rank") and self.text.get("qk_rope_head_dim") == 0:
            # Compressed attention without the rotary part beside it.
            return False
        attention = self.text.get("attn_config")
        flags = (self.text.get("alibi"), attention.get("alibi") if isinstance(attention, dict) else None)
        return self.text.get("position_embedding_type") not in UNROTATED and True not in flags

    def rotated(self, rotary: Rotary) -> int | None:
        """Elements of a head that are rotated, an even number; None when the file does not state enough."""
        latent = self.count("qk_rope_head_dim")
        own = self.count("global_head_dim") if rotary.layers == "full_attention" else None
        dim = latent or own or self.head_dim
        if dim is None or latent:
            return dim
        return self.count("rotary_dim") or int(dim * rotary.partial) or None

    @property
    def length(self) -> int | None:
        """The length that the file states, in tokens."""
        return self.count(LENGTH)

    @property
    def lengths(self) -> tuple[tuple[str, ...], ...]:
        """The keys of every number that engines read as a length; that of max_position_embeddings without any."""
        found = tuple((*self.path, name) for name in _lengths(self.text))
        return found or (self.where(LENGTH),)

    @property
    def context(self) -> int | None:
        """The length that vLLM up to 0.29 serves by default, in tokens: factor x original with YaRN."""
        return self.scaled(self.length)

    def scaled(self, length: int | None) -> int | None:
        """What the scaling makes of a length in tokens; factor x original with YaRN, whatever the length."""
        rotary = self.rotary[0]
        factor = rotary.factor
        if factor is None or not 1 <= factor < 1 << 20:
            return length
        if rotary.type == "yarn" and rotary.original is not None:
            return int(rotary.original * factor)
        if rotary.type in MULTIPLIED and length and not self.text_type.startswith(NOT_MULTIPLIED):
            return int(length * factor)
        return length

    @property
    def stated_context(self) -> int | None:
        """The same of vLLM from 0.30 on: with YaRN the file's own length, which has the factor already."""
        return self.length if self.rotary[0].type == "yarn" else self.context


def read(config: dict[str, Any]) -> Layout:
    """The layout of a config.json.

    Args:
        config: the file's content; any value may be wrong.
    """
    path, text = _language_model(config)
    return Layout(config=config, path=path, text=text, rotary=tuple(_rotary(path, text)))


def _lengths(part: dict[str, Any]) -> dict[str, int]:
    """The lengths that a part states under names that engines read, in their order."""
    stated = {name: count(part.get(name)) for name in (LENGTH, *OTHER_NAMES[LENGTH]) if name != UNREAD_LENGTH}
    return {name: tokens for name, tokens in stated.items() if tokens is not None}


def _named(part: dict[str, Any], name: str) -> tuple[str, Any]:
    if name == LENGTH and (lengths := _lengths(part)):
        # vLLM's derive_max_model_len_and_key: the smallest, but for the one that wins over all.
        key = OWN_LENGTH if OWN_LENGTH in lengths else min(lengths, key=lambda one: lengths[one])
        return key, lengths[key]
    for one in (name, *OTHER_NAMES.get(name, ())):
        if part.get(one) is not None:
            return one, part[one]
    return name, None


def _language_model(config: dict[str, Any]) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The part that describes the language model, at most two levels down."""
    path: tuple[str, ...] = ()
    part = config
    for _ in range(2):
        inner = next((name for name in NESTED if _describes(part.get(name))), None)
        if inner is None:
            break
        path, part = (*path, inner), part[inner]
    return path, part


def _describes(part: Any) -> bool:
    """Whether a part can be a language model's: it states a type or sizes, or has such a part itself."""
    if not isinstance(part, dict):
        return False
    names = ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads")
    return any(_named(part, name)[1] is not None for name in names) or any(_describes(part.get(one)) for one in NESTED)


def _rotary(path: tuple[str, ...], text: dict[str, Any]) -> Iterator[Rotary]:
    """The rotary embeddings, that of the layers with full attention first."""
    # A rope_scaling that is there and not empty replaces rope_parameters as a whole.
    place = next((name for name in (SCALING, PARAMETERS) if isinstance(text.get(name), dict) and text[name]), "")
    found = text.get(place, {})
    if per_layer(found):
        parts = {name: part for name, part in found.items() if isinstance(part, dict)}
        for name in sorted(parts, key=lambda name: name != "full_attention"):
            yield _one(path, text, name, (place, name), parts[name])
        return
    bases = _bases(text)
    window = next((name for name in OF_WINDOWS if number(text.get(name)) is not None), "")
    if bases:
        only = text.get("yarn_only_types")
        for name in sorted(bases, key=lambda name: name != "full_attention"):
            here = not isinstance(only, list) or name in only
            one = _one(path, text, name, (place,) if place and here else (), found if here else {})
            yield Rotary(**{**vars(one), "base": bases[name], "base_path": (*path, THETA)})
    elif window:
        yield _one(path, text, "full_attention", (place,) if place else (), found)
        one = _one(path, text, "sliding_attention", (), {})
        yield Rotary(**{**vars(one), "base": number(text[window]), "base_path": (*path, window)})
    else:
        yield _one(path, text, ALL, (place,) if place else (), found)


def _bases(text: dict[str, Any]) -> dict[str, float]:
    """The bases by type of layer, of a model that lists one for each layer; empty for others."""
    bases, types = text.get(THETA), text.get("layer_types")
    if not isinstance(bases, list) or not isinstance(types, list):
        return {}
    pairs = [(str(name), number(base)) for name, base in zip(types, bases, strict=False)]
    return {name: base for name, base in reversed(pairs) if base is not None}


def _one(
    path: tuple[str, ...], text: dict[str, Any], layers: str, inside: tuple[str, ...], parameters: dict[str, Any]
) -> Rotary:
    """One rotary embedding.

    Args:
        path: keys of the language model's part.
        text: that part.
        layers: the type of layer.
        inside: keys of the settings in that part; empty without any.
        parameters: the settings.
    """
    own_key, own = _named(parameters, THETA)
    key, base = _named(text, THETA)
    if inside and own is None and layers:
        key, base = next(((name, text[name]) for name in OF_WINDOWS if _of_window(text, layers, name)), (key, base))
    name = kind(parameters)
    scaling = _type(name) if isinstance(name, str) else "default"
    original = count(parameters.get(ORIGINAL)) or count(text.get(ORIGINAL))
    partial = number(_named(parameters, PARTIAL)[1]) or number(_named(text, PARTIAL)[1]) or 1.0
    where = (*path, *inside, own_key) if own is not None else (*path, key)
    return Rotary(
        layers=layers,
        path=(*path, *inside) if inside else (),
        base_path=where if (own if own is not None else base) is not None else (),
        type=scaling,
        base=number(own if own is not None else base),
        parameters=dict(parameters),
        original=original,
        partial=partial if 0 < partial <= 1 else 1.0,
    )


def _of_window(text: dict[str, Any], layers: str, name: str) -> bool:
    return layers == "sliding_attention" and number(text.get(name)) is not None
