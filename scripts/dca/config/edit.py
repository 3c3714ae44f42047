"""The settings themselves: text in, text out; this module reads and writes no file."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from dca.config import rotary, text
from dca.config.layout import DCA, LENGTH, ORIGINAL, PARAMETERS, SCALING, TABLE, THETA
from dca.config.models import KnownModel
from dca.config.readers import Length, Place, Reader
from dca.config.text import Json, OneLine
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError

PATTERN = "vertical_and_slash"
# The context length at which models with dual chunk attention still work without it.
WITHOUT_DCA = 262_144
MOST = 1 << 40


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


def form_for(readers: Sequence[Reader]) -> Form:
    """The way to write YaRN that works for all given readers.

    Raises:
        DcaError: DCA-212 when there is none.
    """
    places = [place for place in readers[0].wants.places if all(place in reader.wants.places for reader in readers)]
    lengths = {reader.wants.length for reader in readers} - {"either"}
    if not places or len(lengths) > 1:
        words = "; ".join(f"{reader.name}: {_wants(reader)}" for reader in readers)
        raise DcaError(
            "DCA-212",
            f"no single config.json is right for {', '.join(reader.name for reader in readers)}.",
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


def set_yarn(source: Json, setting: YarnSetting, form: Form | None = None) -> Json:
    """Scale the rotary embedding with YaRN.

    Other settings of existing YaRN (betas) are kept; those of another kind of scaling are removed.

    Args:
        source: config.json.
        setting: the numbers.
        form: how to write it.

    Raises:
        DcaError: DCA-201 for impossible numbers, DCA-208 when the config does not allow YaRN.
    """
    form = form or Form()
    _check_yarn(setting)
    config = source.plain()
    if config.get(DCA):
        raise DcaError(
            "DCA-208",
            f"{source.name} has {DCA}, which excludes YaRN.",
            why=f"vLLM ignores {SCALING} with dual chunk attention, but still multiplies the length by its factor.",
            remedy="remove dual chunk attention first: `dca config drop-dca DIR`.",
        )
    for name in (SCALING, PARAMETERS):
        _check_scaling(source, config.get(name), name)
    base = _base(source, config)
    inside = isinstance(config.get(PARAMETERS), dict)
    if form.place == "rope_parameters":
        source = _write_yarn(source, PARAMETERS, setting)
        source = text.put(source, (PARAMETERS, THETA), base)
        # If both exist, rope_scaling wins.
        source = text.remove(source, (SCALING,)) if SCALING in config else source
    else:
        source = _write_yarn(source, SCALING, setting)
        if inside:
            source = _write_yarn(source, PARAMETERS, setting)
        if THETA not in config:
            source = text.put(source, (THETA,), base)
    if form.length != "either":
        source = text.put(source, (LENGTH,), setting.original if form.length == "original" else setting.length)
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


def _check_scaling(source: Json, value: Any, name: str) -> None:
    """Reject a scaling that is not an object, or has one object per kind of layer."""
    if value is None:
        return
    if not isinstance(value, dict) or any(isinstance(part, dict) for part in value.values()):
        what = "has one object per kind of layer" if isinstance(value, dict) else "is not an object"
        raise DcaError(
            "DCA-208",
            f"{source.name}, line {source.line(name)}: `{name}` {what}.",
            remedy="correct or remove it by hand.",
        )


def _base(source: Json, config: dict[str, Any]) -> float:
    """The model's rope_theta, from either place."""
    inside = config.get(PARAMETERS) or {}
    for value in (config.get(THETA), inside.get(THETA)):
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 1:
            return value
    raise DcaError(
        "DCA-208",
        f"{source.name} has no rope_theta; readers then use different defaults.",
        remedy=f"first write the model's own {THETA}, from the model's page.",
    )


def _write_yarn(source: Json, key: str, setting: YarnSetting) -> Json:
    old = source.plain().get(key) or {}
    names = [name for name in ("rope_type", "type") if name in old] or ["rope_type"]
    if not any(old.get(name) == "yarn" for name in names):
        kept = {THETA: old[THETA]} if key == PARAMETERS and THETA in old else {}
        for name in old:
            if name not in {*kept, "factor", ORIGINAL, *names}:
                source = text.remove(source, (key, name))
    values: dict[str, Any] = dict.fromkeys(names, "yarn")
    values |= {"factor": float(setting.factor), ORIGINAL: setting.original}
    attention = setting.attention_factor
    if attention is not None:
        # One reader multiplies the formula's factor, the others replace it: both must end at the same number.
        values["attention_factor"] = float(attention)
        values["attn_factor"] = float(attention) / rotary.attention_factor(setting.factor)
    if not old:
        return text.put(source, (key,), {name: values[name] for name in sorted(values)})
    for name, value in values.items():
        source = text.put(source, (key, name), value)
    return source


def set_dca(source: Json, setting: DualChunkSetting) -> Json:
    """Turn dual chunk attention on; remove YaRN, which vLLM does not read with it.

    Args:
        source: config.json.
        setting: the numbers, and the sparse table.

    Raises:
        DcaError: DCA-201 for impossible numbers, DCA-208 and DCA-213 when config or table do not allow it.
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
    config = source.plain()
    old = config.get(DCA)
    if old is not None and not isinstance(old, dict):
        raise DcaError(
            "DCA-208",
            f"{source.name}, line {source.line(DCA)}: `{DCA}` is not an object.",
            remedy="remove it by hand.",
        )
    if setting.table is not None:
        check_table(setting.table, config, "the sparse table")
    numbers = {"chunk_size": setting.chunk_size, "local_size": setting.local_size, ORIGINAL: setting.original}
    rows = {TABLE: [OneLine(row) for row in setting.table], "sparse_attention_enabled": True} if setting.table else {}
    values: dict[str, Any] = {**numbers, **rows}
    if config.get(SCALING) is not None:
        source = text.remove(source, (SCALING,))
    inside = config.get(PARAMETERS)
    if isinstance(inside, dict) and inside.get("rope_type", "default") != "default":
        source = text.put(source, (PARAMETERS,), {THETA: _base(source, config), "rope_type": "default"})
    if isinstance(inside, dict) and THETA not in config:
        source = text.put(source, (THETA,), _base(source, config))
    if setting.length:
        source = text.put(source, (LENGTH,), setting.length)
    # The table is written last: each edit parses the text again, and the table is long.
    if old is None:
        return text.put(source, (DCA,), values)
    for name, value in values.items():
        source = text.put(source, (DCA, name), value)
    return source


def drop_dca(source: Json, cap: int = WITHOUT_DCA) -> Json:
    """Remove dual chunk attention, and cap the length at what the model supports without it.

    Args:
        source: config.json.
        cap: longest context to keep, in tokens.

    Raises:
        DcaError: DCA-208 when the length is not a number.
    """
    length = source.plain().get(LENGTH)
    if length is not None and (isinstance(length, bool) or not isinstance(length, (int, float))):
        raise DcaError(
            "DCA-208",
            f"{source.name}, line {source.line(LENGTH)}: `{LENGTH}` is not a number.",
            remedy="correct it by hand.",
        )
    if DCA not in source.root.members:
        return source
    source = text.remove(source, (DCA,))
    return text.put(source, (LENGTH,), cap) if length is not None and length > cap else source


def use_1m(source: Json, one_million: Json) -> Json:
    """Use the model's own file for a million tokens as its config.

    Args:
        source: config.json.
        one_million: config_1m.json.

    Raises:
        DcaError: DCA-208 when that file has no dual chunk attention, or belongs to another model.
    """
    new, config = one_million.plain(), source.plain()
    if not isinstance(new.get(DCA), dict):
        raise DcaError("DCA-208", f"{one_million.name} has no {DCA}.", remedy="download the model's own file again.")
    for name in ("model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads"):
        if new.get(name) != config.get(name):
            raise DcaError(
                "DCA-208",
                f"{one_million.name} belongs to another model: its `{name}` is {new.get(name)!r:.40}.",
                why=f"in {source.name} it is {config.get(name)!r:.40}.",
                remedy="download the model's own file.",
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
