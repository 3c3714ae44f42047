"""Rules for a model's config.json: each is a small function that finds one kind of problem and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dca.catalogue import registries
from dca.config import classes, guards, layout, models, own_code
from dca.config.edit import table_faults
from dca.config.layout import DCA, LENGTH, ORIGINAL, PARAMETERS, SCALING, TABLE, THETA, Layout, Rotary, structural
from dca.config.layout import count as count
from dca.config.layout import kind as kind
from dca.config.layout import number as number
from dca.config.models import KnownModel
from dca.config.readers import Reader
from dca.config.text import Json
from dca.foundation.documents import Value

PAGE = 16
# The keys of YaRN that readers know; they ignore or reject all others.
OF_YARN = {
    "type",
    "rope_type",
    "factor",
    ORIGINAL,
    "attention_factor",
    "attn_factor",
    "extrapolation_factor",
    "beta_fast",
    "beta_slow",
    "mscale",
    "mscale_all_dim",
    "truncate",
}
FLOATS = ("factor", "attention_factor", "attn_factor", "extrapolation_factor", "beta_fast", "beta_slow")
# Two names of one type, which vLLM accepts side by side.
SAME_TYPES = (("longrope", "su"), ("default", "mrope"))
# Kinds of scaling with which vLLM multiplies the length.
MULTIPLIED = ("yarn", "linear", "dynamic", "ntk")
# Sizes of the heads of latent attention, which head_dim and num_key_value_heads do not describe.
LATENT = ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "v_head_dim")
GUARDED = "DCA-138"
"""A command ends with it where a guard's own code, which is that of a failed server, would say so."""
Severity = Literal["error", "warning"]


class Finding(Value):
    """One problem.

    Args:
        code: stable; one for each rule.
        severity: an error is wrong for every intended reader; a warning is right for some readers, or slow.
        what: the problem, in a sentence.
        remedy: what to do.
        key: the key it concerns, dotted.
        line: line of that key, from 1; None for a problem outside the file.
    """

    code: str
    severity: Severity
    what: str
    remedy: str
    key: str = ""
    line: int | None = None

    @property
    def ending(self) -> str:
        """The code of a command that ends with this error, of which the first digit is the exit code."""
        return GUARDED if self.code in guards.codes() else self.code

    @property
    def why(self) -> str:
        """The problem, with its own code where a command ends with another."""
        return self.what if self.ending == self.code else f"{self.code}: {self.what}"


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Args:
        source: config.json.
        table: content of the sparse table's own file; None without one.
        tokenizer: content of tokenizer_config.json; empty without one.
        model: the known model; None when it cannot be identified.
        readers: the readers the folder is meant for.
        others: all known readers, for warnings when no reader is named.
        page: tokens per page of the KV cache.
        ranks: GPUs that share the heads; None skips that check.
        length: tokens of the longest prompt that is served; None for the model's own.
        layout: how engines read it.
    """

    source: Json
    table: Any = None
    tokenizer: dict[str, Any] = field(default_factory=dict)
    model: KnownModel | None = None
    readers: tuple[Reader, ...] = ()
    others: tuple[Reader, ...] = ()
    page: int = PAGE
    ranks: int | None = None
    length: int | None = None
    layout: Layout = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "layout", layout.read(self.source.plain()))

    @property
    def text(self) -> dict[str, Any]:
        """The part of the language model."""
        return self.layout.text

    @property
    def dca(self) -> dict[str, Any]:
        """The settings of dual chunk attention; empty without any."""
        dca = self.text.get(DCA)
        return dca if isinstance(dca, dict) else {}

    @property
    def family(self) -> bool:
        """Whether models of this type are in build/models, so that older readers know the type too."""
        return not self.layout.path and self.layout.text_type in models.types()

    @property
    def latent(self) -> bool:
        """Whether the heads are those of latent attention."""
        return any(self.layout.count(name) for name in LATENT)

    def at(self, *keys: str) -> tuple[str, ...]:
        """The path of keys in the language model's part."""
        return (*self.layout.path, *keys)

    def scalings(self) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """The scalings in the language model's part, each with its path; those of layer types one by one."""
        for key in (SCALING, PARAMETERS):
            value = self.text.get(key)
            if not isinstance(value, dict):
                continue
            if layout.per_layer(value):
                yield from ((self.at(key, name), part) for name, part in value.items() if isinstance(part, dict))
            else:
                yield self.at(key), value

    def yarns(self) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
        """The scalings that are YaRN."""
        return ((path, value) for path, value in self.scalings() if kind(value) == "yarn")

    def error(self, code: str, what: str, remedy: str, *path: str) -> Finding:
        """An error at a key."""
        return self._finding("error", code, what, remedy, path)

    def warning(self, code: str, what: str, remedy: str, *path: str) -> Finding:
        """A warning at a key."""
        return self._finding("warning", code, what, remedy, path)

    def _finding(self, severity: Severity, code: str, what: str, remedy: str, path: tuple[str, ...]) -> Finding:
        line = self.source.line(*path) if path else None
        return Finding(code=code, severity=severity, what=what, remedy=remedy, key=".".join(path), line=line)


Rule = Callable[[Subject], Iterator[Finding]]


def short(value: Any) -> str:
    """A value for a message."""
    text = ascii(value)
    return text if len(text) <= 40 else text[:37] + "..."


def known(subject: Subject) -> Iterator[Finding]:
    """DCA-137: a layout that dca does not know; nothing else is checked then."""
    if subject.layout.unknown:
        yield subject.warning(
            "DCA-137",
            f"dca does not know this layout: {subject.layout.unknown}. Nothing else was checked.",
            "nothing to do if it is not a language model's config.json.",
        )


def types(subject: Subject) -> Iterator[Finding]:
    """DCA-120: a scaling without a type, with two types, or with a type that is not text, or not for this class."""
    for key in (SCALING, PARAMETERS):
        if subject.text.get(key) is not None and not isinstance(subject.text[key], dict):
            yield subject.error(
                "DCA-120", f"`{key}` is not an object.", "correct it, or set it to null.", *subject.at(key)
            )
    for path, scaling in subject.scalings():
        modern, legacy = scaling.get("rope_type"), scaling.get("type")
        if modern is not None and legacy is not None and modern != legacy and (modern, legacy) not in SAME_TYPES:
            yield subject.error(
                "DCA-120",
                f"rope_type is {short(modern)} and type is {short(legacy)}: vLLM rejects that.",
                "keep one of the two.",
                *path,
                "type",
            )
        elif kind(scaling) is None and not all(map(structural, scaling)):
            yield subject.error(
                "DCA-120",
                f"`{path[-1]}` has no rope_type: vLLM rejects that.",
                'add the type that is meant, such as "rope_type": "yarn".',
                *path,
            )
        elif kind(scaling) is not None and not isinstance(kind(scaling), str):
            yield subject.error(
                "DCA-120",
                f"rope_type is {short(kind(scaling))}, which is not text.",
                'write the name of a type, such as "yarn".',
                *path,
            )
        else:
            yield from _refused(subject, path, scaling)


def _refused(subject: Subject, path: tuple[str, ...], scaling: dict[str, Any]) -> Iterator[Finding]:
    """A scaling that the model's configuration class does not load."""
    one = classes.refusing(subject.layout.text_type, scaling)
    if one is None:
        return
    what = (
        f"the configuration class of the type `{subject.layout.text_type}` loads {one.words}, not "
        f"{short(kind(scaling))} as it stands here: "
    )
    if one.readers:
        yield subject.warning(
            "DCA-120", f"{what}{one.readers} fails on it.", "nothing to do if you serve with a newer reader.", *path
        )
    else:
        yield subject.error(
            "DCA-120",
            f"{what}no reader loads the file.",
            "take back the last change with `dca config undo DIR`, or restore this object from the model's own file.",
            *path,
        )


def keys(subject: Subject) -> Iterator[Finding]:
    """DCA-121: YaRN keys that are missing, unknown, or not read by every reader."""
    for path, yarn in subject.yarns():
        yield from _missing(subject, path, yarn)
        for name in yarn:
            if name not in OF_YARN and not structural(name):
                yield subject.warning(
                    "DCA-121",
                    f"dca does not know the YaRN key `{short(name)[1:-1]}`; a misspelt key has no effect.",
                    "compare its name with the model's own file.",
                    *path,
                    name,
                )
        for name, other in (("attention_factor", "attn_factor"), ("attn_factor", "attention_factor")):
            if yarn.get(name) is not None and other not in yarn:
                of_newer = name == "attention_factor"
                who = f"vLLM 0.10 ignores `{name}` and uses" if of_newer else f"newer readers ignore `{name}` and use"
                yield subject.warning(
                    "DCA-121",
                    f"{who} the formula's value.",
                    "nothing to do if the model's own file has it; else `dca config set-yarn --attention-factor` "
                    "writes the keys of both.",
                    *path,
                    name,
                )
        if subject.latent:
            # Latent attention has a rotary embedding of its own in vLLM, which reads them.
            continue
        ignored = [name for name in ("mscale", "mscale_all_dim") if yarn.get(name) is not None]
        if ignored:
            yield subject.warning(
                "DCA-121",
                f"vLLM 0.10 ignores {', '.join(ignored)} for YaRN.",
                "nothing to do if the model's own file has them; else remove them.",
                *path,
                ignored[0],
            )
        if yarn.get("truncate") is False and (subject.family or subject.dca):
            yield subject.warning(
                "DCA-121",
                "vLLM with dual chunk attention, and transformers up to 4.51, ignore `truncate`.",
                "remove it if the model's own file has none.",
                *path,
                "truncate",
            )


def _missing(subject: Subject, path: tuple[str, ...], yarn: dict[str, Any]) -> Iterator[Finding]:
    """Required keys of YaRN that are missing."""
    if "factor" not in yarn:
        yield subject.error(
            "DCA-121", f"`{path[-1]}` lacks `factor`: readers fail with a KeyError.", _set_yarn(subject), *path
        )
    if ORIGINAL in yarn or count(subject.text.get(ORIGINAL)) is not None:
        return
    if SCALING in path:
        yield subject.error(
            "DCA-121", f"`{path[-1]}` lacks `{ORIGINAL}`: vLLM fails with a KeyError.", _set_yarn(subject), *path
        )
    else:
        yield subject.warning(
            "DCA-121",
            f"`{path[-1]}` lacks `{ORIGINAL}`: readers take {LENGTH} for it, and older ones fail.",
            _set_yarn(subject),
            *path,
        )


def _set_yarn(subject: Subject) -> str:
    """The remedy for a missing key of YaRN, with the model's own length if it is known."""
    if subject.model:
        return f"set it with `dca config set-yarn --original {subject.model.native_length}`."
    return "set it with `dca config set-yarn --original TOKENS`, the length without YaRN."


def spelling(subject: Subject) -> Iterator[Finding]:
    """DCA-122: integers where floats are required, and the other way round."""
    for path, yarn in subject.yarns():
        stated = {name: yarn[name] for name in FLOATS if yarn.get(name) is not None}
        integers = {name: value for name, value in stated.items() if count(value) is not None}
        for name, value in stated.items():
            if name not in integers and (not isinstance(value, float) or value <= 0):
                yield _misspelt(subject, value, "a positive float", *path, name)
        if integers:
            names = ", ".join(f"`{name}`" for name in integers)
            yield subject.warning(
                "DCA-122",
                f"integers in place of floats: {names}. transformers prints a warning, and reads them all the same.",
                f"write {', '.join(f'{value}.0' for value in integers.values())} to silence it.",
                *path,
                next(iter(integers)),
            )
        if ORIGINAL in yarn and count(yarn[ORIGINAL]) is None:
            yield _misspelt(subject, yarn[ORIGINAL], "a positive integer", *path, ORIGINAL)
    for name in (LENGTH, "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"):
        value = subject.text.get(name)
        each = [value]
        if value and name != LENGTH:
            # Some models state a number for each layer, or for each of their parts.
            each = value if isinstance(value, list) else [*value.values()] if isinstance(value, dict) else each
        # Some classes of latent attention, whose heads have sizes of their own, save 0.
        if name == "head_dim" and value == 0 and subject.latent:
            continue
        if value is not None and not all(count(one) is not None for one in each):
            yield _misspelt(subject, value, "a positive integer", *subject.at(name))


def _misspelt(subject: Subject, value: Any, spelling: str, *path: str) -> Finding:
    what = f"`{path[-1]}` is {short(value)}; it must be {spelling}."
    return subject.error("DCA-122", what, "correct it.", *path)


def lengths(subject: Subject) -> Iterator[Finding]:
    """DCA-123: factor and original length do not match max_position_embeddings as the readers require."""
    for path, yarn in subject.yarns():
        factor, original, length = number(yarn.get("factor")), count(yarn.get(ORIGINAL)), _length(subject)
        # DCA-128 reports YaRN together with dual chunk attention, which vLLM does not read.
        if factor is None or original is None or length is None or subject.dca:
            continue
        product = int(original * factor) if factor < 1 << 40 else 0
        where = subject.layout.where(LENGTH)
        if factor < 1:
            yield subject.error(
                "DCA-123", f"factor is {factor:g}; it must be at least 1.", "write 1 or more.", *path, "factor"
            )
        elif length not in (original, product):
            yield subject.warning(
                "DCA-123",
                f"{where[-1]} is {length:,}, but {factor:g} x {original:,} = {product:,}: vLLM up to 0.29 serves the "
                f"product, vLLM from 0.30 on and other readers the value of {where[-1]}.",
                f"nothing to do if the model's own file has these numbers; else write {product}.",
                *where,
            )
        # Older versions know only the types of build/models; they read other models with code of the models' own.
        if subject.family:
            yield from _scaled_wrongly(subject, original, product)
        own = subject.model.native_length if subject.model else original
        if original != own:
            yield subject.warning(
                "DCA-123",
                f"the model's own length is {own:,}, but {ORIGINAL} is {original:,}.",
                f"set it with `dca config set-yarn --original {own}`.",
                *path,
                ORIGINAL,
            )


def _scaled_wrongly(subject: Subject, original: int, product: int) -> Iterator[Finding]:
    """Readers that silently scale wrongly, or serve less, with this max_position_embeddings."""
    length = _length(subject)
    for right, name in ((original, "original"), (product, "extended")):
        if length == right:
            continue
        for reader in subject.readers:
            if reader.wants.length == name:
                yield subject.error(
                    "DCA-123",
                    f"{reader.title} silently scales wrongly, or serves {length or 0:,} tokens, unless {LENGTH} is "
                    f"{right:,}.",
                    f"`dca config set-yarn --for {reader.name}` writes that value.",
                    LENGTH,
                )
        others = [reader.title for reader in subject.others if reader.wants.length == name]
        if others and not subject.readers:
            yield subject.warning(
                "DCA-123",
                f"{', '.join(others)} would silently scale wrongly, or serve {length or 0:,} tokens: they require "
                f"{LENGTH} to be {right:,}.",
                "to serve with such a version: `dca config set-yarn --for READER --out DIR`.",
                LENGTH,
            )


def _length(subject: Subject) -> int | None:
    return subject.layout.length


def tables(subject: Subject) -> Iterator[Finding]:
    """DCA-124: dual chunk attention without a sparse table."""
    table = subject.table if subject.table is not None else subject.dca.get(TABLE)
    if not subject.dca or table:
        return
    if subject.dca.get("sparse_attention_enabled"):
        yield subject.error(
            "DCA-124",
            "sparse attention is on but has no table: the first long prompt crashes the engine.",
            f"put the model's own {TABLE}.json beside config.json, or run `dca config set-dca --sparse FILE`.",
            DCA,
            "sparse_attention_enabled",
        )
    elif "sparse_attention_enabled" not in subject.dca:
        yield subject.warning(
            "DCA-124",
            "the sparse table is missing: attention runs dense, which is slow for long prompts.",
            f"put the model's own {TABLE}.json beside config.json, or set sparse_attention_enabled to false.",
            DCA,
        )


def table_shape(subject: Subject) -> Iterator[Finding]:
    """DCA-125: a sparse table that is damaged, or another model's."""
    layers, heads = subject.text.get("num_hidden_layers"), subject.text.get("num_attention_heads")
    places = ((f"{TABLE}.json", subject.table, ()), (TABLE, subject.dca.get(TABLE), subject.at(DCA, TABLE)))
    for name, table, path in places:
        if table is not None and (subject.dca or not path):
            for fault in table_faults(table, layers, heads):
                yield subject.error("DCA-125", f"{name}: {fault}.", "use the table published with this model.", *path)


def table_lines(subject: Subject) -> Iterator[Finding]:
    """DCA-818 and 819: heads with so few lines, or chunks so short, that the guards of the wheels refuse them."""
    layers, heads = subject.layout.count("num_hidden_layers"), subject.layout.count("num_attention_heads")
    table = subject.table if subject.table is not None else subject.dca.get(TABLE)
    longest = subject.length or _length(subject)
    if not subject.dca or not table or not layers or not heads or not longest or table_faults(table, layers, heads):
        return
    # DCA-131 reports heads that cannot be shared.
    ranks = subject.ranks if subject.ranks and heads % subject.ranks == 0 else 1
    refusal = guards.lines(subject.dca, table, guards.Heads(layers, heads, ranks), longest)
    if refusal is not None:
        path = subject.at(DCA) if refusal.code == "DCA-819" or subject.table is None else ()
        yield subject.error(*refusal, *path)


def base(subject: Subject) -> Iterator[Finding]:
    """DCA-126: rope_theta is missing, has two values, or is not the model's."""
    for rotary in subject.layout.rotary:
        if not rotary.base_path:
            yield from _no_base(subject, rotary)
    places = [(subject.at(THETA), subject.text.get(THETA))]
    places += [((*path, THETA), scaling.get(THETA)) for path, scaling in subject.scalings()]
    stated = [(path, value) for path, value in places if value is not None]
    inside = subject.text.get(PARAMETERS)
    held = inside.get(THETA) if isinstance(inside, dict) else None
    top = subject.text.get(THETA)
    if held is not None and top is None and _read_by_older(subject):
        yield subject.warning(
            "DCA-126",
            "rope_theta is only in rope_parameters: vLLM up to 0.11 and transformers 4 do not read it there, and use "
            "their own default.",
            f'add "{THETA}": {short(held)} at the top level for them.',
            *subject.at(PARAMETERS, THETA),
        )
    elif held is not None and top is not None and number(held) != number(top):
        yield subject.error(
            "DCA-126",
            f"rope_theta is {short(top)} beside rope_parameters, but {short(held)} in it.",
            "write the model's own value in both.",
            *subject.at(THETA),
        )
    for path, value in stated:
        yield from _wrong_base(subject, path, value)


def _no_base(subject: Subject, rotary: Rotary) -> Iterator[Finding]:
    """A base that the file does not state: right for models whose class has it as the default."""
    if subject.family:
        yield subject.error(
            "DCA-126",
            "rope_theta is missing; each reader has its own default, 10,000 or 1,000,000.",
            "write the model's own value, from the model's page.",
            *subject.at(THETA),
        )
    elif rotary.scaled:
        yield subject.warning(
            "DCA-126",
            "rope_theta is not in the file: each reader takes the default of the model's class.",
            "nothing to do if the model's own file has none.",
            *rotary.path,
        )


def _read_by_older(subject: Subject) -> bool:
    """Whether readers from before rope_parameters know the model's type."""
    return not subject.layout.path and any(
        subject.layout.text_type in reader.knows for reader in subject.others or subject.readers
    )


def _wrong_base(subject: Subject, path: tuple[str, ...], value: Any) -> Iterator[Finding]:
    """A base that is impossible, or not the model's."""
    bases = value if isinstance(value, list) and value else [value]
    if any((theta := number(one)) is None or theta <= 1 for one in bases):
        yield subject.error("DCA-126", f"rope_theta is {short(value)}.", "write the model's own value.", *path)
    elif subject.model and value != subject.model.rope_theta:
        sure = "rope_theta" not in subject.model.unverified
        yield (subject.error if sure else subject.warning)(
            "DCA-126",
            f"rope_theta is {short(value)}; {subject.model.name} was trained with {subject.model.rope_theta:,.0f}"
            + ("." if sure else " (second-hand)."),
            f"write {subject.model.rope_theta!r}." if sure else "compare with the model's own file.",
            *path,
        )


def rows(subject: Subject) -> Iterator[Finding]:
    """DCA-127: more tokens than the rotary table has rows, or than the model supports."""
    length = _length(subject)
    if length is None:
        return
    for path, scaling in subject.scalings():
        factor = number(scaling.get("factor"))
        if subject.dca and factor and factor > 1 and kind(scaling) in MULTIPLIED:
            start = count(scaling.get(ORIGINAL)) if kind(scaling) == "yarn" else length
            allowed = int((start or length) * min(factor, 1 << 40))
            if allowed > length:
                yield subject.error(
                    "DCA-127",
                    f"vLLM allows {allowed:,} tokens, but its rotary table has {length:,} rows: a position "
                    "past the table is a device-side assert on the GPU.",
                    f"remove `{path[-1]}`.",
                    *path,
                    "factor",
                )
    known = subject.model
    # Of some models the settings of dual chunk attention are not recorded, nor the length that they are for.
    if known is None or (subject.dca and known.dual_chunk is None):
        return
    most = max(known.max_position_embeddings, known.dual_chunk.max_position_embeddings if known.dual_chunk else 0)
    scaled = [count(yarn.get(ORIGINAL)) for _, yarn in subject.yarns()]
    if length > most and not scaled:
        yield subject.error(
            "DCA-127", f"{LENGTH} is {length:,}; {known.name} supports {most:,}.", f"write {most}.", LENGTH
        )


def together(subject: Subject) -> Iterator[Finding]:
    """DCA-128: YaRN together with dual chunk attention, or on a model that supports long texts without it."""
    for path, _ in subject.yarns():
        if subject.dca:
            yield subject.error(
                "DCA-128",
                f"vLLM ignores `{path[-1]}` with dual chunk attention, but still multiplies the length by its factor.",
                f"remove `{path[-1]}`.",
                *path,
            )
        elif subject.model and subject.model.yarn is None and subject.model.native_length >= 1 << 18:
            yield subject.warning(
                "DCA-128",
                f"{subject.model.name} reads {subject.model.native_length:,} tokens without YaRN, and was not "
                "made for it.",
                "for longer texts use dual chunk attention: `dca config set-dca` or `dca config use-1m`.",
                *path,
            )


def pages(subject: Subject) -> Iterator[Finding]:
    """DCA-129: a chunk that ends inside a page of the KV cache."""
    chunk, local = count(subject.dca.get("chunk_size")), count(subject.dca.get("local_size"))
    if subject.dca and subject.page % PAGE:
        yield subject.error(
            "DCA-129",
            f"the page size is {subject.page}; the kernels of dual chunk attention read pages of a multiple of {PAGE} "
            "tokens.",
            "serve with the default --block-size.",
            *subject.at(DCA),
        )
    elif subject.dca and chunk and local and local < chunk and (chunk - local) % subject.page:
        yield subject.error(
            "DCA-129",
            f"chunk_size - local_size = {chunk - local:,} is not divisible by the page size, {subject.page}.",
            "correct the two sizes, or serve with a --block-size that divides the difference.",
            *subject.at(DCA, "chunk_size"),
        )


def window(subject: Subject) -> Iterator[Finding]:
    """DCA-130: a sliding window that cuts long texts."""
    if subject.text.get("use_sliding_window") and (subject.dca or (subject.family and any(subject.yarns()))):
        size = short(subject.text.get("sliding_window"))
        yield subject.error(
            "DCA-130",
            f"a sliding window of {size} tokens is on; the long-context settings require it off.",
            "set use_sliding_window to false.",
            *subject.at("use_sliding_window"),
        )


def sharing(subject: Subject) -> Iterator[Finding]:
    """DCA-131: heads that the GPUs cannot share."""
    heads, few = subject.layout.count("num_attention_heads"), subject.layout.count("num_key_value_heads")
    ranks = subject.ranks
    if ranks is None or heads is None:
        return
    # Latent attention keeps one copy of its cache on each GPU.
    few = 1 if subject.latent else few or heads
    allowed = [size for size in range(1, min(heads, 1024) + 1) if can_share(heads, few, size)]
    if not can_share(heads, few, ranks):
        whose = f"{heads} heads" if subject.latent else f"{heads} heads and {few} key heads"
        yield subject.error(
            "DCA-131",
            f"{whose} cannot be shared by {ranks} GPUs.",
            f"use one of these tensor-parallel sizes: {', '.join(map(str, allowed))}.",
            *subject.layout.where("num_attention_heads"),
        )


def can_share(heads: int, kv_heads: int, ranks: int) -> bool:
    """Whether this many GPUs can share the heads, by vLLM's own conditions."""
    return heads % ranks == 0 and (kv_heads % ranks == 0 if kv_heads >= ranks else ranks % kv_heads == 0)


def shapes(subject: Subject) -> Iterator[Finding]:
    """DCA-132: head counts that contradict each other or the model."""
    read = subject.layout
    heads, few = read.count("num_attention_heads"), read.count("num_key_value_heads")
    size, dim = read.count("hidden_size"), read.count("head_dim")
    if heads and few and heads % few and not subject.latent:
        yield subject.error(
            "DCA-132",
            f"{heads} heads are not divisible by {few} key heads.",
            "compare with the model's own file.",
            *read.where("num_key_value_heads"),
        )
    # Classes of other families have sizes of heads under names of their own.
    if subject.family and heads and size and dim is None and size % heads:
        yield subject.error(
            "DCA-132",
            f"hidden_size {size} is not divisible by {heads} heads.",
            "compare with the model's own file.",
            *read.where("hidden_size"),
        )
    known = subject.model
    if known and not known.has_shape_of(read.text):
        yield subject.error(
            "DCA-132",
            f"layers or heads differ from {known.name}'s: {known.layers} layers, {known.heads} heads, "
            f"{known.kv_heads} key heads, hidden size {known.hidden_size}.",
            "compare with the model's own file.",
            *read.where("num_hidden_layers"),
        )


def chunks(subject: Subject) -> Iterator[Finding]:
    """DCA-133: numbers of dual chunk attention that are impossible, or another model's; a class without it."""
    kind_of = subject.layout.text_type
    if subject.dca and kind_of and kind_of not in classes.load().dual_chunk:
        yield subject.error(
            "DCA-133",
            f"no engine computes dual chunk attention for the type `{kind_of}`: attention would stay as it is.",
            "remove it with `dca config drop-dca DIR`.",
            *subject.at(DCA),
        )
    dual = subject.text.get(DCA)
    if dual is None:
        if DCA in subject.text:
            yield subject.warning(
                "DCA-133", f"`{DCA}` is null, which crashes some versions of vLLM.", "remove the key.", *subject.at(DCA)
            )
        return
    if not isinstance(dual, dict) or not dual:
        yield subject.error(
            "DCA-133", f"`{DCA}` is {short(dual)}.", "remove it, or run `dca config set-dca`.", *subject.at(DCA)
        )
        return
    # The attention backend has defaults for both, and the rotary embedding of the same engines has none.
    chunk, local = dual.get("chunk_size"), dual.get("local_size")
    if not (whole := count(chunk)) or not (part := count(local)) or whole <= part:
        yield subject.error(
            "DCA-133",
            f"chunk_size is {short(chunk)} and local_size is {short(local)}; chunk_size must be the larger, and both "
            "positive integers.",
            "write the model's own values: `dca config set-dca`.",
            *subject.at(DCA),
        )
    original = dual.get(ORIGINAL, 0)
    if count(original) is None:
        yield subject.error(
            "DCA-133",
            f"{ORIGINAL} in `{DCA}` is {short(original)}: unpatched vLLM requires it, and crashes at the first prompt "
            "without it.",
            "write the model's own value: `dca config set-dca`.",
            *subject.at(DCA),
        )
    own = subject.model.dual_chunk if subject.model else None
    for name in ("chunk_size", "local_size", ORIGINAL):
        if own and name in dual and dual[name] != getattr(own, name):
            sure = subject.model is not None and "dual_chunk" not in subject.model.unverified
            yield (subject.error if sure else subject.warning)(
                "DCA-133",
                f"{name} is {short(dual[name])}; the model's own value is {getattr(own, name)}"
                + ("." if sure else " (second-hand)."),
                "compare with the model's own file.",
                *subject.at(DCA),
                name,
            )


def stops(subject: Subject) -> Iterator[Finding]:
    """DCA-134: an intended reader that fails on the key of dual chunk attention."""
    for reader in subject.readers:
        if DCA in subject.text and reader.wants.dual_chunk == "stops":
            yield subject.error(
                "DCA-134",
                f"{reader.title} fails on `{DCA}`.",
                "remove it with `dca config drop-dca`, or serve it with a wheel of a recipe that `dca plan` names.",
                *subject.at(DCA),
            )


def mark(subject: Subject) -> Iterator[Finding]:
    """DCA-135: a byte-order mark."""
    if subject.source.bom:
        yield subject.error(
            "DCA-135",
            "the file begins with a byte-order mark, which Python's JSON readers reject.",
            "save it as UTF-8 without a byte-order mark.",
        )


def both(subject: Subject) -> Iterator[Finding]:
    """DCA-136: rope_scaling and rope_parameters that differ, or stand where readers do not look."""
    yield from _outside(subject)
    old, new = subject.text.get(SCALING), subject.text.get(PARAMETERS)
    if not isinstance(old, dict) or not isinstance(new, dict) or not old or not new:
        return
    if layout.per_layer(old) != layout.per_layer(new):
        yield subject.error(
            "DCA-136",
            f"{PARAMETERS} and {SCALING} cannot both hold: one of them has an object per type of layer. Readers take "
            f"{SCALING}.",
            "keep the one that the model's own file has.",
            *subject.at(SCALING),
        )
        return
    if layout.per_layer(old):
        return
    old, new = ({**value, "rope_type": kind(value)} for value in (old, new))
    for name in ("rope_type", "factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow"):
        if old.get(name) != new.get(name):
            yield subject.error(
                "DCA-136",
                f"`{name}` is {short(old.get(name))} in {SCALING} and {short(new.get(name))} in {PARAMETERS}.",
                "write the same in both, or keep only the one that your reader reads.",
                *subject.at(SCALING),
            )
            return


def _outside(subject: Subject) -> Iterator[Finding]:
    """Rotary settings at the top level of a model whose language model has a part of its own."""
    # transformers 4 saves the sizes and settings of some models in both places, and others rotate something else there.
    if not subject.layout.path or any(subject.layout.config.get(name) for name in ("num_hidden_layers", "head_dim")):
        return
    part = ".".join(subject.layout.path)
    for name in (SCALING, PARAMETERS, THETA):
        if subject.layout.config.get(name) is None:
            continue
        yield subject.error(
            "DCA-136",
            f"`{name}` is at the top level, but this model's readers take it from `{part}`; newer ones fail on it.",
            f"remove it; the language model's settings belong in `{part}`.",
            name,
        )


def brought(subject: Subject) -> Iterator[Finding]:
    """DCA-139: code of the model's own, which every reader must run, because none has a class itself."""
    newest = registries.load().all_releases()[-1]
    if parts := list(own_code.of(subject.source.plain(), subject.tokenizer, newest)):
        yield subject.warning(
            "DCA-139",
            f"the model's own code has {' and '.join(parts)}: no vLLM up to {newest.version} has one.",
            "read the model's *.py files: engines need --trust-remote-code to run them; the readers of dca never do.",
            *(("auto_map",) if "auto_map" in subject.source.plain() else ()),
        )


# The order is that of their codes; DCA-137 is for files that the others are not for.
RULES: tuple[Rule, ...] = (
    types,
    keys,
    spelling,
    lengths,
    tables,
    table_shape,
    base,
    rows,
    together,
    pages,
    window,
    sharing,
    shapes,
    chunks,
    stops,
    mark,
    both,
    known,
    brought,
    table_lines,
)
# What holds for any file.
ALWAYS: tuple[Rule, ...] = (mark, known)


def check(subject: Subject, rules: Sequence[Rule] = RULES) -> tuple[Finding, ...]:
    """Every problem of a folder, errors first, then by line."""
    if subject.layout.unknown:
        rules = [rule for rule in rules if rule in ALWAYS]
    findings = [finding for rule in rules for finding in rule(subject)]
    return tuple(sorted(findings, key=lambda finding: (finding.severity != "error", finding.line or 0, finding.code)))
