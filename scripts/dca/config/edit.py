"""The settings themselves: text in, text out; this module reads and writes no file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dca.config import classes, guards, layout, readers, rotary, text
from dca.config.layout import DCA, LENGTH, ORIGINAL, PARAMETERS, SCALING, TABLE, THETA, Layout, Rotary, structural
from dca.config.models import KnownModel
from dca.config.readers import Length, Place, Reader
from dca.config.text import Json, OneLine
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError

PATTERN = "vertical_and_slash"
# The context length at which models with dual chunk attention still work without it.
WITHOUT_DCA = 262_144
MOST = 1 << 40
TYPES = ("rope_type", "type")
# What set-yarn writes itself: YaRN with these keys alone was not trained.
SIMPLE = {*TYPES, "factor", ORIGINAL, "attention_factor", "attn_factor"}
FULL = "full_attention"
# A model with it scales the positions of compressed keys alone.
COMPRESSED = "compress_rope_theta"


class YarnSetting(Value):
    """YaRN as the user asks for it.

    Args:
        factor: new length / original length.
        original: length without YaRN, in tokens.
        attention_factor: replaces the formula's value.
    """

    factor: float
    original: int
    attention_factor: float | None = None

    @property
    def length(self) -> int:
        """The length with YaRN, in tokens."""
        return int(self.original * self.factor)


class Form(Value):
    """How YaRN is written: under which key, and with which max_position_embeddings."""

    place: Place = "rope_scaling"
    length: Length = "either"


class DualChunkSetting(Value):
    """Dual chunk attention as the user asks for it; lengths in tokens.

    Args:
        chunk_size: size of a chunk.
        local_size: local_size of dual chunk attention; smaller than chunk_size.
        original: length above which keys are scaled; 0 for no scaling.
        length: max_position_embeddings to set; None keeps the current one.
        table: sparse table to set; None keeps the current one.
    """

    chunk_size: int
    local_size: int
    original: int
    length: int | None = None
    table: list[dict[str, Any]] | None = None


def form_for(meant: Sequence[Reader]) -> Form:
    """The way to write YaRN that works for all given readers.

    Raises:
        DcaError: DCA-212 when there is none.
    """
    places = [place for place in meant[0].wants.places if all(place in reader.wants.places for reader in meant)]
    lengths = {reader.wants.length for reader in meant} - {"either"}
    if not places or len(lengths) > 1:
        words = "; ".join(f"{reader.name}: {_wants(reader)}" for reader in meant)
        raise DcaError(
            "DCA-212",
            f"no single config.json is right for {', '.join(reader.name for reader in meant)}.",
            why=words + ".",
            remedy="make one folder per reader: --for READER --out DIR.",
        )
    return Form(place=places[0], length=lengths.pop() if lengths else "either")


def _wants(reader: Reader) -> str:
    length = {
        "original": f"{LENGTH} is the original length",
        "extended": f"{LENGTH} is factor x original",
        "either": f"{LENGTH} may be either",
    }[reader.wants.length]
    return f"reads {' or '.join(reader.wants.places)}, {length}"


def set_yarn(source: Json, setting: YarnSetting, form: Form | None = None, *, replace: bool = False) -> Json:
    """Scale the rotary embedding of the layers with full attention with YaRN.

    What belongs to the model's shape is kept (sections of mrope, the rotated share of a head, other layers' settings),
    and so are the betas of existing YaRN.

    Args:
        source: config.json.
        setting: the numbers.
        form: how to write it.
        replace: also replace a scaling that the model was trained with.

    Raises:
        DcaError: DCA-201 for impossible numbers, DCA-208 when the config does not allow YaRN, DCA-216 for a scaling
            that the model was trained with.
    """
    form = form or Form()
    _check_yarn(setting)
    found = _read(source)
    if found.text.get(DCA):
        raise DcaError(
            "DCA-208",
            f"{source.name} has {DCA}, which excludes YaRN.",
            why=f"vLLM ignores {SCALING} with dual chunk attention, but still multiplies the length by its factor.",
            remedy="remove dual chunk attention first: `dca config drop-dca DIR`.",
        )
    if not _rotates(found):
        raise DcaError(
            "DCA-208",
            f"a model of the type `{found.text_type}` does not rotate positions: YaRN would have no effect.",
            why="its positions are learned, biases of attention, left to recurrent layers, or not used.",
            remedy="keep the file as it is.",
        )
    _check_class(source, found)
    for name in (SCALING, PARAMETERS):
        _check_scaling(source, found, name)
    if COMPRESSED in found.text:
        raise DcaError(
            "DCA-208",
            f"{source.name} has {COMPRESSED}: its scaling is that of compressed layers, with a base of their own.",
            remedy="keep the file as it is.",
        )
    base = _base(source, found)
    if not replace:
        _refuse_trained(source, trained(found.rotary[0], setting))
    for path in _places(found, form):
        source = _write_yarn(source, path, setting, _structure(found, path))
    if form.place == "rope_parameters" and found.text.get(SCALING) is not None and not found.path:
        # If both exist, rope_scaling wins.
        source = text.remove(source, (SCALING,))
    source = _with_base(source, base)
    if count := layout.count(found.text.get(ORIGINAL)):
        # Readers prefer it to the one inside.
        source = text.put(source, (*found.path, ORIGINAL), setting.original) if count != setting.original else source
    if form.length != "either":
        tokens = setting.original if form.length == "original" else setting.length
        for where in found.lengths:
            # Engines take the smallest of them, or one of their own choice.
            source = text.put(source, where, tokens)
    return source


def _rotates(found: Layout) -> bool:
    """Whether a model rotates positions, by its file and its type."""
    return found.rotates and found.text_type not in classes.load().unrotated


def _check_class(source: Json, found: Layout) -> None:
    """Reject a model whose configuration class does not load what would be written, whichever reader loads the file.

    Raises:
        DcaError: DCA-208.
    """
    refusing = classes.refusing(found.text_type, {"rope_type": "yarn"})
    if refusing is None or refusing.readers:
        # Some readers load it; the rules name the others.
        return
    raise DcaError(
        "DCA-208",
        f"{source.name}: no reader loads a model of the type `{found.text_type}` with YaRN.",
        why=f"its configuration class loads {refusing.words}.",
        remedy="keep the file as it is; for longer texts serve a model with a longer context.",
    )


def _read(source: Json) -> Layout:
    """The layout of a file that can be edited.

    Raises:
        DcaError: DCA-208 for a layout that is not known.
    """
    found = layout.read(source.plain())
    if found.unknown:
        raise DcaError(
            "DCA-208",
            f"dca does not know the layout of {source.name}: {found.unknown}.",
            why="the settings would be written where no reader looks.",
            remedy="name the folder of a language model.",
        )
    return found


def trained(found: Rotary, setting: YarnSetting | None = None) -> str:
    """The scaling that a model was trained with, in words; empty when there is none.

    Args:
        found: the rotary embedding.
        setting: YaRN to write in its place; YaRN with the same numbers stays.
    """
    old = found.parameters
    types = {old[name] for name in TYPES if isinstance(old.get(name), str)}
    if not types or types <= {"default", "mrope"}:
        return ""
    if "yarn" in types:
        numbers = (found.factor, found.original)
        if None in numbers or (setting and numbers == (setting.factor, setting.original)):
            return ""
        if all(name in SIMPLE or structural(name) for name in old) and (
            setting is None or found.original == setting.original
        ):
            return ""
    lost = [f"{name} {_short(value)}" for name, value in old.items() if name not in TYPES and not structural(name)]
    return f"{found.type} ({', '.join(lost)})" if lost else found.type


def _short(value: Any) -> str:
    return f"of {len(value)} numbers" if isinstance(value, list) else str(value)[:40]


def _refuse_trained(source: Json, words: str) -> None:
    if words:
        raise DcaError(
            "DCA-216",
            f"{source.name} has a scaling of its own, which would be lost: {words}.",
            why="the model was trained with it, or is meant to run with it.",
            remedy="keep the file, or replace the scaling all the same with --replace.",
        )


def _places(found: Layout, form: Form) -> list[tuple[str, ...]]:
    """Where this model's readers read a scaling."""
    old, new = (found.text.get(name) for name in (SCALING, PARAMETERS))
    here = [name for name, value in ((SCALING, old), (PARAMETERS, new)) if isinstance(value, dict) and value]
    if form.place == "rope_parameters" and not found.path:
        here = [PARAMETERS]
    elif here == [PARAMETERS] and not found.path and found.text_type in readers.older_types():
        # Older readers know the model, and look in rope_scaling alone.
        here = [PARAMETERS] if layout.per_layer(new) else [SCALING, PARAMETERS]
    elif not here:
        here = [SCALING]
    return [(*found.path, name, *((FULL,) if layout.per_layer(found.text.get(name)) else ())) for name in here]


def _structure(found: Layout, path: tuple[str, ...]) -> dict[str, Any]:
    """What belongs to the model's shape and must stand at a path: readers take the object there as a whole."""
    if not found.rotary[0].path or found.rotary[0].path == path:
        return {}
    kept = {name: value for name, value in found.rotary[0].parameters.items() if structural(name)}
    return {name: value for name, value in kept.items() if name != THETA or PARAMETERS in path}


def _with_base(source: Json, base: float | None) -> Json:
    """rope_theta where readers of both kinds look; unchanged for a model with a base for each layer."""
    found = layout.read(source.plain())
    inside = found.text.get(PARAMETERS)
    if base is None or layout.per_layer(inside):
        return source
    old = isinstance(found.text.get(SCALING), dict)
    if old and found.get(THETA) is None and not found.path:
        source = text.put(source, (THETA,), base)
    # Readers pass over an empty object; with a base alone they would take it for a scaling without a type.
    if isinstance(inside, dict) and inside and inside.get(THETA) is None:
        source = text.put(source, (*found.path, PARAMETERS, THETA), base)
    return source


def _check_yarn(setting: YarnSetting) -> None:
    if not 1 <= setting.factor < MOST:
        raise DcaError(
            "DCA-201", f"--factor {setting.factor:g}: must be at least 1.", remedy="give 1 or more, such as 4."
        )
    if not 0 < setting.original < MOST or setting.length >= MOST:
        raise DcaError(
            "DCA-201",
            f"--original {setting.original}: must be a positive number of tokens, and factor x original below 2**40.",
            remedy="give tokens, such as 32768.",
        )
    attention = setting.attention_factor
    if attention is not None and not 0 < attention < math.inf:
        raise DcaError(
            "DCA-201", f"--attention-factor {attention:g}: must be above 0.", remedy="give a positive number."
        )


def _check_scaling(source: Json, found: Layout, name: str) -> None:
    """Reject a scaling that is not an object, or has objects per type of layer and none for full attention."""
    value = found.text.get(name)
    if value is None or (isinstance(value, dict) and not layout.per_layer(value)):
        return
    where = f"{source.name}, line {source.line(*found.path, name)}: `{name}`"
    if not isinstance(value, dict):
        raise DcaError("DCA-208", f"{where} is not an object.", remedy="compare it with the model's own file.")
    if not isinstance(value.get(FULL), dict):
        types = " and ".join(f"`{kind}`" for kind, own in value.items() if isinstance(own, dict))
        raise DcaError(
            "DCA-208",
            f"{where} has an object for each type of layer, {types}, and none for {FULL}.",
            why="dca does not know which of them have full attention, and would scale the wrong ones.",
            remedy="keep the file as it is; for longer texts serve a model with a longer context.",
        )


def _base(source: Json, found: Layout) -> float | None:
    """The model's rope_theta, from wherever it stands; None for one that has a base for each layer.

    Raises:
        DcaError: DCA-208 without a usable one.
    """
    stated = found.rotary[0].base
    if isinstance(found.text.get(THETA), list) and stated:
        return None
    for value in (found.get(THETA), (found.text.get(PARAMETERS) or {}).get(THETA), stated):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 1:
            return value
    usual = classes.defaults(found.text_type).get(THETA)
    own = f"; transformers 5 takes {usual:,.0f} for this class" if usual else ""
    raise DcaError(
        "DCA-208",
        f"{source.name} has no rope_theta; readers then use the default of the model's class, and differ in it.",
        remedy=f"first write the model's own {'.'.join(found.where(THETA))}, from the model's page{own}.",
    )


def _at(source: Json, path: tuple[str, ...]) -> dict[str, Any]:
    """The object at a path; empty when there is none."""
    value: Any = source.plain()
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value if isinstance(value, dict) else {}


def _write_yarn(source: Json, path: tuple[str, ...], setting: YarnSetting, carried: dict[str, Any]) -> Json:
    """Write YaRN into one object.

    Args:
        source: config.json.
        path: keys of the object.
        setting: the numbers.
        carried: what the object must have besides, when it lacks it.
    """
    old = _at(source, path)
    names = [name for name in TYPES if name in old] or ["rope_type"]
    if not any(old.get(name) == "yarn" for name in names):
        for name in old:
            if name not in {"factor", ORIGINAL, *names} and not structural(name):
                source = text.remove(source, (*path, name))
    values: dict[str, Any] = {name: value for name, value in carried.items() if name not in old}
    values |= dict.fromkeys(names, "yarn")
    values |= {"factor": float(setting.factor), ORIGINAL: setting.original}
    attention = setting.attention_factor
    if attention is not None:
        # One reader multiplies the formula's factor, the others replace it: both must end at the same number.
        values["attention_factor"] = float(attention)
        values["attn_factor"] = float(attention) / rotary.attention_factor(setting.factor)
    if not old:
        return text.put(source, path, {name: values[name] for name in sorted(values)})
    for name, value in values.items():
        source = text.put(source, (*path, name), value)
    return source


def _must_have_chunks(source: Json, found: Layout) -> None:
    """Refuse a model that no engine computes dual chunk attention for."""
    if found.path:
        raise DcaError(
            "DCA-208",
            f"{source.name} describes its language model in `{'.'.join(found.path)}`, where no reader reads {DCA}.",
            remedy=_without_chunks(found),
        )
    if found.text_type and found.text_type not in classes.load().dual_chunk:
        raise DcaError(
            "DCA-208",
            f"no engine computes dual chunk attention for a model of the type `{found.text_type}`.",
            why=f"its class would leave attention as it is; those that read {DCA} are of the types "
            f"{', '.join(classes.load().dual_chunk)}.",
            remedy=_without_chunks(found),
        )


def _without_chunks(found: Layout) -> str:
    """What remains for longer texts where dual chunk attention is none: YaRN, if the model can have it."""
    refusing = classes.refusing(found.text_type, {"rope_type": "yarn"})
    written = [found.text.get(name) for name in (SCALING, PARAMETERS)]
    apart = any(isinstance(own, dict) and layout.per_layer(own) and FULL not in own for own in written)
    if not _rotates(found) or apart or (refusing is not None and not refusing.readers):
        return "keep the file as it is; for longer texts serve a model with a longer context."
    return "use YaRN for longer texts if its publisher recommends it: `dca config set-yarn DIR`."


def set_dca(source: Json, setting: DualChunkSetting, *, replace: bool = False) -> Json:
    """Turn dual chunk attention on; remove YaRN, which vLLM does not read with it.

    Args:
        source: config.json.
        setting: the numbers, and the sparse table.
        replace: also remove a scaling that the model was trained with.

    Raises:
        DcaError: DCA-201 for impossible numbers, DCA-208 and DCA-213 when config or table do not allow it, DCA-216 for
            a scaling that the model was trained with.
    """
    if not 0 < setting.local_size < setting.chunk_size < MOST:
        raise DcaError(
            "DCA-201",
            f"--chunk {setting.chunk_size} --local {setting.local_size}: --local must be positive, and smaller than "
            "--chunk.",
            remedy="give a chunk size and a smaller local size.",
        )
    if not 0 <= setting.original < MOST or not 0 < (setting.length or 1) < MOST:
        raise DcaError(
            "DCA-201", "--original or --length is negative or too large.", remedy="give tokens, such as 262144."
        )
    found = _read(source)
    _must_have_chunks(source, found)
    config = found.config
    old = config.get(DCA)
    if old is not None and not isinstance(old, dict):
        raise DcaError(
            "DCA-208",
            f"{source.name}, line {source.line(DCA)}: `{DCA}` is not an object.",
            remedy="remove it by hand.",
        )
    if setting.table is not None:
        check_table(setting.table, config, "the sparse table")
    _check_lines(setting, found)
    numbers = {"chunk_size": setting.chunk_size, "local_size": setting.local_size, ORIGINAL: setting.original}
    rows = {TABLE: [OneLine(row) for row in setting.table], "sparse_attention_enabled": True} if setting.table else {}
    values: dict[str, Any] = {**numbers, **rows}
    if not replace:
        _refuse_trained(source, trained(found.rotary[0]))
    source = _unscaled(source, found)
    if isinstance(config.get(PARAMETERS), dict) and THETA not in config:
        source = text.put(source, (THETA,), _base(source, found))
    if setting.length:
        for where in found.lengths:
            source = text.put(source, where, setting.length)
    # The table is written last: each edit parses the text again, and the table is long.
    if old is None:
        return text.put(source, (DCA,), values)
    for name, value in values.items():
        source = text.put(source, (DCA, name), value)
    return source


def _check_lines(setting: DualChunkSetting, found: Layout) -> None:
    """Reject a table, given or inside config.json, whose lines the guards of the wheels refuse with these chunks.

    Raises:
        DcaError: DCA-213.
    """
    dual = found.config.get(DCA)
    table = setting.table or (dual.get(TABLE) if isinstance(dual, dict) else None)
    layers, heads = found.count("num_hidden_layers"), found.count("num_attention_heads")
    if not table or not layers or not heads or table_faults(table, layers, heads):
        return
    numbers = {"chunk_size": setting.chunk_size, "local_size": setting.local_size, ORIGINAL: setting.original}
    longest = setting.length or found.length or setting.chunk_size
    refusal = guards.lines(numbers, table, guards.Heads(layers, heads), longest)
    if refusal is not None:
        raise DcaError(
            "DCA-213",
            "the engine would refuse this sparse table with these chunks.",
            why=f"{refusal.code}: {refusal.what}",
            remedy=refusal.remedy,
        )


def _unscaled(source: Json, found: Layout) -> Json:
    """Without the scaling; what belongs to the model's shape stays."""
    for name in (SCALING, PARAMETERS):
        old = found.config.get(name)
        kept = [key for key in old if structural(key)] if isinstance(old, dict) else []
        if name == SCALING and not kept and old is not None:
            source = text.remove(source, (SCALING,))
        elif isinstance(old, dict) and not layout.per_layer(old) and (layout.kind(old) or "default") != "default":
            for key in [key for key in old if key not in {*kept, "rope_type"}]:
                source = text.remove(source, (name, key))
            source = text.put(source, (name, "rope_type"), "default")
            if name == PARAMETERS and THETA not in kept:
                source = text.put(source, (name, THETA), _base(source, found))
    return source


def drop_dca(source: Json, cap: int = WITHOUT_DCA) -> Json:
    """Remove dual chunk attention, and cap the length at what the model supports without it.

    Args:
        source: config.json.
        cap: longest context to keep, in tokens.

    Raises:
        DcaError: DCA-208 when the length is not a number.
    """
    found = layout.read(source.plain())
    where, length = found.where(LENGTH), found.get(LENGTH)
    if length is not None and (isinstance(length, bool) or not isinstance(length, (int, float))):
        raise DcaError(
            "DCA-208",
            f"{source.name}, line {source.line(*where)}: `{where[-1]}` is not a number.",
            remedy="correct it by hand.",
        )
    if DCA not in found.text:
        return source
    source = text.remove(source, (*found.path, DCA))
    return text.put(source, where, cap) if length is not None and length > cap else source


def use_1m(source: Json, one_million: Json, *, replace: bool = False) -> Json:
    """Use the model's own file for a million tokens as its config.

    Args:
        source: config.json.
        one_million: config_1m.json.
        replace: also when it does not say how the weights are quantized.

    Raises:
        DcaError: DCA-208 when that file has no dual chunk attention, or belongs to another model; DCA-216 when the
            quantization would be lost.
    """
    new, config = layout.read(one_million.plain()), layout.read(source.plain())
    if not isinstance(new.text.get(DCA), dict):
        raise DcaError("DCA-208", f"{one_million.name} has no {DCA}.", remedy="download the model's own file again.")
    for name in ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"):
        if new.get(name) != config.get(name):
            raise DcaError(
                "DCA-208",
                f"{one_million.name} belongs to another model: its `{name}` is {new.get(name)!r:.40}.",
                why=f"in {source.name} it is {config.get(name)!r:.40}.",
                remedy="download the model's own file.",
            )
    method = config.quantization.get("quant_method")
    if method != new.quantization.get("quant_method") and not replace:
        raise DcaError(
            "DCA-216",
            f"{one_million.name} does not have the quantization of {source.name}: {_short(method)}.",
            why="an engine would load the quantized weights as if they were not.",
            remedy="download the file of the quantized model, or use this one all the same with --replace.",
        )
    return Json(one_million.text, one_million.bom, one_million.root, source.name)


# --- sparse tables -------------------------------------------------------------------------------------------------


def table_of_sizes(layers: int, heads: int, vertical: int, slash: int) -> list[dict[str, Any]]:
    """A sparse table with the same sizes for every head.

    Args:
        layers: layers of the model.
        heads: query heads of one layer.
        vertical: columns that each head attends to.
        slash: diagonals that each head attends to.
    """
    return [{str(head): [PATTERN, vertical, slash, 1.0] for head in range(heads)} for _ in range(layers)]


def table_in(value: Any, name: str) -> list[dict[str, Any]]:
    """The sparse table of a file: the list itself, or a config with one inside.

    Raises:
        DcaError: DCA-213 when there is none.
    """
    if isinstance(value, dict):
        inside = value.get(DCA)
        value = inside.get(TABLE) if isinstance(inside, dict) else value.get(TABLE)
    if not isinstance(value, list) or not value:
        raise DcaError("DCA-213", f"{name} has no sparse table.", remedy=f"name the model's own {TABLE}.json.")
    return value


def check_table(table: Any, config: dict[str, Any], name: str) -> None:
    """Reject a table that does not fit the model.

    Raises:
        DcaError: DCA-213.
    """
    wrong = table_faults(table, config.get("num_hidden_layers"), config.get("num_attention_heads"))
    if wrong:
        raise DcaError(
            "DCA-213",
            f"{name} does not fit the model: {wrong[0]}.",
            remedy=f"use the {TABLE}.json published with this model.",
        )


def table_faults(table: Any, layers: Any, heads: Any) -> list[str]:
    """What is wrong with a sparse table, as clauses; one for each kind of fault."""
    if not isinstance(table, list):
        return ["it is not a list with one object per layer"]
    faults = []
    if isinstance(layers, int) and len(table) != layers:
        faults.append(f"it has {len(table)} layers, the model has {layers}")
    for number, row in enumerate(table):
        if not isinstance(row, dict):
            return [*faults, f"layer {number} is not an object"]
        names = {str(head) for head in range(heads)} if isinstance(heads, int) and heads < MOST >> 20 else set(row)
        if set(row) != names:
            return [*faults, f"layer {number} has {len(row)} heads, the model has {heads}"]
        for head, entry in row.items():
            if not _is_entry(entry):
                return [*faults, f"layer {number}, head {head} is {str(entry)[:60]}"]
    return faults


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 4
        and entry[0] == PATTERN
        and all(isinstance(size, int) and not isinstance(size, bool) and size > 0 for size in entry[1:3])
        and isinstance(entry[3], (int, float))
    )


def setting_of(model: KnownModel) -> DualChunkSetting:
    """A known model's own dual chunk attention.

    Raises:
        DcaError: DCA-214 when its numbers are not known.
    """
    own = model.dual_chunk
    if own is None:
        raise DcaError(
            "DCA-214",
            f"build/models does not know the dual chunk attention of {model.name}.",
            remedy="give --chunk, --local and --original, or use its own file: `dca config use-1m DIR`.",
        )
    return DualChunkSetting(
        chunk_size=own.chunk_size,
        local_size=own.local_size,
        original=own.original_max_position_embeddings,
        length=own.max_position_embeddings,
    )
