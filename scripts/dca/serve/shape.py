"""The properties of a model that memory and rules depend on, from its config.json or from build/models."""

from __future__ import annotations

import fnmatch
import re
from pathlib import Path
from typing import Any

from dca import config as configs
from dca.catalogue.model_needs import EXPERTS, UNSTATED_DTYPE
from dca.config import compare, config_rules, folder, models, text
from dca.config.layout import DCA, LENGTH, ORIGINAL, TABLE
from dca.config.models import KnownModel
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.serve import layers as kinds
from dca.serve.layers import Layers

# The backend's defaults, for configs without these keys.
CHUNK, LOCAL = 8192, 1024
FEW_VERTICALS, FEW_MORE = 30, 100
"""The backend uses 100 more vertical lines when a table says 30."""
MOST = 1 << 32
# Methods with 4 bits unless config.json says otherwise, and methods that pack weights into 32-bit words.
FOUR = ("awq", "gptq")
PACKED = ("awq", "gptq", "auto")
SCALES = {"mxfp4": (32, 8), "nvfp4": (16, 8), "bitsandbytes": (64, 32)}
"""Weights that share a scale, and the scale's bits, of methods that do not say it in quantization_config."""
PARTS = {
    "attention": ("self_attn.q_proj", "self_attn.o_proj", "self_attn.qkv_proj", "self_attn"),
    "state": ("linear_attn.in_proj_qkvz", "linear_attn.out_proj", "mixer.in_proj", "linear_attn"),
    "dense": ("mlp.gate_proj", "mlp.down_proj", "mlp.gate_up_proj", "feed_forward.gate_proj"),
    "experts": ("mlp.experts.0.gate_proj", "mlp.experts", "block_sparse_moe.experts.0.w1", "feed_forward.experts"),
    "shared": ("mlp.shared_expert.gate_proj", "mlp.shared_experts.gate_proj", "feed_forward.shared_expert.gate_proj"),
}
"""Names of modules in a layer, by the part that they belong to."""
NESTED = ("text_config", "llm_config", "language_config", "thinker_config", "decoder")
SHARED = ("tie_word_embeddings", "torch_dtype", "dtype", "quantization_config", "architectures")
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
        kept: share of the layers in which a part (`PARTS`) is not quantized; 0 for parts that are not named.
        head: whether the output layer is quantized too.
    """

    method: str = ""
    bits: int = 16
    group: int = 0
    pack: int = 1
    online: bool = False
    assumed: bool = False
    scale: int = 16
    zero: bool = True
    kept: dict[str, float] = {}
    head: bool = False


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
        bias: whether queries, keys and values have a bias.
        experts: experts of a mixture; 0 for a dense model.
        chosen: experts that compute each token.
        expert_inner: elements between the two halves of one expert.
        rows: rows of the rotary table, one for each position.
        length: tokens that the engine allows by default.
        original: length above which dual chunk attention scales keys; 0 when it does not.
        chunk_size: chunk_size of dual chunk attention, in tokens.
        local_size: local_size of dual chunk attention, in tokens.
        dual_chunk: whether dual chunk attention is on.
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
    bias: bool = False
    experts: int = 0
    chosen: int = 0
    expert_inner: int = 0
    rows: int
    length: int
    original: int = 0
    chunk_size: int = 0
    local_size: int = 0
    dual_chunk: bool = False
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
    per_layer: int = 0
    unknown: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[Layers, ...]:
        """Its layers, in groups that are alike."""
        return self.groups or (_uniform(self),)

    @property
    def chunk(self) -> int:
        """Tokens of one chunk in the backend."""
        return self.chunk_size - self.local_size

    @property
    def sparse(self) -> bool:
        """Whether long prompts use sparse attention."""
        return self.dual_chunk and self.vertical > 0


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
    """The model of a folder, a config.json, or a name of build/models.

    Returns:
        The model, the content of its config.json, and that file; None in place of the file for a name.

    Raises:
        DcaError: DCA-204, 206, 207 for a path, DCA-205 when its config.json lacks a number that memory depends on,
            DCA-214 for an unknown name, or one whose numbers are not known.
    """
    path = Path(model)
    if not path.exists():
        if path.is_absolute() or model.startswith(".") or model.endswith((".json", "/")):
            raise DcaError(
                "DCA-204",
                f"{model} does not exist.",
                remedy="name a model's folder, its config.json, or a model of build/models.",
            )
        known = models.find(model, models.load_all())
        config = config_of(known)
        return shape_of(config, known.name, known, hub=_hub(known)), config, None
    file = path / folder.CONFIG if path.is_dir() else path
    config = text.parse(folder.content(file), configs.readable(file)).plain()
    # A single config.json may be in any folder, so the folder's name does not identify the model.
    near = str(path.absolute()) if path.is_dir() else ""
    matched = models.match(config, near, models.load_all())
    table = _inside(config)
    if file.name == folder.CONFIG and (own := configs.table_of(file.parent)) is not None:
        table = own
    name = matched.name if matched else configs.readable(file.absolute().parent if file.name == folder.CONFIG else file)
    return shape_of(config, Path(name).name, matched, table), config, file


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
    config: dict[str, Any], name: str, known: KnownModel | None = None, table: Any = None, *, hub: str = ""
) -> Shape:
    """The model that a config.json describes.

    Args:
        config: the file's content.
        name: the model's name.
        known: the known model that it is; None if none.
        table: its sparse table; None without one.
        hub: its name on a hub.

    Raises:
        DcaError: DCA-205 when a number is missing.
    """
    whole, config = config, text_of(config)
    dual = config.get(DCA)
    dual = dual if isinstance(dual, dict) and dual else {}
    experts = next((_optional(config, key) for key in EXPERTS if config.get(key) is not None), 0)
    heads, hidden = _needed(config, name, "num_attention_heads"), _needed(config, name, "hidden_size")
    count, rows = _needed(config, name, "num_hidden_layers"), _needed(config, name, LENGTH)
    found = kinds.of(config)
    # Configs of searched architectures state some sizes only layer by layer.
    widest = max((group.inner or group.expert_inner for group in found.groups), default=0)
    keys = max((group.kv_heads for group in found.groups), default=0)
    expert_inner = max((group.expert_inner for group in found.groups), default=0) if experts else 0
    vertical, slash, assumed = _entries(dual, table, known)
    kind = str(config.get("model_type", ""))
    shape = Shape(
        name=name,
        architectures=_names(whole.get("architectures")),
        layers=count,
        hidden=hidden,
        heads=heads,
        inner=expert_inner or widest or _needed(config, name, "intermediate_size"),
        kv_heads=config_rules.count(config.get("num_key_value_heads")) or keys or heads,
        head_dim=_head_dim(config, name),
        vocabulary=_needed(config, name, "vocab_size"),
        tied=config.get("tie_word_embeddings") is True,
        bias=_bias(config, known, kind),
        experts=experts,
        chosen=max((group.chosen for group in found.groups), default=0) if experts else 0,
        expert_inner=expert_inner,
        rows=rows if dual else _derived(config, rows),
        length=_derived(config, rows) if not dual else rows,
        original=config_rules.count(dual.get(ORIGINAL)) or 0,
        dual_chunk=bool(dual),
        chunk_size=(config_rules.count(dual.get("chunk_size")) or CHUNK) if dual else 0,
        local_size=(config_rules.count(dual.get("local_size")) or LOCAL) if dual else 0,
        vertical=vertical,
        slash=slash,
        assumed=assumed,
        dtype=str(config.get("torch_dtype") or config.get("dtype") or UNSTATED_DTYPE).removeprefix("torch."),
        quantized=_stored(config, count),
        known=known.name.split(" or ")[0] if known else "",
        minimum_gb=known.vram_gb if known else None,
        hub=hub,
        tower=sum(size for _, size in kinds.towers(whole)),
        per_layer=_optional(config, "hidden_size_per_layer_input"),
        unknown=found.unknown,
    )
    return shape if found.groups == (_uniform(shape),) else shape.model_copy(update={"groups": found.groups})


def text_of(config: dict[str, Any]) -> dict[str, Any]:
    """The text part of a config, with what the file says once for all of its parts."""
    inner = next((config[key] for key in NESTED if isinstance(config.get(key), dict)), None)
    if inner is None or config.get("num_hidden_layers") is not None:
        return config
    inner = text_of(inner)
    shared = {key: config[key] for key in SHARED if config.get(key) is not None and inner.get(key) is None}
    return {**inner, **shared}


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


def _derived(config: dict[str, Any], rows: int) -> int:
    """Tokens that the engine allows; with YaRN factor x original, whatever max_position_embeddings is."""
    yarn = compare.yarn_of(config)
    if yarn is not None:
        return int(yarn.original * yarn.factor)
    for key in ("rope_scaling", "rope_parameters"):
        scaling = config.get(key)
        factor = config_rules.number(scaling.get("factor")) if isinstance(scaling, dict) else None
        if (
            isinstance(scaling, dict)
            and factor
            and config_rules.kind(scaling) in config_rules.MULTIPLIED
            and 1 <= factor < 1 << 20
        ):
            return int(rows * factor)
    return rows


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


def _stored(config: dict[str, Any], layers: int) -> Quantized:
    """How the weights are stored, by the config's quantization_config."""
    stored = config.get("quantization_config")
    method = stored.get("quant_method") if isinstance(stored, dict) else None
    if not isinstance(stored, dict) or not isinstance(method, str) or not method:
        return Quantized()
    method = method.lower()
    if method == "fp8":
        block = stored.get("weight_block_size")
        group = config_rules.count(block[1]) if isinstance(block, list) and len(block) == 2 else None
        return Quantized(method=method, bits=8, group=group or 0, kept=_kept(stored, layers))
    # compressed-tensors and methods of its form have groups of layers with their own settings.
    groups = stored.get("config_groups")
    groups = groups.values() if isinstance(groups, dict) else ()
    own = [settings.get("weights") for settings in groups if isinstance(settings, dict)]
    stored = {**stored, **(stored["quantization"] if isinstance(stored.get("quantization"), dict) else {})}
    bits = _bits(method, stored, own)
    sizes = [weights.get("group_size") for weights in own if isinstance(weights, dict)]
    sizes.append(stored.get("group_size", stored.get("q_group_size")))
    group = max(config_rules.count(size) or 0 for size in sizes)
    # 8-bit weights are packed only if the method or the format says that they are integers in 32-bit words.
    packed = method.startswith(PACKED) or str(stored.get("format", "")).startswith("pack") or (bits or 16) < 8
    kind = "nvfp4" if "nvfp4" in str(stored.get("quant_algo") or stored.get("format")).lower() else method
    if kind in SCALES and (bits or 16) < 8:
        group, packed = group or SCALES[kind][0], False
    return Quantized(
        method=method,
        bits=bits or Quantized().bits,
        group=group,
        pack=max(1, 32 // (bits or 32)) if packed else 1,
        assumed=bits is None,
        scale=SCALES[kind][1] if kind in SCALES else 16,
        zero=kind not in SCALES,
        kept=_kept(stored, layers),
        head=stored.get("lm_head") is True,
    )


def _kept(stored: dict[str, Any], layers: int) -> dict[str, float]:
    """The share of the layers in which a part is left in 16 bits, by the lists of quantization_config."""
    lists = [stored.get(key) for key in ("ignore", "modules_to_not_convert", "exclude_modules", "ignored_layers")]
    lists.append(stored.get("llm_int8_skip_modules"))
    left = tuple(dict.fromkeys(name for names in lists if isinstance(names, list) for name in map(str, names)))
    groups = stored.get("config_groups")
    targets = [
        name
        for group in (groups.values() if isinstance(groups, dict) else ())
        for name in (group.get("targets") if isinstance(group, dict) else None) or ()
        if isinstance(name, str)
    ]
    only = () if not targets or "Linear" in targets else tuple(targets)
    shares = {}
    for part, names in PARTS.items():
        plain = sum(_unquantized(index, names, left, only) for index in range(layers))
        if plain:
            shares[part] = plain / layers
    return shares


def _unquantized(index: int, names: tuple[str, ...], left: tuple[str, ...], only: tuple[str, ...]) -> bool:
    """Whether a part of a layer is left in 16 bits: it is in the list of those, or not in the list of the others."""
    paths = [f"{start}.{index}.{name}" for start in LAYERS for name in names]
    if any(_matches(path, pattern) for path in paths for pattern in left if _concerns(pattern, index)):
        return True
    return bool(only) and not any(_matches(path, pattern) for path in paths for pattern in only)


def _concerns(pattern: str, index: int) -> bool:
    """Whether a pattern may match a module of a layer; lists of thousands of names have one for each layer."""
    number = re.search(r"layers\.(\d+)(?:\.|$)", pattern)
    return number is None or int(number[1]) == index


def _matches(path: str, pattern: str) -> bool:
    """Whether a module's name is meant by an entry of such a list: a name, its beginning, a part, or a pattern."""
    if pattern.startswith("re:"):
        try:
            return re.search(pattern[3:], path) is not None
        except re.error:
            return False
    if "*" in pattern:
        return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(path, f"{pattern}.*")
    return f".{pattern}." in f".{path}."


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
    # In FP8, NVFP4, W4A8_AWQ and fbgemm_fp8, the first number is the weights'.
    name = re.search(r"(?:fp|int|w|nf)(\d{1,2})", str(stored.get("quant_algo") or method).lower())
    named.append(config_rules.count(int(name[1])) if name else None)
    named += [4] if method.startswith(FOUR) else []
    return next((min(plain, bits) for bits in named if bits is not None), None)


def _names(value: Any) -> tuple[str, ...]:
    return tuple(name for name in value if isinstance(name, str)) if isinstance(value, list) else ()


def _head_dim(config: dict[str, Any], name: str) -> int:
    size = compare.head_dim_of(config)
    if size is None:
        raise _lacks(name, "head_dim")
    return size


def _needed(config: dict[str, Any], name: str, key: str) -> int:
    number = config_rules.count(config.get(key))
    if number is None or number > MOST:
        raise _lacks(name, key)
    return number


def _optional(config: dict[str, Any], key: str) -> int:
    number = config_rules.count(config.get(key))
    return number if number is not None and number <= MOST else 0


def _lacks(name: str, key: str) -> DcaError:
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
