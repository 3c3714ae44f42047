"""A model's layers, in groups that are alike, from its config.json: what each caches, and which weights it has.

The keys are those of transformers' configuration classes and of vLLM's model files up to 0.33. What a config describes
in a way that is not known is named, so that a plan can say which of its bytes are certain.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Literal

from dca.config import classes, config_rules, layout
from dca.config.layout import Layout
from dca.foundation.documents import Value

MOST = 1 << 32
Kind = Literal["full", "latent", "window", "chunk", "state", "none"]
MOST_LAYERS = 4096
"""Layers of a model are looked at one by one up to this many."""
FULL_EVERY = 4
"""Models with chunked attention have full attention in every fourth layer, when their config does not list them."""


class State(Value):
    """The recurrent state of linear attention; heads and elements as in the config.

    Args:
        key_heads: heads of queries and keys.
        value_heads: heads of values, each with a state of its own.
        key_dim: elements of a key head.
        value_dim: elements of a value head.
        kernel: width of the convolution before it.
        width: bytes of one number of the state.
        rank: elements between the two halves of what makes the steps of time; 0 without such halves.
        gates: projections as wide as the values beside theirs.
    """

    key_heads: int
    value_heads: int
    key_dim: int
    value_dim: int
    kernel: int = 4
    width: int = 4
    rank: int = 0
    gates: int = 1


class Layers(Value):
    """Layers that are alike.

    Args:
        count: how many.
        kind: what they cache: every token (`full`), one compressed vector for every token (`latent`), the tokens of a
            `window` or of a `chunk`, a `state` that does not grow, or nothing.
        copies: sets of weights that these layers share; 0 when each layer has its own.
        heads: query heads.
        kv_heads: key heads, and as many value heads.
        key_dim: elements of a query or key head.
        value_dim: elements of a value head.
        span: tokens of the window or chunk; 0 without one.
        taken: elements that queries, keys and values are made of; 0 for those of a hidden state.
        cached: whether they have a cache of their own; others read an earlier layer's, or keep nothing.
        gated: whether attention's output has a gate as wide as the queries.
        keys_are_values: whether one projection gives keys and values.
        query_rank: elements of the compressed query; 0 when queries are not compressed.
        latent: elements of the compressed keys and values.
        rotary: elements of the rotary part beside it.
        expanded: whether compressed keys and values are cached expanded for every head.
        index: bytes of a token's key for a sparse index; 0 without one.
        state: the recurrent state; None without one.
        inner: elements between the two halves of a dense MLP; 0 without one.
        matrices: matrices of each MLP or expert: 3 when it has a gate, else 2.
        experts: experts of a mixture; 0 without one.
        chosen: experts that compute each token.
        expert_inner: elements between the two halves of one expert.
        expert_hidden: elements that an expert takes and gives; 0 for those of a hidden state.
        shared_inner: elements between the two halves of the experts that compute every token.
    """

    count: int = 1
    kind: Kind = "full"
    copies: int = 0
    heads: int = 0
    kv_heads: int = 0
    key_dim: int = 0
    value_dim: int = 0
    span: int = 0
    taken: int = 0
    cached: bool = True
    gated: bool = False
    keys_are_values: bool = False
    query_rank: int = 0
    latent: int = 0
    rotary: int = 0
    expanded: bool = False
    index: int = 0
    state: State | None = None
    inner: int = 0
    matrices: int = 3
    experts: int = 0
    chosen: int = 0
    expert_inner: int = 0
    expert_hidden: int = 0
    shared_inner: int = 0


class Found(Value):
    """The layers of a model.

    Args:
        groups: layers that are alike.
        places: numbers of the layers that have a part with linear weights: attention, state, dense, experts, shared.
        unknown: parts of the model that the formulas do not know, in words.
    """

    groups: tuple[Layers, ...]
    places: dict[str, tuple[int, ...]] = {}
    unknown: tuple[str, ...] = ()


def plain(found: Layout) -> dict[str, Any]:
    """The part of a config that describes the language model: its numbers under their usual names, and its class's own.

    What the file does not state is what its class takes for it; `null` is stated.
    """
    usual = {name: found.get(name) for name in layout.OTHER_NAMES}
    # Some files keep the sizes of attention and of MLPs in objects of their own.
    for key in ("attn_config", "ffn_config"):
        own = found.text.get(key)
        inner: dict[str, Any] = own if isinstance(own, dict) else {}
        for name, others in layout.OTHER_NAMES.items():
            value = next((inner[one] for one in (name, *others) if inner.get(one) is not None), None)
            usual[name] = usual[name] if usual[name] is not None else value
    usual["num_hidden_layers"] = found.count("num_hidden_layers")
    stated = {**found.text, **{name: value for name, value in usual.items() if value is not None}}
    config = {**classes.defaults(found.text_type), "model_type": found.text_type, **stated}
    return {**config, **_of_states(config)} if only_states(config) else {**config, **_of_shared(config)}


UNSTATED_LENGTH = 2048
"""max_model_len that engines take for a model whose config.json does not state a length."""


def only_states(config: dict[str, Any]) -> bool:
    """Whether all layers are recurrent (Mamba, Mamba2): a state's size is stated, and no attention."""
    attends = (
        "num_key_value_heads",
        "attn_layer_period",
        "attn_layer_indices",
        "hybrid_override_pattern",
        "rope_theta",
    )
    mixed = any(config.get(key) is not None for key in (*attends, "layer_types", "layers_block_type"))
    return _count(config, "state_size") > 0 and _count(config, "conv_kernel") > 0 and not mixed


def _of_states(config: dict[str, Any]) -> dict[str, Any]:
    """A model of recurrent layers alone, in the words of those that have both."""
    hidden, size = _count(config, "hidden_size"), _count(config, "state_size")
    expand = config_rules.number(config.get("expand")) or 2
    heads = _count(config, "num_attention_heads")
    inner = int(expand * hidden) if heads else _count(config, "intermediate_size") or int(expand * hidden)
    own: dict[str, Any] = {
        "layer_types": ["mamba"] * min(_count(config, "num_hidden_layers"), MOST_LAYERS),
        "mamba_d_state": size,
        "mamba_d_conv": _count(config, "conv_kernel"),
        "intermediate_size": None,
        layout.LENGTH: _count(config, layout.LENGTH) or UNSTATED_LENGTH,
    }
    if heads:
        dim = _count(config, "head_dim") or inner // heads
        groups = _count(config, "n_groups") or 1
        return {**own, "mamba_n_heads": heads, "mamba_d_head": dim, "mamba_n_groups": groups, "head_dim": dim}
    # The first Mamba has a state for each channel and no heads: ranks share its channels.
    channels = math.gcd(inner, CHANNELS) or 1
    rank = _count(config, "time_step_rank") or math.ceil(hidden / UNIT)
    return {
        **own,
        "mamba_inner": inner,
        "mamba_dt_rank": rank,
        "num_attention_heads": channels,
        "head_dim": max(2, inner // channels),
    }


CHANNELS, UNIT = 64, 16
"""Ranks can share the channels of the first Mamba as they share so many heads; its rank is this part of a width."""


def _of_shared(config: dict[str, Any]) -> dict[str, Any]:
    """A model in which some layers use the same blocks of attention and MLP: the sizes that its class derives."""
    if not _count(config, "num_mem_blocks"):
        return {}
    count, hidden, heads = (
        _count(config, name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads")
    )
    listed, own = config.get("hybrid_layer_ids"), _count(config, "n_mamba_heads") or 1
    types = ["hybrid" if index in listed else "mamba" for index in range(min(count, MOST_LAYERS))] if listed else None
    # Attention takes a hidden state and the embedding beside it.
    taken = _count(config, "attention_hidden_size") or 2 * hidden
    dim = _count(config, "mamba_headdim") or _count(config, "mamba_expand") * hidden // own
    return {
        "layers_block_type": config.get("layers_block_type") or types,
        "attention_hidden_size": taken,
        "head_dim": taken // (heads or 1),
        "mamba_n_heads": own,
        "mamba_d_head": dim,
        "mamba_n_groups": _count(config, "mamba_ngroups") or 1,
    }


def of(config: dict[str, Any]) -> Found:
    """The layers that a config describes.

    Args:
        config: what `plain` returns, with a usable num_hidden_layers.
    """
    count = min(_count(config, "num_hidden_layers"), MOST_LAYERS)
    unknown: dict[str, None] = {}
    kinds = _kinds(config, count, unknown)
    at = _at(config, count)
    widths = _widths(config, count)
    own = _cached(config, count)
    each = []
    for index in range(count):
        here = at(index)
        width = widths(index) if here is config else _widths(here, count)(index)
        layer = _layer(here, index, kinds[index]).model_copy(update={"cached": own(index), **width})
        each.append(layer)
    found = Counter(part for layer in each for part in _parts(config, layer))
    for key, what in UNKNOWN.items():
        if config.get(key):
            unknown[what] = None
    for key in SEVERAL:
        if isinstance(value := config.get(key), list) and len(value) < count:
            unknown[f"experts of several kinds ({key})"] = None
    groups = tuple(group.model_copy(update={"count": number}) for group, number in found.items())
    having: dict[str, Callable[[Layers], bool]] = {
        "attention": lambda layer: layer.kind not in ("state", "none"),
        "state": lambda layer: layer.kind == "state",
        "dense": lambda layer: layer.inner > 0,
        "experts": lambda layer: layer.experts > 0,
        "shared": lambda layer: layer.shared_inner > 0,
    }
    places = {part: tuple(index for index, layer in enumerate(each) if has(layer)) for part, has in having.items()}
    return Found(groups=groups, places=places, unknown=tuple(unknown))


UNKNOWN = {
    "compress_ratios": "compressed attention (compress_ratios)",
    "sliding_window_list": "windows of different sizes (sliding_window_list)",
    "engram_config": "n-gram memory (engram_config)",
    "cross_attention_layers": "keys and values of images (cross_attention_layers)",
    "is_encoder_decoder": "an encoder (is_encoder_decoder)",
}
"""Keys of architectures that the formulas do not know."""
SEVERAL = ("num_experts", "moe_intermediate_size")
"""Keys with one number for each kind of experts, in models that have several."""
EACH = (
    "num_attention_heads",
    "num_key_value_heads",
    "intermediate_size",
    "moe_intermediate_size",
    "num_experts",
    "num_experts_per_tok",
    "n_shared_experts",
    "num_shared_experts",
    "num_shared_expert",
)
"""Keys for which some models have a number for each layer."""


def _at(config: dict[str, Any], count: int) -> Callable[[int], dict[str, Any]]:
    """The config of a layer, with the layer's own numbers where the file has one for each."""
    # Of kinds of experts, the first are the text's.
    lists = {key: value for key in EACH if isinstance(value := config.get(key), list) and value}
    if not lists:
        return lambda _: config
    return lambda index: {
        **config,
        **{key: value[index] if len(value) >= count else value[0] for key, value in lists.items()},
    }


def _parts(config: dict[str, Any], layer: Layers) -> tuple[Layers, ...]:
    """A layer of the config as the layers that the formulas know."""
    if config.get("model_type") in classes.load().twice:
        return layer, layer.model_copy(update={"experts": 0, "expert_inner": 0, "shared_inner": 0})
    if layer.kind == "full" and _count(config, "mamba_d_ssm"):
        # Attention and a state side by side, before one MLP.
        state = _state(config, layer.heads)
        return layer, Layers(kind="state", heads=layer.heads, state=state)
    if layer.kind == "full" and _count(config, "num_mem_blocks"):
        return layer, Layers(kind="state", heads=layer.heads, state=_state(config, layer.heads)), _own_of(config, layer)
    return (layer,)


def _own_of(config: dict[str, Any], layer: Layers) -> Layers:
    """What a layer has for itself of a block that it shares: a matrix behind it, and adapters of low rank."""
    hidden, rank = _count(config, "hidden_size"), _count(config, "adapter_rank") or 128
    weights = hidden * hidden
    if config.get("use_shared_mlp_adapter") is not False:
        weights += rank * (hidden + 2 * layer.inner)
    if config.get("use_shared_attention_adapter") is True:
        weights += 3 * rank * 2 * layer.taken
    return Layers(kind="none", inner=weights // (hidden or 1), matrices=1)


# --- which layer caches what -----------------------------------------------------------------------------------------

NAMED: dict[str, Kind] = {
    "full_attention": "full",
    "sparse_attention": "full",
    "indexed_attention": "full",
    "attention": "full",
    "global_attention": "full",
    "sliding_attention": "window",
    "local_attention": "window",
    "chunked_attention": "chunk",
    "linear_attention": "state",
    "lightning_attention": "state",
    "mamba": "state",
    "mamba2": "state",
    "recurrent": "state",
    "hybrid": "full",
    "hybrid_sliding": "window",
    "conv": "state",
    "kda": "state",
    "mlp": "none",
    "moe": "none",
}
"""What vLLM caches for the names in `layer_types` and `layers_block_type`."""
LETTERS: dict[str, Kind] = {"M": "state", "*": "full", "-": "none", "E": "none"}
"""Letters of `hybrid_override_pattern`: Mamba, attention, MLP, experts."""


def _named(name: str) -> Kind | None:
    """The kind of layer that a config names; None for a name that is not known."""
    # Engines keep every key of a layer that reads few of them, whoever made its index.
    return NAMED.get(name, "full" if name.endswith("_sparse_attention") else None)


def _dense_among_experts(config: dict[str, Any]) -> int:
    """Width of the dense layers of a model whose intermediate_size is that of its experts, the shared one included."""
    return _count(config, "intermediate_size_mlp")


def _kinds(config: dict[str, Any], count: int, unknown: dict[str, None]) -> list[Kind]:
    """What each layer caches."""
    expanded = config.get("model_type") in classes.load().expanded
    full: Kind = "latent" if _count(config, "kv_lora_rank") and not expanded else "full"
    types = next((config[key] for key in ("layer_types", "layers_block_type") if _listed(config, key, count)), None)
    kinds: list[Kind]
    if types is not None:
        for name in dict.fromkeys(map(str, types[:count])):
            if _named(name) is None:
                unknown[f"layers of the type {config_rules.short(name)}"] = None
        kinds = [_named(str(name)) or "full" for name in types[:count]]
    elif isinstance(letters := config.get("hybrid_override_pattern"), str) and len(letters) >= count:
        kinds = [LETTERS.get(letter, "full") for letter in letters[:count]]
    else:
        kinds = [_kind(config, index) for index in range(count)]
    if _listed(config, "block_configs", count):
        kinds = ["none" if _no_op(block, "attention") else "full" for block in config["block_configs"][:count]]
    return [full if kind == "full" else kind for kind in kinds]


def _kind(config: dict[str, Any], index: int) -> Kind:
    """What a layer caches, in configs that do not list their layers' types."""
    linear = config.get("linear_attn_config")
    if isinstance(linear, dict) and isinstance(listed := linear.get("kda_layers"), list):
        return "state" if index + 1 in listed else "full"
    if isinstance(listed := config.get("attn_type_list"), list) and index < len(listed):
        return "full" if listed[index] == 1 else "state"
    if every := _count(config, "full_attention_interval"):
        return "full" if (index + 1) % every == 0 else "state"
    if (step := _count(config, "mamba_step")) and config.get("mamba_enabled") is not False:
        return "full" if index % step == step // 2 else "state"
    if period := _count(config, "attn_layer_period"):
        return "full" if index % period == _count(config, "attn_layer_offset") else "state"
    if isinstance(listed := config.get("attn_layer_indices"), list):
        return "full" if index in listed else "state"
    if isinstance(listed := config.get("hybrid_layer_pattern"), list) and index < len(listed):
        return "window" if listed[index] == 1 else "full"
    if _count(config, "attention_chunk_size") and _dense_among_experts(config):
        plain = config.get("no_rope_layers")
        full = plain[index] == 0 if isinstance(plain, list) and index < len(plain) else (index + 1) % FULL_EVERY == 0
        return "full" if full else "chunk"
    return _windowed(config, index)


def _windowed(config: dict[str, Any], index: int) -> Kind:
    if not _count(config, "sliding_window") or config.get("use_sliding_window") is False:
        return "full"
    if config.get("use_sliding_window") is True and (first := config_rules.number(config.get("max_window_layers"))):
        return "window" if index >= first else "full"
    # Some models spell the pattern: LLLG, for local and global.
    if isinstance(letters := config.get("sliding_window_pattern"), str) and letters:
        return "window" if letters[index % len(letters)] == "L" else "full"
    if every := _count(config, "sliding_window_pattern"):
        return "full" if (index + 1) % every == 0 else "window"
    return "window"


def _cached(config: dict[str, Any], count: int) -> Callable[[int], bool]:
    """Whether a layer has a cache of its own: the last ones may read that of an earlier layer, or every second one."""
    if encodes(config):
        return lambda _: False
    if shared := _count(config, "num_kv_shared_layers"):
        return lambda index: index < count - shared
    if isinstance(crossed := config.get("cross_attention_layers"), list):
        # They attend to images alone.
        return lambda index: index not in crossed
    if config.get("use_cla") is True and (factor := _count(config, "cla_share_factor")):
        return lambda index: index % factor == 0
    return lambda _: True


def encodes(config: dict[str, Any]) -> bool:
    """Whether tokens see those after them too, so that no layer keeps anything for later ones."""
    whole = config.get("is_causal") is False or config.get("use_bidirectional_attention") is True
    return whole or (config.get("model_type") in classes.load().encoders and config.get("is_decoder") is not True)


# --- the weights of a layer ------------------------------------------------------------------------------------------


def _layer(config: dict[str, Any], index: int, kind: Kind) -> Layers:
    """Attention of a layer."""
    heads = _count(config, "num_attention_heads") or 1
    dim = _count(config, "head_dim") or _count(config, "hidden_size") // heads
    gated, keys = config.get("attn_output_gate") is True, _count(config, "num_key_value_heads") or heads
    if config.get("multi_query") is True and config.get("new_decoder_architecture") is not True:
        keys = 1
    if kind == "none":
        return Layers(kind=kind)
    if kind == "state":
        return Layers(kind=kind, heads=heads, gated=gated, state=_state(config, heads))
    if kind == "latent" or (kind == "full" and _count(config, "kv_lora_rank")):
        plain, rotary = _count(config, "qk_nope_head_dim"), _count(config, "qk_rope_head_dim")
        return Layers(
            kind="latent",
            expanded=kind == "full",
            heads=heads,
            kv_heads=1,
            key_dim=plain + rotary,
            value_dim=_count(config, "v_head_dim") or plain,
            query_rank=_count(config, "q_lora_rank"),
            latent=_count(config, "kv_lora_rank"),
            rotary=rotary,
            # A key of 8-bit numbers with a 32-bit scale.
            index=_count(config, "index_head_dim") + 4 if config.get("index_topk") else 0,
        )
    span, single = 0, False
    values = _count(config, "v_head_dim")
    if kind == "window":
        span = _count(config, "sliding_window")
        heads = _count(config, "swa_num_attention_heads") or heads
        keys, dim = _count(config, "swa_num_key_value_heads") or keys, _count(config, "swa_head_dim") or dim
        values = _count(config, "swa_v_head_dim") or values
    elif kind == "chunk":
        span = _count(config, "attention_chunk_size")
    else:
        dim = _count(config, "global_head_dim") or dim
        keys = _count(config, "num_global_key_value_heads") or keys
        single = config.get("attention_k_eq_v") is True
    if _listed(config, "block_configs", index + 1):
        own = config["block_configs"][index].get("attention")
        group = _count(own, "n_heads_in_group") if isinstance(own, dict) else 0
        keys = heads // group if group else (_count(own, "num_key_value_heads") if isinstance(own, dict) else 0) or keys
    # A window as long as the longest request cuts nothing.
    whole = kind == "window" and span >= (_count(config, layout.LENGTH) or span + 1)
    return Layers(
        kind="full" if whole else kind,
        heads=heads,
        kv_heads=keys,
        key_dim=dim,
        value_dim=values or dim,
        span=0 if whole else span,
        gated=gated,
        keys_are_values=single,
        taken=_count(config, "attention_hidden_size") if _count(config, "num_mem_blocks") else 0,
    )


def _state(config: dict[str, Any], heads: int) -> State:
    """The recurrent state of linear attention, by the keys of each family."""
    linear = config.get("linear_attn_config")
    width = _state_width(config)
    if isinstance(linear, dict):
        own, dim = _count(linear, "num_heads") or heads, _count(linear, "head_dim") or 128
        kernel = _count(linear, "short_conv_kernel_size") or 4
        return State(key_heads=own, value_heads=own, key_dim=dim, value_dim=dim, kernel=kernel, width=width)
    if _count(config, "linear_num_value_heads"):
        return State(
            key_heads=_count(config, "linear_num_key_heads"),
            value_heads=_count(config, "linear_num_value_heads"),
            key_dim=_count(config, "linear_key_head_dim"),
            value_dim=_count(config, "linear_value_head_dim"),
            kernel=_count(config, "linear_conv_kernel_dim") or 4,
            width=width,
        )
    if kernel := _count(config, "conv_L_cache"):
        # A short convolution between two gates: its last tokens are all that is kept.
        wide = _count(config, "conv_dim") or _count(config, "hidden_size")
        return State(key_heads=0, value_heads=1, key_dim=0, value_dim=wide, kernel=kernel, gates=2)
    size = _first(config, "mamba_d_state", "ssm_state_size", "state_size") or 128
    if _count(config, "mamba_expand") and not _first(config, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads"):
        # The first Mamba: one state for each channel, and no heads.
        hidden = _count(config, "hidden_size")
        inner = _count(config, "mamba_expand") * hidden
        return _channels(config, inner, size, width)
    if inner := _count(config, "mamba_inner"):
        return _channels(config, inner, size, width)
    own = _first(config, "mamba_n_heads", "mamba_num_heads")
    dim = _first(config, "mamba_d_head", "mamba_head_dim")
    dim = dim or (_count(config, "head_dim") if _count(config, "mamba_step") else 0)
    if own and dim:
        groups = _first(config, "mamba_n_groups", "n_groups") or 1
        kernel = _first(config, "mamba_d_conv", "conv_kernel") or 4
        return State(key_heads=groups, value_heads=own, key_dim=size, value_dim=dim, kernel=kernel, width=width)
    dim = _count(config, "head_dim") or _count(config, "hidden_size") // heads
    return State(key_heads=heads, value_heads=heads, key_dim=dim, value_dim=dim, kernel=1, width=width)


def _state_width(config: dict[str, Any]) -> int:
    """Bytes of a number of the state: as the file states it, else as the engine takes it for the model's class."""
    stated = config.get("mamba_ssm_dtype") or config.get("mamba_ssm_cache_dtype")
    if stated is None:
        own = config.get("model_type") in classes.load().float_states
        return 4 if own or isinstance(config.get("linear_attn_config"), dict) else 2
    return 2 if str(stated) in ("bfloat16", "float16") else 4


def _channels(config: dict[str, Any], inner: int, size: int, width: int) -> State:
    """The state of the first Mamba: a vector for each channel."""
    kernel, rank = _count(config, "mamba_d_conv") or 4, _count(config, "mamba_dt_rank")
    rank = rank or math.ceil(_count(config, "hidden_size") / UNIT)
    return State(key_heads=0, value_heads=1, key_dim=size, value_dim=inner, kernel=kernel, width=width, rank=rank)


def _widths(config: dict[str, Any], count: int) -> Callable[[int], dict[str, int]]:
    """The MLP of a layer: its width, and its experts."""
    experts = 0 if config.get("is_moe") is False else _count(config, "num_experts")
    inner, hidden = _inner(config), _count(config, "hidden_size")
    expert = _count(config, "moe_intermediate_size") or inner
    shared = _shared(config, expert)
    kind, known = config.get("model_type"), classes.load()
    ungated = kind in known.ungated
    plain = config.get("mlp_hidden_act", config.get("hidden_act")) in ("relu2", "gelu_new") and kind not in known.gated
    matrices = 2 if ungated or plain else 3
    # Some families leave it to the class, which takes four times the hidden size.
    inner = inner or (4 * hidden if ungated else 0)
    mixed = _mixed(config, count)
    both = config.get("enable_moe_block") is True or config.get("model_type") in classes.load().twice
    dense = {"inner": _first(config, "intermediate_size_mlp", "dense_intermediate_size") or inner, "matrices": matrices}
    mixture = {
        "experts": experts,
        "chosen": _count(config, "num_experts_per_tok") or 1,
        "expert_inner": expert,
        "expert_hidden": _first(config, "moe_latent_size", "routed_expert_hidden_size"),
        "shared_inner": shared,
        "matrices": matrices,
        "inner": inner if both else 0,
    }
    letters, blocks = config.get("hybrid_override_pattern"), config.get("layers_block_type")
    # Some models have attention, MLPs and experts in layers of their own.
    alone = (
        {"mlp": dense, "moe": mixture} if isinstance(blocks, list) and {"mlp", "moe"} & set(map(str, blocks)) else None
    )

    shared_blocks = _count(config, "num_mem_blocks")

    def of_layer(index: int) -> dict[str, int]:
        if shared_blocks and isinstance(blocks, list):
            return {**dense, "copies": shared_blocks} if index < len(blocks) and blocks[index] == "hybrid" else {}
        if isinstance(letters, str):
            return {"-": dense, "E": mixture}.get(letters[index], {}) if index < len(letters) else {}
        if alone is not None and isinstance(blocks, list):
            return alone.get(str(blocks[index]), {})
        if _listed(config, "block_configs", index + 1):
            return _block_width(config["block_configs"][index], hidden)
        return mixture if experts and (both or mixed(index)) else dense

    return of_layer


def _inner(config: dict[str, Any]) -> int:
    """Elements between the two halves of a dense MLP, as the class takes what the file states."""
    inner = _count(config, "intermediate_size")
    if config.get("model_type") in classes.load().fused:
        return inner // 2
    if config.get("block_auto_adjust_ff_dim") is True:
        multiple = config_rules.number(config.get("block_ffn_dim_multiplier")) or 1.0
        unit = _count(config, "block_multiple_of") or 1
        wide = int(multiple * int(2 * (_count(config, "block_ff_dim") or inner) / 3))
        return math.ceil(wide / unit) * unit
    return inner


def _shared(config: dict[str, Any], expert: int) -> int:
    """Elements between the two halves of the experts that compute every token."""
    for key in ("shared_expert_intermediate_size", "moe_shared_expert_intermediate_size"):
        if _count(config, key):
            return _count(config, key)
    if number := _first(
        config, "n_shared_experts", "num_shared_experts", "num_shared_expert", "moe_num_shared_experts"
    ):
        return number * expert
    if _dense_among_experts(config):
        return _count(config, "intermediate_size")
    return _count(config, "shared_intermediate_size")


def _mixed(config: dict[str, Any], count: int) -> Callable[[int], bool]:
    """Whether a layer of a mixture has experts, and not a dense MLP."""
    if _listed(config, "mlp_layer_types", count):
        types = tuple(map(str, config["mlp_layer_types"]))
        return lambda index: types[index] != "dense"
    frequency = config.get("moe_layer_freq")
    if isinstance(frequency, list) and len(frequency) >= count:
        return lambda index: bool(frequency[index])
    listed = config.get("moe_layers")
    if isinstance(listed, list):
        named = tuple(listed)
        return lambda index: index in named
    if isinstance(listed := config.get("moe_layers_enum"), str) and re.fullmatch(r"\d+(,\d+)*", listed):
        own = {int(index) for index in listed.split(",")}
        return lambda index: index in own
    if period := _count(config, "expert_layer_period"):
        offset = _count(config, "expert_layer_offset")
        return lambda index: index % period == offset
    first = _first(config, "first_k_dense_replace", "num_dense_layers", "moe_layer_start_index")
    every = _first(config, "interleave_moe_layer_step", "decoder_sparse_step", "moe_layer_freq") or 1
    plain = config.get("mlp_only_layers")
    plain = plain if isinstance(plain, list) else []
    from_end = "interleave_moe_layer_step" in config or "decoder_sparse_step" in config
    return lambda index: index >= first and index not in plain and (index + from_end) % every == 0


def _block_width(block: dict[str, Any], hidden: int) -> dict[str, int]:
    """The MLP of one of `block_configs`, whose width is a multiple of the hidden size."""
    own = block.get("ffn")
    if not isinstance(own, dict) or _no_op(block, "ffn"):
        return {}
    if own.get("replace_with_linear"):
        return {"inner": hidden, "matrices": 1}
    multiple = config_rules.number(own.get("ffn_mult"))
    # As in DeciLM: two thirds of the multiple, and a multiple of 256.
    return {
        "inner": math.ceil(int(2 * multiple * hidden / 3) / 256) * 256 if multiple else _count(own, "intermediate_size")
    }


def _no_op(block: Any, part: str) -> bool:
    own = block.get(part) if isinstance(block, dict) else None
    return isinstance(own, dict) and bool(own.get("no_op"))


# --- towers beside the text ------------------------------------------------------------------------------------------


class Tower(Value):
    """A part for images or sound beside the text part.

    Args:
        weights: about how many parameters it has.
        width: elements of its activations for each token that it gives to the text part: of the widest of its layers,
            for as many patches as make a token.
        any_size: whether it takes images of any size, each as many tokens as it needs.
    """

    weights: int
    width: int
    any_size: bool = False


def towers(found: Layout) -> Iterator[tuple[str, Tower]]:
    """The parts for images and sound beside the text part, each with its key; one without weights is not known."""
    beside = found.config
    for inner in found.path or ("",):
        for key in BETWEEN:
            if isinstance(part := beside.get(key), dict) and _sized(part):
                yield key, _between(part)
        for key, part in beside.items():
            if key == inner or not part or not SIGHT.search(str(key)) or ASIDE.search(str(key)):
                continue
            if isinstance(part, dict):
                yield key, _tower(_sized(part) or _by_name(part) or part)
            elif isinstance(part, str) and OF_ANOTHER.search(str(key)):
                yield key, _tower(_by_name({key: part}))
        beside = beside.get(inner, {})
    if undescribed := classes.load().undescribed.get(found.text_type):
        yield found.text_type, _tower(undescribed.model_dump())


SIGHT = re.compile(r"vision|visual|image|img|vit_|audio|speech|sound|video|^encoder_config$")
"""Keys of parts for images and sound; files have many names for them."""
ASIDE = re.compile(r"lora|token(?!izer)|vocoder|codec|talker")
"""Keys that are no such part, or of one that writes."""
BETWEEN = ("qformer_config", "projector_config")
"""Keys of a transformer between such a part and the text, which asks it with learned queries."""
OF_ANOTHER = re.compile(r"_(tower|encoder|model_name|model_id|backbone)$")
"""Keys whose text is the name of another model."""
WIDE = ("embed_dim", "hidden_size", "d_model", "vt_hidden_size", "width", "attention_dim")
DEEP = (
    "depth",
    "num_hidden_layers",
    "encoder_layers",
    "num_layers",
    "vt_num_hidden_layers",
    "layers",
    "num_blocks",
    "n_layer",
    "conf_num_hidden_layers",
)


def _wide(part: dict[str, Any]) -> int:
    """Elements of a part's hidden states; hidden_dim is also a width of parts without attention."""
    return _first(part, *WIDE) or (
        _count(part, "hidden_dim") if _first(part, "num_heads", "num_attention_heads") else 0
    )


def _sized(part: dict[str, Any]) -> dict[str, Any]:
    """A part, or what lies in it, that states its sizes; empty without any."""
    # Some towers state the text's width as hidden_size, and its own as embed_dim.
    if _wide(part) and _first(part, *DEEP):
        return part
    inner = (_sized(value) for value in part.values() if isinstance(value, dict))
    return next(filter(None, inner), {})


def _by_name(part: dict[str, Any]) -> dict[str, Any]:
    """The sizes of the model that a part only names; empty for one that is not known."""
    names = [value for value in part.values() if isinstance(value, str)]
    found = (sizes for text, sizes in classes.load().towers.items() for name in names if text in name.lower())
    return next((sizes.model_dump() for sizes in found), {})


CONVOLVED = ("conv_kernel_size", "conv_depthwise_kernel_size", "conf_conv_kernel_size", "ext_pw_out_channel")
"""Keys of parts for sound whose layers have a convolution between two MLPs (conformers)."""
POSITIONED = (
    "position_embeddings_type",
    "max_pos_emb",
    "rope_parameters",
    "bias_max_distance",
    "relative_attention_bias_args",
)
"""Keys that say how such a layer knows positions; without one, it has a matrix for their distances."""


def _tower(part: dict[str, Any]) -> Tower:
    """A transformer over patches or pieces of sound, with its projection to the text's hidden size."""
    known, kind = classes.load(), part.get("model_type")
    wide, deep = _wide(part), _first(part, *DEEP) + _count(part, "num_global_layers")
    inner = _first(part, "intermediate_size", "encoder_ffn_dim", "vt_intermediate_size", "linear_units")
    if not wide or not deep:
        return Tower(weights=0, width=0)
    inner = inner or int(wide * (config_rules.number(part.get("mlp_ratio")) or _count(part, "feedforward_mult") or 4))
    gated = 3 if str(part.get("hidden_act", "")) == "silu" or kind in known.gated_parts else 2
    patches = _first(part, "spatial_merge_size", "pooling_kernel_size") or 1
    merged = wide * (_first(part, "spatial_merge_size") or 1) ** 2
    out = _first(part, "out_hidden_size") or (_count(part, "hidden_size") if _count(part, "embed_dim") else merged)
    listed = part.get("deepstack_visual_indexes")
    mergers = 1 + (len(listed) if isinstance(listed, list) else 0)
    joined = mergers * (merged * merged + merged * out)
    if kind in known.joining_parts:
        joined, inner = joined + 3 * out * inner, out
    layer = 2 * wide * sum(_attended(part, wide)) + gated * wide * inner
    if any(key in part for key in CONVOLVED):
        layer = _convolved(part, wide, inner)
    return Tower(
        weights=deep * layer + joined + 2 * _count(part, "position_embedding_size") * wide,
        width=patches**2 * 2 * (wide + inner),
        any_size="spatial_merge_size" in part,
    )


def _attended(part: dict[str, Any], wide: int) -> tuple[int, int]:
    """Elements of the queries of a part's layer, and of its keys."""
    heads = _first(part, "num_attention_heads", "num_heads", "encoder_attention_heads")
    dim = _count(part, "head_dim") or (wide // heads if heads else 0)
    queries = heads * dim or wide
    return queries, _count(part, "num_key_value_heads") * dim or queries


def _convolved(part: dict[str, Any], wide: int, inner: int) -> int:
    """Weights of a conformer's layer: attention, two MLPs, a convolution between pointwise ones, the first gated."""
    gated = "ext_pw_out_channel" in part
    relative = part.get("position_embeddings_type") == "relative" or not any(key in part for key in POSITIONED)
    square = 4 + relative + 3 * (_count(part, "conv_expansion_factor") or 1) + gated
    return square * wide * wide + 2 * (3 if gated else 2) * wide * inner


def _between(part: dict[str, Any]) -> Tower:
    """A transformer whose queries ask a part for images or sound in every few of its layers."""
    wide, deep = _wide(part), _first(part, *DEEP)
    inner, seen = _count(part, "intermediate_size") or 4 * wide, _count(part, "encoder_hidden_size") or wide
    crossed = deep // (_count(part, "cross_attention_frequency") or 1)
    weights = deep * (4 * wide * wide + 2 * wide * inner) + crossed * 2 * wide * (wide + seen)
    return Tower(weights=weights, width=2 * (wide + inner))


# --- numbers ---------------------------------------------------------------------------------------------------------


def _count(config: Any, key: str) -> int:
    number = config_rules.count(config.get(key)) if isinstance(config, dict) else None
    return number if number is not None and number <= MOST else 0


def _first(config: dict[str, Any], *keys: str) -> int:
    return next((number for key in keys if (number := _count(config, key))), 0)


def _listed(config: dict[str, Any], key: str, count: int) -> bool:
    value = config.get(key)
    return isinstance(value, list) and len(value) >= count
