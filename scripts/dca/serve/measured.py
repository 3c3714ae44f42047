"""What an engine printed of its memory, beside the plan, and what later plans learn from it.

The wording is that of vLLM 0.5 to 0.33, of the V0 and the V1 engine; several ranks print the same lines.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import ClassVar

from dca.catalogue import releases
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError
from dca.serve import gpu_memory, outcome
from dca.serve.gpus import GIB, Gpus
from dca.serve.outcome import Settings
from dca.serve.shape import Shape

NUMBER = r"(-?\d{1,9}(?:\.\d{1,9})?)"
TOKENS = r"(\d{1,3}(?:,\d{3}){1,5}|\d{1,15})"
START = re.compile(r"Initializing an? (?:V[01] )?(?:LLM engine|LLM|engine)")
MOST_BYTES = 64 << 20
"""Of a longer log, the beginning and the end are read: an engine prints these figures when it starts."""
MOST_VALUES = 20
"""Logs of one kind of GPU and version that a correction remembers."""
SAME_MODEL = 0.1
"""Share by which the weights of one model, planned and printed, differ at most."""
MOST_BESIDE = 0.25
"""Share of a GPU that a correction is at most: a log that says more is of other settings."""
SAME_CARD = 0.01
"""Share by which the memory of two GPUs of one kind differs at most: drivers keep more or less for themselves."""


class Measured(Value):
    """What an engine printed; None for what it did not.

    Args:
        version: its version; empty when the log does not say it.
        v1: whether it is the V1 engine.
        card_gib: memory of a GPU as torch sees it, in 2^30 bytes.
        utilization: gpu_memory_utilization.
        weights_gib: weights of one rank.
        peak_gib: peak of the profile run's activations.
        outside_gib: memory outside of torch.
        graphs_gib: CUDA graphs.
        cache_gib: memory of the KV cache of one rank, the least of all ranks.
        tokens: tokens that the KV cache holds.
        blocks: blocks of the KV cache.
        concurrency: requests of the whole length that it holds.
        length: max_model_len.
        tp: ranks that share the heads.
        pp: stages that share the layers.
        dcp: ranks that share the tokens of the KV cache.
        batched: max_num_batched_tokens.
        sequences: max_num_seqs.
        block_size: tokens of a block.
        eager: whether CUDA graphs are off.
        reserved_gib: memory of the KV cache that the user gave in bytes.
        cache_dtype: dtype of keys and values.
        reused: whether prompts reuse the cache of earlier ones.
    """

    version: str = ""
    v1: bool | None = None
    card_gib: float | None = None
    utilization: float | None = None
    weights_gib: float | None = None
    peak_gib: float | None = None
    outside_gib: float | None = None
    graphs_gib: float | None = None
    cache_gib: float | None = None
    tokens: int | None = None
    blocks: int | None = None
    concurrency: float | None = None
    length: int | None = None
    tp: int | None = None
    pp: int | None = None
    dcp: int | None = None
    batched: int | None = None
    sequences: int | None = None
    block_size: int | None = None
    eager: bool | None = None
    reserved_gib: float | None = None
    cache_dtype: str = ""
    reused: bool | None = None


# Each figure: how ranks' values become one, and its wordings, the first group being the number.
FIGURES: dict[str, tuple[Callable[[list[float]], float], tuple[str, ...]]] = {
    "card_gib": (
        min,
        (
            rf"total_gpu_memory \({NUMBER}\s?GiB\)",
            rf"total_gpu_memory[\s=]+{NUMBER}\s?GiB",
            rf"Free memory on device[^(\n]*\({NUMBER}/{NUMBER} GiB\)",
        ),
    ),
    "weights_gib": (
        max,
        (
            rf"[Mm]odel weights take\s+{NUMBER}\s?GiB",
            rf"Model loading took {NUMBER} Gi?B",
            rf"Loading model weights took {NUMBER} Gi?B",
            rf"Actual usage(?: is|:) {NUMBER} GiB for weights?,",
            rf"weights memory: {NUMBER}\s?GiB",
        ),
    ),
    "peak_gib": (
        max,
        (
            rf"PyTorch activation peak memory(?: takes)?\s+{NUMBER}\s?GiB",
            rf"{NUMBER} GiB for peak activation",
            rf"torch peak memory increase: {NUMBER}\s?GiB",
        ),
    ),
    "outside_gib": (
        max,
        (
            rf"non_torch_memory(?: takes)?[\s=]+{NUMBER}\s?GiB",
            rf"{NUMBER} GiB for non-torch memory",
            rf"non-torch forward increase memory: {NUMBER}\s?GiB",
        ),
    ),
    "consumed_gib": (
        max,
        (rf"{NUMBER} GiB for consumed memory", rf"total consumed \(from mem_get_info\): {NUMBER}\s?GiB"),
    ),
    "peak_torch_gib": (max, (rf"peak_torch_memory[\s=]+{NUMBER}\s?GiB",)),
    "graphs_gib": (
        max,
        (
            rf"CUDA graph pool memory: {NUMBER} GiB \(actual\)",
            rf"Graph capturing finished in \d+ secs?, took {NUMBER} GiB",
            rf"{NUMBER} GiB for CUDA ?Graph memory",
            rf"Estimated CUDA graph memory: {NUMBER} GiB",
        ),
    ),
    "cache_gib": (
        min,
        (
            rf"Available KV cache memory: {NUMBER} GiB",
            rf"available_kv_cache_memory\s+{NUMBER}\s?GiB",
            rf"reserved for KV Cache is {NUMBER}\s?GiB",
            rf"kv_cache_size[\s=]+{NUMBER}\s?GiB",
            rf"[Cc]urrent kv cache memory in use is {NUMBER} GiB",
            rf"larger than the available KV cache memory \({NUMBER} GiB\)",
            rf"reserved {NUMBER} GiB memory for KV Cache",
        ),
    ),
    "reserved_gib": (max, (rf"reserved {NUMBER} GiB memory for KV Cache",)),
    "utilization": (
        max,
        (
            rf"gpu_memory_utilization \({NUMBER}\)",
            rf"Desired GPU memory utilization is \({NUMBER},",
            rf"gpu_memory_utilization['\"]?[=:\s]\s?{NUMBER}",
            rf"--gpu-memory-utilization[= ]{NUMBER}",
        ),
    ),
    "concurrency": (min, (rf"Maximum concurrency for {TOKENS} tokens per request: {NUMBER}x",)),
    "tokens": (
        min,
        (
            rf"KV cache size: {TOKENS} tokens",
            rf"number of tokens that can be stored in KV cache \({TOKENS}\)",
        ),
    ),
    "blocks": (min, (rf"# (?:GPU|CUDA|cuda) blocks: {TOKENS}",)),
    "length": (
        max,
        (
            rf"max_seq_len={TOKENS}",
            rf"Maximum concurrency for {TOKENS} tokens per request",
            rf"max_model_len['\"]?[=:]\s?{TOKENS}",
            rf"Using max model len {TOKENS}",
            rf"max seq len \({TOKENS}\)",
        ),
    ),
    "tp": (max, (r"tensor_parallel_size['\"]?[=:]\s?(\d{1,5})",)),
    "pp": (max, (r"pipeline_parallel_size['\"]?[=:]\s?(\d{1,5})",)),
    "dcp": (max, (r"decode_context_parallel_size['\"]?[=:]\s?(\d{1,5})",)),
    "batched": (max, (rf"max_num_batched_tokens['\"]?[=:]\s?{TOKENS}",)),
    "sequences": (max, (rf"max_num_seqs['\"]?[=:]\s?{TOKENS}",)),
    "block_size": (max, (r"['\"(, ]block_size['\"]?[=:]\s?(\d{1,5})",)),
}
VERSION = (
    r"Initializing an? (?:V[01] )?LLM engine \(v(\d+\.\d+(?:\.\d+)*)",
    r"vLLM API server version v?(\d+\.\d+(?:\.\d+)*)",
    r"(?:vLLM|█)[^\n]{0,80}\bversion v?(\d+\.\d+(?:\.\d+)+)",
    r"vllm==(\d+\.\d+(?:\.\d+)*)",
)


def read(log: str) -> Measured:
    """What a log says of an engine's memory; of several starts, the last one with figures.

    Args:
        log: its text; anything else in it is skipped.

    Raises:
        DcaError: DCA-165 when it has no figure.
    """
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]|\r", "", log)
    starts = [match.start() for match in START.finditer(text)]
    # Ranks print the start of one engine several times, each before its figures.
    parts = [text[begin:end] for begin, end in zip([0, *starts], [*starts, len(text)], strict=True)]
    last = next((place for place in range(len(parts) - 1, -1, -1) if _figures(parts[place], *SIZES)), None)
    if last is None:
        raise DcaError(
            "DCA-165",
            "the log has no figure of an engine's memory.",
            why="it has none of vLLM's lines on weights, the KV cache, or the memory profile.",
            remedy="give the whole log of a server that loaded its model, at the engine's usual level of logging.",
        )
    # The arguments stand before the engine's start; of an earlier start, they are replaced by the later ones.
    before = "".join(parts[: last + 1])
    figures: dict[str, float] = _figures(parts[last], *SIZES)
    figures |= {name: value for name, value in _settings(before, parts[last]).items() if name not in figures}
    consumed = figures.pop("consumed_gib", None)
    if consumed is not None and "weights_gib" in figures and "outside_gib" not in figures:
        figures["outside_gib"] = max(0.0, consumed - figures["weights_gib"])
    peak = figures.pop("peak_torch_gib", None)
    if peak is not None and "weights_gib" in figures and "peak_gib" not in figures:
        figures["peak_gib"] = max(0.0, peak - figures["weights_gib"])
    version = next((found[-1] for pattern in VERSION if (found := re.findall(pattern, before))), "")
    engine = re.findall(r"Initializing a (V[01]) LLM engine", before)
    return Measured.model_validate(
        {
            **{name: int(value) if name in WHOLE else value for name, value in figures.items()},
            "version": version,
            "v1": engine[-1] == "V1" if engine else ("GPU KV cache size" in parts[last] or None),
            "eager": _flag(before, "enforce_eager"),
            "reused": _flag(before, "enable_prefix_caching"),
            "cache_dtype": (re.findall(r"kv_cache_dtype['\"]?[=:]\s?['\"]?(\w+)", before) or [""])[-1],
        }
    )


WHOLE = {"tokens", "blocks", "length", "tp", "pp", "dcp", "batched", "sequences", "block_size"}
SIZES = (
    "card_gib",
    "weights_gib",
    "peak_gib",
    "outside_gib",
    "consumed_gib",
    "peak_torch_gib",
    "graphs_gib",
    "cache_gib",
    "reserved_gib",
    "tokens",
    "blocks",
    "concurrency",
)


def _figures(text: str, *names: str) -> dict[str, float]:
    found = {}
    for name in names:
        join, patterns = FIGURES[name]
        for pattern in patterns:
            # Of two numbers in one line the last one counts: the total beside what is free, the number of requests.
            values = [_number(match[match.re.groups]) for match in re.finditer(_loose(pattern), text)]
            if values:
                found[name] = join(values)
                break
    return found


@cache
def _loose(pattern: str) -> str:
    """A wording that terminals and pastes may have wrapped at any space."""
    return re.sub(r" (?!\?)", r"\\s+", pattern)


def _settings(before: str, last: str) -> dict[str, float]:
    """Settings: of the last start, else the last ones before it."""
    found = {}
    for name, (_, patterns) in FIGURES.items():
        if name in SIZES:
            continue
        for text in (last, before):
            values = [match for pattern in patterns for match in re.finditer(_loose(pattern), text)]
            if values:
                found[name] = _number(max(values, key=lambda match: match.start())[1])
                break
    return found


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _flag(text: str, name: str) -> bool | None:
    values = re.findall(rf"{name}['\"]?[=:]\s?(True|False)", text)
    return values[-1] == "True" if values else None


# --- beside the plan -------------------------------------------------------------------------------------------------


WEIGHTS = "weights"
COUNTED_ALIKE = 0.02
"""Share by which tokens and requests may differ, because the latter are printed with two decimals."""


class Part(Value):
    """A part of the memory, planned and printed.

    Args:
        name: what it is.
        planned: GiB of one rank, or tokens, or requests.
        printed: the same, as the engine printed it.
        unit: `GiB`, `tokens` or `requests`.
    """

    name: str
    planned: float
    printed: float
    unit: str = "GiB"

    @property
    def error(self) -> float | None:
        """What the plan is off by, as a share of what was printed; None when nothing was left."""
        return self.planned / self.printed - 1 if self.printed > 0 else None


class Comparison(Value):
    """A log beside the plan for the settings that it was started with.

    Args:
        version: the engine's version.
        gpu: the GPU's memory as the log says it, or as planned.
        settings: what it was planned with.
        parts: each part.
        beside_gib: what the engine used beside weights and KV cache more than planned, in 2^30 bytes; None when the log
            does not say it, or is of another model or other settings.
    """

    version: str
    gpu: float
    settings: Settings
    parts: tuple[Part, ...]
    beside_gib: float | None = None

    @property
    def differs(self) -> bool:
        """Whether the weights are so far off that the log is of another model."""
        errors = [part.error for part in self.parts if part.name == WEIGHTS]
        return any(error is None or abs(error) > SAME_MODEL for error in errors)


def compare(shape: Shape, gpus: Gpus, settings: Settings, log: Measured) -> Comparison:
    """A log beside the plan.

    Args:
        shape: the model.
        gpus: its GPUs, with the memory that the log says.
        settings: those that it was started with.
        log: what it says.
    """
    layout = settings.layout
    weights = (gpu_memory.weight_bytes(shape, layout) + gpu_memory.table_bytes(shape)) / GIB
    step = gpu_memory.step_bytes(
        shape, layout, settings.batched, settings.sequences, settings.logit_bytes, settings.length
    )
    step /= GIB
    graphs = settings.graphs / GIB
    left = settings.utilization * gpus.memory_gib - outcome.started_bytes(shape, settings) / GIB
    left -= graphs * settings.graphs_counted
    if settings.cache_gib is not None:
        left = settings.cache_gib
    tokens = outcome.cache_tokens(shape, gpus, settings)
    printed = log.tokens if log.tokens is not None else log.blocks and log.blocks * settings.block_size
    held = outcome.tokens_by_group(shape, gpus, settings) if _by_group(shape, settings, log) else tokens
    rows = [
        (WEIGHTS, weights, log.weights_gib, "GiB"),
        ("activations of a step", step, log.peak_gib, "GiB"),
        ("memory outside of torch", settings.outside_gib, log.outside_gib, "GiB"),
        ("CUDA graphs", graphs, log.graphs_gib, "GiB"),
        ("KV cache", left, log.cache_gib, "GiB"),
        ("tokens in the KV cache", held, printed, "tokens"),
        ("requests of the whole length", tokens / settings.length, log.concurrency, "requests"),
    ]
    parts = tuple(
        Part(name=name, planned=planned, printed=value, unit=unit)
        for name, planned, value, unit in rows
        if value is not None
    )
    beside = None
    # Dual chunk attention is planned with a counted number of blocks, and a fixed size says nothing of what is left.
    counted = settings.cache_gib is not None or shape.dual_chunk
    if log.cache_gib is not None and log.weights_gib is not None and not counted:
        used = settings.utilization * gpus.memory_gib - log.cache_gib - log.weights_gib
        beside = used - step - settings.outside_gib - graphs * settings.graphs_counted
    found = Comparison(version=log.version, gpu=gpus.memory_gib, settings=settings, parts=parts, beside_gib=beside)
    odd = beside is not None and abs(beside) > MOST_BESIDE * gpus.memory_gib
    return found.model_copy(update={"beside_gib": None}) if odd or found.differs else found


def _by_group(shape: Shape, settings: Settings, log: Measured) -> bool:
    """Whether the engine counted tokens as if each group of layers kept all of them, and requests as they are."""
    if log.tokens is None or log.concurrency is None or outcome.pages(shape, settings).alike:
        return False
    return abs(log.tokens / settings.length / log.concurrency - 1) > COUNTED_ALIKE


# --- corrections -----------------------------------------------------------------------------------------------------


class Correction(Value):
    """What engines of a version used on a kind of GPU beside weights and KV cache, more than planned.

    Args:
        gpu: the GPU's name; empty when only its memory is known.
        card_gib: its memory as torch sees it, in 2^30 bytes.
        version: first two numbers of the version.
        gib: of each log, the newest last, in 2^30 bytes of one rank.
    """

    gpu: str
    card_gib: float
    version: str
    gib: tuple[float, ...]

    def is_of(self, gpus: Gpus, version: str) -> bool:
        """Whether it holds for some GPUs and a version. A log says a GPU's memory, and seldom its name."""
        alike = not (self.gpu and gpus.names) or self.gpu == name_of(gpus)
        near = abs(self.card_gib - gpus.memory_gib) <= SAME_CARD * gpus.memory_gib
        return alike and near and self.version == minor(version)

    @property
    def most(self) -> float:
        """The largest, so that a plan does not promise too much."""
        return max(self.gib)


class Corrections(Document):
    """What plans have learned from logs, in the cache.

    Args:
        corrections: one for each kind of GPU and version.
    """

    SCHEMA: ClassVar[str] = "dca.memory-corrections/1"

    corrections: tuple[Correction, ...] = ()

    def of(self, gpus: Gpus, version: str) -> Correction | None:
        """What is known of a kind of GPU and a version."""
        return next((one for one in self.corrections if one.is_of(gpus, version)), None)

    def learned(self, gpus: Gpus, version: str, gib: float) -> Corrections:
        """The same with one more log."""
        known = self.of(gpus, version)
        if known is not None and round(gib, 3) in known.gib:
            return self
        values = (*(known.gib if known else ()), round(gib, 3))[-MOST_VALUES:]
        new = Correction(gpu=name_of(gpus), card_gib=gpus.memory_gib, version=minor(version), gib=values)
        return Corrections(corrections=(*(one for one in self.corrections if one is not known), new))


def name_of(gpus: Gpus) -> str:
    """The names of some GPUs; empty when only their memory is known."""
    return " and ".join(gpus.names)


def minor(version: str) -> str:
    """The first two numbers of a version."""
    return ".".join(str(number) for number in releases.order(version)[:2])


def words(comparison: Comparison) -> Iterator[str]:
    """A comparison as lines of a table."""
    yield f"{'':<30}{'planned':>12}{'printed':>12}{'error':>9}"
    for part in comparison.parts:
        digits = 0 if part.unit == "tokens" else 2
        error = f"{round(part.error, 3) + 0.0:+.1%}" if part.error is not None else ""
        yield f"{part.name:<30}{part.planned:>12,.{digits}f}{part.printed:>12,.{digits}f}{error:>9}"
    if comparison.differs:
        yield "The weights are those of another model, or are stored in another way: later plans are not corrected."
