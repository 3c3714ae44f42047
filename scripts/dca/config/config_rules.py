"""Rules for a model's config.json: each is a small function that finds one kind of problem and says what to do."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from dca.config.edit import table_faults
from dca.config.layout import DCA, LENGTH, ORIGINAL, PARAMETERS, SCALING, TABLE, THETA
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
    THETA,
    "partial_rotary_factor",
    "mrope_section",
}
FLOATS = ("factor", "attention_factor", "attn_factor", "extrapolation_factor", "beta_fast", "beta_slow", THETA)

# Kinds of scaling with which vLLM multiplies the length.
MULTIPLIED = ("yarn", "linear", "dynamic", "ntk")
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


@dataclass(frozen=True)
class Subject:
    """What is checked.

    Args:
        source: config.json.
        table: content of the sparse table's own file; None without one.
        model: the known model; None when it cannot be identified.
        readers: the readers the folder is meant for.
        others: all known readers, for warnings when no reader is named.
        page: tokens per page of the KV cache.
        ranks: GPUs that share the heads; None skips that check.
        config: content of config.json.
    """

    source: Json
    table: Any = None
    model: KnownModel | None = None
    readers: tuple[Reader, ...] = ()
    others: tuple[Reader, ...] = ()
    page: int = PAGE
    ranks: int | None = None
    config: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "config", self.source.plain())

    @property
    def dca(self) -> dict[str, Any]:
        """The settings of dual chunk attention; empty without any."""
        dca = self.config.get(DCA)
        return dca if isinstance(dca, dict) else {}

    def scalings(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The scalings in the file, each with its key."""
        for key in (SCALING, PARAMETERS):
            value = self.config.get(key)
            if isinstance(value, dict) and not any(isinstance(part, dict) for part in value.values()):
                yield key, value

    def yarns(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """The scalings that are YaRN."""
        return ((key, value) for key, value in self.scalings() if kind(value) == "yarn")

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


def types(subject: Subject) -> Iterator[Finding]:
    """DCA-120: a scaling without a type, with two types, or with a type that is not text."""
    for key in (SCALING, PARAMETERS):
        if subject.config.get(key) is not None and not isinstance(subject.config[key], dict):
            yield subject.error("DCA-120", f"`{key}` is not an object.", "correct it, or set it to null.", key)
    for key, scaling in subject.scalings():
        modern, legacy = scaling.get("rope_type"), scaling.get("type")
        if modern is not None and legacy is not None and modern != legacy:
            yield subject.error(
                "DCA-120",
                f"rope_type is {short(modern)} and type is {short(legacy)}: vLLM rejects that.",
                "keep one of the two.",
                key,
                "type",
            )
        elif kind(scaling) is None and (key == SCALING or set(scaling) - {THETA, "partial_rotary_factor"}):
            yield subject.error(
                "DCA-120", f"`{key}` has no rope_type: vLLM rejects that.", 'add "rope_type": "yarn".', key
            )
        elif kind(scaling) is not None and not isinstance(kind(scaling), str):
            yield subject.error(
                "DCA-120",
                f"rope_type is {short(kind(scaling))}, which is not text.",
                'write a name, such as "yarn".',
                key,
            )


def keys(subject: Subject) -> Iterator[Finding]:
    """DCA-121: YaRN keys that are missing, unknown, or not read by every reader."""
    for key, yarn in subject.yarns():
        for name in ("factor", ORIGINAL):
            if name not in yarn:
                yield subject.error(
                    "DCA-121",
                    f"`{key}` lacks `{name}`: vLLM fails with a KeyError.",
                    "set it with `dca config set-yarn`.",
                    key,
                )
        for name in yarn:
            if name not in OF_YARN:
                yield subject.warning(
                    "DCA-121",
                    f"no reader knows the YaRN key `{short(name)[1:-1]}`.",
                    "remove it, or correct its name.",
                    key,
                    name,
                )
        one_sided = {"attention_factor": "attn_factor", "attn_factor": "attention_factor"}
        for name, other in one_sided.items():
            if name in yarn and other not in yarn:
                who = "vLLM" if name == "attention_factor" else "transformers"
                yield subject.warning(
                    "DCA-121",
                    f"{who} ignores `{name}` and uses the formula's value.",
                    "`dca config set-yarn --attention-factor` writes the key of both.",
                    key,
                    name,
                )
        ignored = [name for name in ("mscale", "mscale_all_dim") if name in yarn]
        if ignored:
            yield subject.warning(
                "DCA-121",
                f"vLLM ignores {', '.join(ignored)} for YaRN.",
                "remove them if the model's own file has none.",
                key,
                ignored[0],
            )
        if yarn.get("truncate") is False:
            yield subject.warning(
                "DCA-121",
                "vLLM with dual chunk attention, and transformers up to 4.51, ignore `truncate`.",
                "remove it if the model's own file has none.",
                key,
                "truncate",
            )


def spelling(subject: Subject) -> Iterator[Finding]:
    """DCA-122: integers where floats are required, and the other way round."""
    for key, yarn in subject.yarns():
        for name in FLOATS:
            if name in yarn and not isinstance(yarn[name], float):
                yield _misspelt(subject, yarn[name], "a float", key, name)
            elif name in yarn and yarn[name] <= 0:
                yield _misspelt(subject, yarn[name], "a positive float", key, name)
        if ORIGINAL in yarn and count(yarn[ORIGINAL]) is None:
            yield _misspelt(subject, yarn[ORIGINAL], "a positive integer", key, ORIGINAL)
    for name in (LENGTH, "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"):
        value = subject.config.get(name)
        if value is not None and count(value) is None:
            yield _misspelt(subject, value, "a positive integer", name)


def _misspelt(subject: Subject, value: Any, spelling: str, *path: str) -> Finding:
    what = f"`{path[-1]}` is {short(value)}; it must be {spelling}."
    # For an integer in place of a float, readers only print a warning.
    if spelling == "a float" and isinstance(value, int) and not isinstance(value, bool):
        return subject.warning("DCA-122", what, f"write {value}.0." if abs(value) < 1 << 60 else "correct it.", *path)
    return subject.error("DCA-122", what, "correct it.", *path)


def lengths(subject: Subject) -> Iterator[Finding]:
    """DCA-123: factor and original length do not match max_position_embeddings as the readers require."""
    for key, yarn in subject.yarns():
        factor, original, length = number(yarn.get("factor")), count(yarn.get(ORIGINAL)), _length(subject)
        # DCA-128 reports YaRN together with dual chunk attention, which vLLM does not read.
        if factor is None or original is None or length is None or subject.dca:
            continue
        product = int(original * factor) if factor < 1 << 40 else 0
        if factor < 1:
            yield subject.error(
                "DCA-123", f"factor is {factor:g}; it must be at least 1.", "write 1 or more.", key, "factor"
            )
        elif length not in (original, product):
            yield subject.warning(
                "DCA-123",
                f"{LENGTH} is {length:,}, but {factor:g} x {original:,} = {product:,}: vLLM allows the product, other "
                f"readers the value of {LENGTH}.",
                f"write {product} or {original}: `dca config set-yarn --for READER` writes the right one.",
                LENGTH,
            )
        yield from _scaled_wrongly(subject, original, product)
        own = subject.model.native_length if subject.model else original
        if original != own:
            yield subject.warning(
                "DCA-123",
                f"the model's own length is {own:,}, but {ORIGINAL} is {original:,}.",
                f"set it with `dca config set-yarn --original {own}`.",
                key,
                ORIGINAL,
            )


def _scaled_wrongly(subject: Subject, original: int, product: int) -> Iterator[Finding]:
    """Readers that silently scale wrongly with this max_position_embeddings."""
    length = _length(subject)
    for right, name in ((original, "original"), (product, "extended")):
        if length == right:
            continue
        for reader in subject.readers:
            if reader.wants.length == name:
                yield subject.error(
                    "DCA-123",
                    f"{reader.title} silently scales wrongly unless {LENGTH} is {right:,}.",
                    f"`dca config set-yarn --for {reader.name}` writes that value.",
                    LENGTH,
                )
        others = [reader.title for reader in subject.others if reader.wants.length == name]
        if others and not subject.readers:
            yield subject.warning(
                "DCA-123",
                f"{', '.join(others)} would silently scale wrongly: they require {LENGTH} to be {right:,}.",
                "to serve with such a version: `dca config set-yarn --for READER --out DIR`.",
                LENGTH,
            )


def _length(subject: Subject) -> int | None:
    return count(subject.config.get(LENGTH))


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
    layers, heads = subject.config.get("num_hidden_layers"), subject.config.get("num_attention_heads")
    places = ((f"{TABLE}.json", subject.table, ()), (TABLE, subject.dca.get(TABLE), (DCA, TABLE)))
    for name, table, path in places:
        if table is not None and (subject.dca or not path):
            for fault in table_faults(table, layers, heads):
                yield subject.error("DCA-125", f"{name}: {fault}.", "use the table published with this model.", *path)


def base(subject: Subject) -> Iterator[Finding]:
    """DCA-126: rope_theta is missing, has two values, or is not the model's."""
    top = subject.config.get(THETA)
    inside = (subject.config.get(PARAMETERS) or {}) if isinstance(subject.config.get(PARAMETERS), dict) else {}
    held = inside.get(THETA)
    if top is None and held is None:
        yield subject.error(
            "DCA-126",
            "rope_theta is missing; each reader has its own default, 10,000 or 1,000,000.",
            "write the model's own value, from the model's page.",
            THETA,
        )
    elif top is None:
        yield subject.warning(
            "DCA-126",
            "rope_theta is only in rope_parameters: vLLM up to 0.11 and transformers 4 do not read it there, and use "
            "their own default.",
            f'add "{THETA}": {short(held)} at the top level for them.',
            PARAMETERS,
            THETA,
        )
    elif held is not None and number(held) != number(top):
        yield subject.error(
            "DCA-126",
            f"rope_theta is {short(top)} at the top level, but {short(held)} in rope_parameters.",
            "write the model's own value in both.",
            THETA,
        )
    for value, path in ((top, (THETA,)), (held, (PARAMETERS, THETA))):
        if value is not None and ((theta := number(value)) is None or theta <= 1):
            yield subject.error("DCA-126", f"rope_theta is {short(value)}.", "write the model's own value.", *path)
        elif value is not None and subject.model and theta != subject.model.rope_theta:
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
    for key, scaling in subject.scalings():
        factor = number(scaling.get("factor"))
        if subject.dca and factor and factor > 1 and kind(scaling) in MULTIPLIED:
            start = count(scaling.get(ORIGINAL)) if kind(scaling) == "yarn" else length
            allowed = int((start or length) * min(factor, 1 << 40))
            if allowed > length:
                yield subject.error(
                    "DCA-127",
                    f"vLLM allows {allowed:,} tokens, but its rotary table has {length:,} rows: a position "
                    "past the table is a device-side assert on the GPU.",
                    f"remove `{key}`.",
                    key,
                    "factor",
                )
    known = subject.model
    if known is None:
        return
    most = max(known.max_position_embeddings, known.dual_chunk.max_position_embeddings if known.dual_chunk else 0)
    scaled = [count(yarn.get(ORIGINAL)) for _, yarn in subject.yarns()]
    if length > most and not scaled:
        yield subject.error(
            "DCA-127", f"{LENGTH} is {length:,}; {known.name} supports {most:,}.", f"write {most}.", LENGTH
        )


def together(subject: Subject) -> Iterator[Finding]:
    """DCA-128: YaRN together with dual chunk attention, or on a model that supports long texts without it."""
    for key, _ in subject.yarns():
        if subject.dca:
            yield subject.error(
                "DCA-128",
                f"vLLM ignores `{key}` with dual chunk attention, but still multiplies the length by its factor.",
                f"remove `{key}`.",
                key,
            )
        elif subject.model and subject.model.yarn is None and subject.model.native_length >= 1 << 18:
            yield subject.warning(
                "DCA-128",
                f"{subject.model.name} reads {subject.model.native_length:,} tokens without YaRN, and was not "
                "made for it.",
                "for longer texts use dual chunk attention: `dca config set-dca` or `dca config use-1m`.",
                key,
            )


def pages(subject: Subject) -> Iterator[Finding]:
    """DCA-129: a chunk that ends inside a page of the KV cache."""
    chunk, local = count(subject.dca.get("chunk_size", 8192)), count(subject.dca.get("local_size", 1024))
    if subject.dca and chunk and local and local < chunk and (chunk - local) % subject.page:
        yield subject.error(
            "DCA-129",
            f"chunk_size - local_size = {chunk - local:,} is not divisible by the page size, {subject.page}.",
            "correct the two sizes, or serve with a --block-size that divides the difference.",
            DCA,
            "chunk_size",
        )


def window(subject: Subject) -> Iterator[Finding]:
    """DCA-130: a sliding window that cuts long texts."""
    if subject.config.get("use_sliding_window") and (subject.dca or any(subject.yarns())):
        size = short(subject.config.get("sliding_window"))
        yield subject.error(
            "DCA-130",
            f"a sliding window of {size} tokens is on; the long-context settings require it off.",
            "set use_sliding_window to false.",
            "use_sliding_window",
        )


def sharing(subject: Subject) -> Iterator[Finding]:
    """DCA-131: heads that the GPUs cannot share."""
    heads, few = count(subject.config.get("num_attention_heads")), count(subject.config.get("num_key_value_heads"))
    ranks = subject.ranks
    if ranks is None or heads is None:
        return
    allowed = [size for size in range(1, min(heads, 1024) + 1) if can_share(heads, few or heads, size)]
    if not can_share(heads, few or heads, ranks):
        yield subject.error(
            "DCA-131",
            f"{heads} heads and {few or heads} key heads cannot be shared by {ranks} GPUs.",
            f"use one of these tensor-parallel sizes: {', '.join(map(str, allowed))}.",
            "num_attention_heads",
        )


def can_share(heads: int, kv_heads: int, ranks: int) -> bool:
    """Whether this many GPUs can share the heads, by vLLM's own conditions."""
    return heads % ranks == 0 and (kv_heads % ranks == 0 if kv_heads >= ranks else ranks % kv_heads == 0)


def shapes(subject: Subject) -> Iterator[Finding]:
    """DCA-132: head counts that contradict each other or the model."""
    config = subject.config
    heads, few = count(config.get("num_attention_heads")), count(config.get("num_key_value_heads"))
    size, dim = count(config.get("hidden_size")), count(config.get("head_dim"))
    if heads and few and heads % few:
        yield subject.error(
            "DCA-132",
            f"{heads} heads are not divisible by {few} key heads.",
            "compare with the model's own file.",
            "num_key_value_heads",
        )
    if heads and size and dim is None and size % heads:
        yield subject.error(
            "DCA-132",
            f"hidden_size {size} is not divisible by {heads} heads.",
            "compare with the model's own file.",
            "hidden_size",
        )
    known = subject.model
    if known and not known.has_shape_of(config):
        yield subject.error(
            "DCA-132",
            f"layers or heads differ from {known.name}'s: {known.layers} layers, {known.heads} heads, "
            f"{known.kv_heads} key heads, hidden size {known.hidden_size}.",
            "compare with the model's own file.",
            "num_hidden_layers",
        )


def chunks(subject: Subject) -> Iterator[Finding]:
    """DCA-133: numbers of dual chunk attention that are impossible, or another model's."""
    dual = subject.config.get(DCA)
    if dual is None:
        if DCA in subject.config:
            yield subject.warning(
                "DCA-133", f"`{DCA}` is null, which crashes some versions of vLLM.", "remove the key.", DCA
            )
        return
    if not isinstance(dual, dict) or not dual:
        yield subject.error("DCA-133", f"`{DCA}` is {short(dual)}.", "remove it, or run `dca config set-dca`.", DCA)
        return
    chunk, local = dual.get("chunk_size", 8192), dual.get("local_size", 1024)
    if count(chunk) is None or count(local) is None or chunk <= local:
        yield subject.error(
            "DCA-133",
            f"chunk_size is {short(chunk)} and local_size is {short(local)}; chunk_size must be the larger, and both "
            "positive integers.",
            "write the model's own values: `dca config set-dca`.",
            DCA,
        )
    original = dual.get(ORIGINAL, 0)
    if count(original) is None:
        yield subject.error(
            "DCA-133",
            f"{ORIGINAL} in `{DCA}` is {short(original)}: unpatched vLLM requires it, and crashes at the first prompt "
            "without it.",
            "write the model's own value: `dca config set-dca`.",
            DCA,
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
                DCA,
                name,
            )


def stops(subject: Subject) -> Iterator[Finding]:
    """DCA-134: an intended reader that fails on the key of dual chunk attention."""
    for reader in subject.readers:
        if DCA in subject.config and reader.wants.dual_chunk == "stops":
            yield subject.error(
                "DCA-134", f"{reader.title} fails on `{DCA}`.", "remove it with `dca config drop-dca`.", DCA
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
    """DCA-136: rope_scaling and rope_parameters that differ."""
    scalings = dict(subject.scalings())
    if len(scalings) < 2:
        return
    old, new = ({**value, "rope_type": kind(value)} for value in (scalings[SCALING], scalings[PARAMETERS]))
    for name in ("rope_type", "factor", ORIGINAL, "attention_factor", "beta_fast", "beta_slow"):
        if old.get(name) != new.get(name):
            yield subject.error(
                "DCA-136",
                f"`{name}` is {short(old.get(name))} in {SCALING} and {short(new.get(name))} in {PARAMETERS}.",
                "write the same in both, or keep only the one that your reader reads.",
                SCALING,
            )
            return


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
)


def check(subject: Subject, rules: Sequence[Rule] = RULES) -> tuple[Finding, ...]:
    """Every problem of a folder, errors first, then by line."""
    findings = [finding for rule in rules for finding in rule(subject)]
    return tuple(sorted(findings, key=lambda finding: (finding.severity != "error", finding.line or 0, finding.code)))
