"""The properties of a model that memory and rules depend on, from its config.json or from build/models."""

from __future__ import annotations

import contextlib
import fnmatch
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from dca import config as configs
from dca.catalogue import releases
from dca.catalogue.model_needs import UNSTATED_DTYPE
from dca.config import classes, compare, config_rules, folder, layout, models
from dca.config.layout import DCA, LENGTH, ORIGINAL, TABLE, Layout, Rotary
from dca.config.models import KnownModel
from dca.foundation import hub
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.serve import layers as kinds
from dca.serve import versions
from dca.serve.layers import Layers

# The backend's defaults, for configs without these keys.
CHUNK, LOCAL = 8192, 1024
FEW_VERTICALS, FEW_MORE = 30, 100
"""The backend uses 100 more vertical lines when a table says 30."""
MOST = 1 << 32
# Methods with 4 bits unless config.json says otherwise, and methods that pack weights into 32-bit words.
FOUR = ("awq", "gptq")
PACKED = ("awq", "gptq", "auto")
SCALES = {"mxfp4": (32, 8), "mxfp8": (32, 8), "nvfp4": (16, 8), "bitsandbytes": (64, 32)}
"""Weights that share a scale, and the scale's bits, of methods that do not say it in quantization_config."""
PARTS = {
    "attention": (
        "self_attn.q_proj",
        "self_attn.o_proj",
        "self_attn.qkv_proj",
        "mixer.q_proj",
        "attn.wq_b",
        "attn.wo_b",
        "self_attn",
    ),
    "state": (
        "linear_attn.in_proj_qkv",
        "linear_attn.in_proj_qkvz",
        "linear_attn.out_proj",
        "mixer.in_proj",
        "self_attn",
    ),
    "dense": ("mlp.gate_proj", "mlp.down_proj", "mlp.up_proj", "feed_forward.gate_proj", "mixer.up_proj"),
    "experts": (
        "mlp.experts.0.gate_proj",
        "block_sparse_moe.experts.0.w1",
        "feed_forward.experts",
        "mixer.experts.0.up_proj",
        "ffn.experts.0.gate_proj",
    ),
    "shared": (
        "mlp.shared_expert.gate_proj",
        "mlp.shared_experts.gate_proj",
        "block_sparse_moe.shared_experts.gate_proj",
        "feed_forward.shared_expert.gate_proj",
        "ffn.shared_experts.gate_proj",
    ),
}
"""Names of modules in a layer, by the part that they belong to."""
BESIDE = ("experts.0.gate_proj", "moe.experts.0.gate_proj")
"""The experts' names in layers that also have a dense MLP."""
LAYERS = ("model.layers", "model.language_model.layers", "language_model.model.layers", "backbone.layers")


class Quantized(Value):
    """How the weights of linear layers are stored.

    Args:
        method: `quant_method` in config.json; empty when they are not quantized.
        bits: bits of one weight.
        group: weights that share a scale, along the input; 0 when a whole column or tensor does.
        pack: weights in one 32-bit word; 1 when they are not packed.
        online: whether the engine quantizes them itself after loading.
        assumed: whether `bits` is an assumption, because config.json does not say it.
        scale: bits of a group's scale.
        zero: whether a group has a zero point, as wide as its weights.
        fp8_cache: whether the checkpoint has scales for keys and values in FP8.
        widths: bits of a weight with its share of a scale, on average over the layers, of the parts (`PARTS`) that are
            stored in another way, and of the output layer (`head`) if it is quantized.
    """

    method: str = ""
    bits: int = 16
    group: int = 0
    pack: int = 1
    online: bool = False
    assumed: bool = False
    scale: int = 16
    zero: bool = True
    fp8_cache: bool = False
    widths: tuple[tuple[str, float], ...] = ()

    def width(self, part: str) -> float:
        """Bits of a linear weight of a part, with its share of a scale."""
        usual = Quantized.model_fields["bits"].default if part == "head" else self.bits + scale_bits(self)
        return next((bits for name, bits in self.widths if name == part), usual)


class Shape(Value):
    """A model.

    Args:
        name: name of its folder, or in build/models.
        architectures: classes that implement it.
        layers: number of layers.
        hidden: elements of a hidden state.
        inner: elements between the two halves of a dense layer's MLP.
        heads: query heads of a layer.
        kv_heads: key heads of a layer, and as many value heads.
        head_dim: elements of one head.
        vocabulary: size of the vocabulary.
        tied: whether the output uses the embedding's weights.
        encoder: whether it reads whole texts and writes none: it has no output, and keeps nothing of earlier tokens.
        unlimited: whether nothing in it limits its length, because its layers have states alone.
        bias: whether queries, keys and values have a bias.
        experts: experts of a mixture; 0 for a dense model.
        chosen: experts that compute each token.
        expert_inner: elements between the two halves of one expert.
        rows: rows of the rotary table, one for each position.
        tables: bytes of the rotary tables of an engine without dual chunk attention; 0 when they have `rows` rows.
        length: tokens that the engine allows by default.
        length_key: the key of config.json that it takes them from; empty where there is none.
        model_type: that of the whole config.json.
        stated: the same of engines that take max_position_embeddings beside YaRN as it is; 0 where all take the same.
        unasked: tokens that engines serve by default of a model with longrope, which can do more; 0 for others.
        original: length above which dual chunk attention scales keys; 0 when it does not.
        chunk_size: chunk_size of dual chunk attention, in tokens.
        local_size: local_size of dual chunk attention, in tokens.
        dual_chunk: whether dual chunk attention is on, in an engine that has it itself.
        merged: whether a plugin computes it, in calls of the engine's own attention whose results are merged.
        vertical: largest number of columns in the sparse table; 0 without one.
        slash: largest number of diagonals in the sparse table; 0 without one.
        assumed: whether the table is not known, and `vertical` and `slash` are those of the largest known table.
        dtype: dtype of unquantized weights and of activations.
        quantized: how its weights are stored.
        known: its name in build/models; empty when it is not there.
        minimum_gb: GPU memory over all GPUs that its card requires at its full length; None without a number.
        hub: its name on a hub; empty when it is not known.
        groups: its layers, in groups that are alike; empty when all layers are as described above.
        tower: parameters of parts for images and sound, which are not quantized; about.
        tower_width: elements of their activations for each token that they give to the text part.
        any_image: whether they take images of any size, each as many tokens as it needs.
        per_layer: elements of a token's further embedding for each layer; 0 without one.
        unknown: parts that the formulas do not know, in words.
    """

    name: str
    architectures: tuple[str, ...]
    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool = False
    encoder: bool = False
    unlimited: bool = False
    bias: bool = False
    experts: int = 0
    chosen: int = 0
    expert_inner: int = 0
    rows: int
    tables: int = 0
    length: int
    length_key: str = LENGTH
    model_type: str = ""
    stated: int = 0
    unasked: int = 0
    original: int = 0
    chunk_size: int = 0
    local_size: int = 0
    dual_chunk: bool = False
    merged: bool = False
    vertical: int = 0
    slash: int = 0
    assumed: bool = False
    dtype: str = "bfloat16"
    quantized: Quantized = Quantized()
    known: str = ""
    minimum_gb: int | None = None
    hub: str = ""
    groups: tuple[Layers, ...] = ()
    tower: int = 0
    tower_width: int = 0
    any_image: bool = False
    per_layer: int = 0
    unknown: tuple[str, ...] = ()

    def __hash__(self) -> int:
        # Plans ask for the same sums thousands of times; equal models have these in common.
        return hash((self.name, self.layers, self.hidden, self.inner, self.quantized.method, self.tied))

    @property
    def parts(self) -> tuple[Layers, ...]:
        """Its layers, in groups that are alike."""
        return self.groups or (_uniform(self),)

    @property
    def cached(self) -> bool:
        """Whether any layer keeps something of earlier tokens; an encoder's keep nothing."""
        return any(group.kind == "state" or (group.kind != "none" and group.cached) for group in self.parts)

    @property
    def chunk(self) -> int:
        """Tokens of one chunk in the backend."""
        return self.chunk_size - self.local_size

    @property
    def sparse(self) -> bool:
        """Whether long prompts use sparse attention."""
        return self.dual_chunk and self.vertical > 0


@lru_cache(256)
def _uniform(shape: Shape) -> Layers:
    """All layers of a model without groups."""
    return Layers(
        count=shape.layers,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        key_dim=shape.head_dim,
        value_dim=shape.head_dim,
        inner=0 if shape.experts else shape.inner,
        experts=shape.experts,
        chosen=shape.chosen,
        expert_inner=shape.expert_inner,
    )


def read(model: str) -> tuple[Shape, dict[str, Any], Path | None]:
    """The model of a folder, a config.json, a name on a hub in the hub's cache, or a name of build/models.

    Returns:
        The model, the content of its config.json, and that file; None in place of the file for a name.

    Raises:
        DcaError: DCA-204, 206, 207 for a path, DCA-205 when its config.json lacks a number that memory depends on,
            DCA-214 for an unknown name, or one whose numbers are not known.
    """
    path = hub.cached(model) or Path(model)
    if not path.exists():
        if path.is_absolute() or model.startswith(".") or model.endswith((".json", "/")):
            raise DcaError(
                "DCA-204",
                f"{model} does not exist.",
                remedy="name a model's folder, its config.json, a name on a hub, or a model of build/models.",
            )
        if hub.is_name(model) and not models.named(model, models.load_all()):
            hub.located(path)
        known = models.find(model, models.load_all())
        config = config_of(known)
        return shape_of(config, known.name, known, hub=_hub(known)), config, None
    file = path / folder.CONFIG if path.is_dir() else path
    found = configs.layout_of(file)
    config = found.config
    # A single config.json may be in any folder, so the folder's name does not identify the model.
    near = str(path.absolute()) if path.is_dir() else ""
    matched = models.match(config, near, models.load_all())
    table = _inside(config)
    if file.name == folder.CONFIG and (own := configs.table_of(file.parent)) is not None:
        table = own
    name = matched.name if matched else configs.readable(file.absolute().parent if file.name == folder.CONFIG else file)
    if on_hub := hub.named(model):
        name = matched.name if matched else on_hub.name
        return shape_of(found, name, matched, table, hub=on_hub.repository), config, file
    return shape_of(found, Path(name).name, matched, table), config, file


def _hub(known: KnownModel) -> str:
    return f"{known.publisher}/{known.name}" if known.publisher else ""


def config_of(known: KnownModel) -> dict[str, Any]:
    """The known content of a known model's config.json.

    Raises:
        DcaError: DCA-214 when its sizes are not known.
    """
    if known.sizes is None:
        raise DcaError(
            "DCA-214",
            f"build/models does not know the sizes of {known.name}.",
            remedy="name its folder or config.json.",
        )
    config: dict[str, Any] = {
        "architectures": list(known.architectures),
        "model_type": known.model_type,
        "num_hidden_layers": known.layers,
        "hidden_size": known.hidden_size,
        "num_attention_heads": known.heads,
        "num_key_value_heads": known.kv_heads,
        "head_dim": known.head_dim,
        "rope_theta": known.rope_theta,
        LENGTH: known.max_position_embeddings,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        **known.sizes.model_dump(exclude_none=True),
    }
    if own := known.dual_chunk:
        config[LENGTH] = own.max_position_embeddings
        config[DCA] = own.model_dump(exclude={LENGTH})
    return config


def shape_of(
    config: dict[str, Any] | Layout, name: str, known: KnownModel | None = None, table: Any = None, *, hub: str = ""
) -> Shape:
    """The model that a config.json describes.

    Args:
        config: the file's content, or its layout.
        name: the model's name.
        known: the known model that it is; None if none.
        table: its sparse table; None without one.
        hub: its name on a hub.

    Raises:
        DcaError: DCA-205 when a number is missing.
    """
    found = config if isinstance(config, Layout) else layout.read(config)
    config = kinds.plain(found)
    towers = list(kinds.towers(found))
    dual = config.get(DCA)
    dual = dual if isinstance(dual, dict) and dual else {}
    experts = _widest(config, "num_experts")
    heads, hidden = _needed(config, name, "num_attention_heads"), _needed(config, name, "hidden_size")
    count = _needed(config, name, "num_hidden_layers")
    unstated = not any(one in config for one in (LENGTH, *layout.OTHER_NAMES[LENGTH]))
    rows = _rows(found, kinds.UNSTATED_LENGTH if unstated else _needed(config, name, LENGTH))
    layers = kinds.of(config)
    recurrent = all(group.kind == "state" for group in layers.groups)
    encoder = kinds.encodes(config)
    # Configs of searched architectures state some sizes only layer by layer.
    widest = max((group.inner or group.expert_inner for group in layers.groups), default=0)
    keys = max((group.kv_heads for group in layers.groups), default=0)
    expert_inner = max((group.expert_inner for group in layers.groups), default=0) if experts else 0
    vertical, slash, assumed = _entries(dual, table, known)
    kind = str(config.get("model_type", ""))
    shape = Shape(
        name=name,
        architectures=found.architectures,
        layers=count,
        hidden=hidden,
        heads=heads,
        inner=expert_inner or widest or (0 if recurrent else _needed(config, name, "intermediate_size")),
        kv_heads=config_rules.count(config.get("num_key_value_heads")) or keys or heads,
        head_dim=_head_dim(config) or _lacks_number(name, "head_dim"),
        vocabulary=_needed(config, name, "vocab_size"),
        tied=encoder or (found.tied if found.tied is not None else config.get("tie_word_embeddings") is True),
        encoder=encoder,
        unlimited=recurrent,
        bias=_bias(config, known, kind),
        experts=experts,
        chosen=max((group.chosen for group in layers.groups), default=0) if experts else 0,
        expert_inner=expert_inner,
        rows=rows if dual else found.scaled(rows) or rows,
        tables=0 if dual else sum(_table(found, rotary, rows) for rotary in found.rotary),
        length=rows if dual else found.context or rows,
        length_key="" if unstated else found.where(LENGTH)[-1],
        model_type=found.model_type,
        stated=0 if dual or found.stated_context == found.context else found.stated_context or 0,
        unasked=_unasked(found),
        original=config_rules.count(dual.get(ORIGINAL)) or 0,
        dual_chunk=bool(dual),
        chunk_size=(config_rules.count(dual.get("chunk_size")) or CHUNK) if dual else 0,
        local_size=(config_rules.count(dual.get("local_size")) or LOCAL) if dual else 0,
        vertical=vertical,
        slash=slash,
        assumed=assumed,
        dtype=found.dtype or UNSTATED_DTYPE,
        quantized=_stored(found.quantization, layers.places),
        known=known.name.split(" or ")[0] if known else "",
        minimum_gb=known.vram_gb if known else None,
        hub=hub,
        tower=sum(tower.weights for _, tower in towers),
        tower_width=max((tower.width for _, tower in towers), default=0),
        any_image=any(tower.any_size for _, tower in towers),
        # Without a vocabulary of its own it is no table, but made of the token's embedding.
        per_layer=_optional(config, "hidden_size_per_layer_input") * ("vocab_size_per_layer_input" in config),
        unknown=(*layers.unknown, *(f"images or sound ({key})" for key, tower in towers if not tower.weights)),
    )
    return shape if layers.groups == (_uniform(shape),) else shape.model_copy(update={"groups": layers.groups})


def _rows(found: Layout, length: int) -> int:
    """Rows of the rotary table without a scaling.

    Args:
        found: the config's layout.
        length: tokens that the engine takes for the model's length.
    """
    own = found.text_type in classes.load().long_tables and layout.count(found.text.get(layout.OWN_LENGTH))
    return own or layout.count(found.text.get(LENGTH)) or length


def _unasked(found: Layout) -> int:
    """The original length of a model with longrope, as its class takes it; 0 for others, and where it has none."""
    if not any(rotary.type == "longrope" for rotary in found.rotary):
        return 0
    known, inside = classes.load(), found.rotary[0].parameters.get(ORIGINAL)
    stated = layout.count(found.text.get(ORIGINAL)) or known.original_lengths.get(found.text_type)
    return (layout.count(inside) if found.text_type in known.original_inside else None) or stated or 0


def in_engine(shape: Shape, version: str) -> Shape:
    """A model with the lengths that a version of vLLM allows, and serves by default."""
    if not releases.reached(version, versions.load().original_lengths):
        shape = shape.model_copy(update={"unasked": 0})
    if shape.stated and releases.order(version) >= releases.order(versions.load().stated_lengths):
        return shape.model_copy(update={"length": shape.stated})
    return shape


def quantized(method: str, shape: Shape) -> Shape:
    """A model with its weights quantized in another way than its config.json says.

    Args:
        method: empty for config.json's; `fp8`, to which the engine itself quantizes when it loads unquantized weights;
            or a method of published weights, for which 4 bits and groups of 128 are assumed, the usual choice.
        shape: the model as its config.json describes it.
    """
    if not method or method == shape.quantized.method:
        return shape
    if method == "fp8":
        return shape.model_copy(update={"quantized": Quantized(method="fp8", bits=8, online=True)})
    return shape.model_copy(update={"quantized": Quantized(method=method, bits=4, group=128, pack=8)})


def _table(found: Layout, rotary: Rotary, length: int) -> int:
    """Bytes of the table of a rotary embedding: a row of cosines and sines for each position that it can reach."""
    rows, factor = length, max(1.0, min(rotary.factor or 1.0, MOST))
    if rotary.type in layout.MULTIPLIED:
        # The table reaches as far as the scaling, whether or not the length does.
        rows = int(length * factor)
    elif rotary.type == "yarn":
        rows = int((rotary.original or length) * factor)
    elif rotary.type == "longrope":
        rows = length + (rotary.original or 0)
    rows *= compare.AXES if "mrope_section" in rotary.parameters else 1
    return min(rows, MOST) * (found.rotated(rotary) or 0) * 2


def _entries(dual: dict[str, Any], table: Any, known: KnownModel | None) -> tuple[int, int, bool]:
    """The largest vertical and slash of the sparse table, and whether they are an assumption."""
    if not dual or dual.get("sparse_attention_enabled") is False:
        return 0, 0, False
    if table is not None:
        return (*_largest(table), False)
    if known is not None and known.sparse is not None:
        return known.sparse.vertical, known.sparse.slash, False
    if known is None and not dual.get("sparse_attention_enabled"):
        return 0, 0, False
    tables = [model.sparse for model in models.load_all() if model.sparse]
    largest = max(tables, key=lambda sizes: sizes.vertical + sizes.slash, default=None)
    return (largest.vertical, largest.slash, True) if largest else (0, 0, False)


def _largest(table: Any) -> tuple[int, int]:
    """The largest entries of a sparse table; invalid entries are skipped, `dca config check` reports them."""
    vertical = slash = 0
    for layer in table if isinstance(table, list) else ():
        for entry in layer.values() if isinstance(layer, dict) else ():
            if isinstance(entry, list) and len(entry) >= 3:
                columns, diagonals = config_rules.count(entry[1]) or 0, config_rules.count(entry[2]) or 0
                vertical = max(vertical, columns + FEW_MORE * (columns == FEW_VERTICALS))
                slash = max(slash, diagonals)
    return min(vertical, MOST), min(slash, MOST)


def _inside(config: dict[str, Any]) -> Any:
    dual = config.get(DCA)
    return dual.get(TABLE) if isinstance(dual, dict) else None


def _bias(config: dict[str, Any], known: KnownModel | None, kind: str) -> bool:
    """Whether queries, keys and values have a bias: the config says so, or the family always has it."""
    if isinstance(config.get("attention_bias"), bool):
        return bool(config["attention_bias"])
    if known is not None and known.sizes is not None:
        return known.sizes.attention_bias
    # Biases take a few hundred kilobytes per layer, so a known model of the same type is close enough.
    alike = [model.sizes.attention_bias for model in models.load_all() if model.sizes and model.model_type == kind]
    return bool(alike) and alike[0]


def _stored(stored: dict[str, Any], places: dict[str, tuple[int, ...]]) -> Quantized:
    """How the weights are stored, and for which KV cache, by the config's quantization_config."""
    inner = stored["quantization"] if isinstance(stored.get("quantization"), dict) else {}
    told = inner.get("kv_cache_scheme") or stored.get("kv_cache_scheme")
    told = told or inner.get("kv_cache_quant_algo") or stored.get("kv_cache_quant_algo")
    floats = isinstance(told, dict) and told.get("num_bits") == 8 and told.get("type") == "float"
    fp8 = floats or (isinstance(told, str) and told.lower() == "fp8")
    return _stored_weights(stored, places).model_copy(update={"fp8_cache": fp8})


def _stored_weights(stored: dict[str, Any], places: dict[str, tuple[int, ...]]) -> Quantized:
    method = stored.get("quant_method")
    if method is None and isinstance(producer := stored.get("producer"), dict):
        # The quantizer's own file names only the program that wrote it.
        method = producer.get("name")
    if not isinstance(method, str) or not method:
        return Quantized()
    method = method.lower()
    if method == "fp8":
        block = stored.get("weight_block_size")
        group = config_rules.count(block[1]) if isinstance(block, list) and len(block) == 2 else None
        return _apart(Quantized(method=method, bits=8, group=group or 0), stored, places)
    # compressed-tensors and methods of its form have groups of layers with their own settings.
    groups = stored.get("config_groups")
    groups = groups.values() if isinstance(groups, dict) else ()
    own = [settings.get("weights") for settings in groups if isinstance(settings, dict)]
    stored = {**stored, **(stored["quantization"] if isinstance(stored.get("quantization"), dict) else {})}
    inside = _settings(stored)
    layers = _by_algorithm(stored)
    bits = _bits(method, stored, own) or (None if own else _inside_bits(inside, layers))
    sizes = [weights.get("group_size") for weights in own if isinstance(weights, dict)]
    sizes += [stored.get("group_size", stored.get("q_group_size")), *inside.get("group_size", ())]
    group = max(config_rules.count(size) or 0 for size in sizes)
    # 8-bit weights are packed only if the method or the format says that they are integers in 32-bit words.
    packed = method.startswith(PACKED) or str(stored.get("format", "")).startswith("pack") or (bits or 16) < 8
    floats = any(isinstance(weights, dict) and weights.get("type") == "float" for weights in own)
    symmetric = any(isinstance(weights, dict) and weights.get("symmetric") is True for weights in own)
    named = [str(stored.get("quant_algo") or stored.get("format")), *layers]
    kind = "nvfp4" if any("nvfp4" in name.lower() for name in named) else method
    if kind in SCALES and (bits or 16) < 8:
        group, packed = group or SCALES[kind][0], False
    found = Quantized(
        method=method,
        bits=bits or Quantized().bits,
        group=group,
        pack=max(1, 32 // (bits or 32)) if packed else 1,
        assumed=bits is None,
        scale=SCALES[kind][1] if kind in SCALES else 8 if floats else 16,
        zero=kind not in SCALES and not floats and not symmetric,
    )
    return _apart(found, stored, places)


ASIDE = ("input", "output", "activation", "kv_cache", "bias", "zero", "scale", "layer_quant")
"""Settings of quantization_config that are not the weights'."""


def _settings(stored: Any) -> dict[str, list[Any]]:
    """The settings of weights at any depth of quantization_config, each by its name."""
    found: dict[str, list[Any]] = {}
    parts = [stored]
    while parts:
        for key, value in parts.pop(0).items():
            if isinstance(value, dict) and not str(key).startswith(ASIDE):
                parts.append(value)
            elif not isinstance(value, (dict, list)):
                found.setdefault(str(key), []).append(value)
    return found


def _by_algorithm(stored: dict[str, Any]) -> dict[str, list[str]]:
    """The layers that a quantizer lists one by one, by the algorithm of each."""
    listed = stored.get("quantized_layers")
    found: dict[str, list[str]] = {}
    for name, own in listed.items() if isinstance(listed, dict) else ():
        if isinstance(own, dict) and isinstance(own.get("quant_algo"), str):
            found.setdefault(own["quant_algo"], []).append(str(name))
    return found


def _named_bits(name: Any) -> int | None:
    """Bits of a weight by the name of a type or an algorithm; in W4A8 and FP8, the first number is the weights'."""
    if not isinstance(name, str):
        return None
    match = re.search(r"(?:fp|int|w|nf)(\d{1,2})", name.lower())
    return config_rules.count(int(match[1])) if match else None


def _inside_bits(inside: dict[str, list[Any]], layers: dict[str, list[str]]) -> int | None:
    """Bits of a weight, of methods that state them deeper in quantization_config; the most of several."""
    named = [config_rules.count(value) for key in ("nbits", "bits", "num_bits") for value in inside.get(key, ())]
    for key in ("dtype", "weight_dtype", "_type", "quant_type"):
        named += [_named_bits(value) for value in inside.get(key, ())]
    named += [_named_bits(name) for name in layers]
    return min(max((bits for bits in named if bits), default=0), Quantized().bits) or None


def _apart(found: Quantized, stored: dict[str, Any], places: dict[str, tuple[int, ...]]) -> Quantized:
    """Weights with the parts that are stored in another way, by the lists of quantization_config."""
    lists = [stored.get(key) for key in ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers")]
    lists += [stored.get(key) for key in ("llm_int8_skip_modules", "skip_modules", "exclude")]
    left = Names([str(name) for names in lists if isinstance(names, list) for name in names])
    given = stored.get("config_groups")
    groups = []
    for group in given.values() if isinstance(given, dict) else ():
        weights, targets = (group.get("weights"), group.get("targets")) if isinstance(group, dict) else (None, None)
        if isinstance(targets, list):
            groups.append((_width(weights, found), Names(list(map(str, targets))), "Linear" in targets))
    for algorithm, listed in _by_algorithm(stored).items() if not groups else ():
        bits = _named_bits(algorithm) or found.bits
        share = next((scale / size for kind, (size, scale) in SCALES.items() if kind in algorithm.lower()), 0.0)
        groups.append((bits + share, Names(listed), False))
    widths: dict[str, float] = {}
    usual = found.bits + scale_bits(found)
    both = bool(set(places.get("dense", ())) & set(places.get("experts", ())))
    for part, names in PARTS.items():
        numbers = places.get(part, ())
        own = BESIDE if both and part == "experts" else names
        paths = [[f"{start}.{index}.{name}" for start in LAYERS for name in own] for index in numbers]
        each = [_width_of(tried, left, groups, usual) for tried in paths]
        if each and any(width != usual for width in each):
            widths[part] = sum(each) / len(each)
    head = next((width for width, targets, _ in groups if targets.match("lm_head")), None)
    if head is not None or stored.get("lm_head") is True:
        widths["head"] = head or usual
    return found.model_copy(update={"widths": tuple(widths.items())})


def _width(weights: Any, found: Quantized) -> float:
    """Bits of a weight of a group of layers, with its share of a scale."""
    if not isinstance(weights, dict):
        return Quantized().bits
    bits, group = config_rules.count(weights.get("num_bits")), config_rules.count(weights.get("group_size"))
    return (bits or found.bits) + (found.scale / group if group and (bits or found.bits) < 8 else 0.0)


def _width_of(paths: list[str], left: Names, groups: list[tuple[float, Names, bool]], usual: float) -> float:
    """Bits of a weight of one part of one layer: 16 if it is in the list of those left, else its group's."""
    if any(left.match(path) for path in paths):
        return Quantized().bits
    if not groups or (len(groups) == 1 and groups[0][2]):
        return usual
    named = next((width for width, targets, _ in groups if any(targets.match(path) for path in paths)), None)
    rest = max((width for width, _, every in groups if every), default=None)
    return Quantized().bits if named is None and rest is None else named or rest or usual


class Names:
    """The names of modules in a list of quantization_config: whole names, beginnings, parts, wildcards or `re:`."""

    def __init__(self, names: list[str]) -> None:
        """Sort them.

        Args:
            names: the list; some have an entry for every layer.
        """
        self.plain = {name for name in names if not name.startswith("re:") and "*" not in name}
        self.patterns = []
        for name in dict.fromkeys(names):
            if name not in self.plain:
                with contextlib.suppress(re.error):
                    self.patterns.append(re.compile(name[3:] if name.startswith("re:") else fnmatch.translate(name)))

    def match(self, path: str) -> bool:
        """Whether the list means a module."""
        words = path.split(".")
        ends = range(len(words) + 1)
        if self.plain and any(".".join(words[a:b]) in self.plain for a in ends for b in ends[a + 1 :]):
            return True
        return any(pattern.search(path) for pattern in self.patterns)


def _bits(method: str, stored: dict[str, Any], own: list[Any]) -> int | None:
    """Bits of a quantized weight; None if quantization_config does not say it.

    Args:
        method: `quant_method` in lower case.
        stored: quantization_config.
        own: `weights` of its groups of layers; None for a group that is not quantized.
    """
    plain = Quantized().bits
    if own:
        # This ignores which layers a group has, and uses the largest number of bits for all.
        counts: list[int] = []
        for weights in own:
            bits = plain if weights is None else None
            if isinstance(weights, dict):
                bits = config_rules.count(weights.get("num_bits"))
            if bits is None:
                return None
            counts.append(bits)
        return min(plain, max(counts))
    named = [config_rules.count(stored.get(key)) for key in ("bits", "w_bit", "num_bits")]
    named += [bits for bits in (8, 4) if stored.get(f"load_in_{bits}bit") is True]
    named.append(_named_bits(str(stored.get("quant_algo") or method)))
    named += [4] if method.startswith(FOUR) else []
    return next((min(plain, bits) for bits in named if bits is not None), None)


def _needed(config: dict[str, Any], name: str, key: str) -> int:
    number = _widest(config, key)
    if not number:
        raise _lacks(name, key, config.get("text_model_id"))
    return number


def _optional(config: dict[str, Any], key: str) -> int:
    number = config_rules.count(config.get(key))
    return number if number is not None and number <= MOST else 0


def _widest(config: dict[str, Any], key: str) -> int:
    """A number, or the largest of those of the layers; 0 without one."""
    value = config.get(key)
    each = value if isinstance(value, list) else [value]
    return max((_optional({key: one}, key) for one in each), default=0)


def _head_dim(config: dict[str, Any]) -> int | None:
    """Elements of one head, by the file or its class."""
    size, heads = _widest(config, "hidden_size"), _widest(config, "num_attention_heads")
    dim = _widest(config, "head_dim") or (size // heads if heads else 0)
    return dim if 2 <= dim <= kinds.MOST_LAYERS else None


def _lacks_number(name: str, key: str) -> int:
    raise _lacks(name, key)


def _lacks(name: str, key: str, other: Any = None) -> DcaError:
    """The refusal of a file without a number.

    Args:
        name: the model's name.
        key: the number's.
        other: the model on a hub that the file names in place of sizes.
    """
    if isinstance(other, str) and other:
        return DcaError(
            "DCA-205",
            f"the config.json of {name} has no sizes of its language model, which is that of {other}.",
            remedy=f"plan {other}, and leave room for the part beside it.",
        )
    return DcaError(
        "DCA-205",
        f"the config.json of {name} has no usable number for `{key}`.",
        why="the memory depends on it, and the layout of this file is not known to have it elsewhere.",
        remedy="compare the file with the model's own; if it is the model's own, its memory cannot be planned.",
    )


def parameters(shape: Shape) -> int:
    """The number of a model's parameters, without the norms of single heads, which are a few thousand.

    P = 2*V*h + L*(h*(q+2kv)*d [+ (q+2kv)*d] + q*d*h + MLP + 2h) + h, where MLP is 3*h*i of a dense layer, and
    E*3*h*i + h*E of a mixture of E experts.
    """
    layer = shape.hidden * (shape.heads + 2 * shape.kv_heads) * shape.head_dim
    layer += (shape.heads + 2 * shape.kv_heads) * shape.head_dim * shape.bias
    layer += shape.heads * shape.head_dim * shape.hidden + 2 * shape.hidden
    if shape.experts:
        layer += shape.experts * 3 * shape.hidden * shape.expert_inner + shape.hidden * shape.experts
    else:
        layer += 3 * shape.hidden * shape.inner
    embeddings = shape.vocabulary * shape.hidden * (1 if shape.tied else 2)
    return embeddings + shape.layers * layer + shape.hidden


def scale_bits(stored: Quantized) -> float:
    """Bits of scales and zeros for each quantized weight: a scale, and a zero of the weight's own width."""
    return (stored.scale + stored.bits * stored.zero) / stored.group if stored.group and stored.bits < 8 else 0.0
