"""What each version of vLLM counts and chooses by itself: build/gpus/engines.toml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dca.catalogue import releases
from dca.config.models import Count
from dca.foundation import data, datafile
from dca.foundation.documents import Value
from dca.serve.gpus import Gpus

Size = Annotated[float, Field(ge=0)]
NEWEST = "0.33.0"
"""The newest version whose rules are known."""
SMALL = "A100"
"""GPUs of this name get the smaller defaults, however much memory they have."""
GRAPH_SEQUENCES = 256
"""Sequences for which `graphs_gib` holds."""
FEWEST_GRAPHS = 32
"""Fewer sequences take no less memory for graphs."""


class Era(Value):
    """Versions of vLLM that count in the same way.

    Args:
        since: the first version.
        v1: whether they have only the V1 engine, or use it by default.
        logit_bytes: bytes for each logit of the profile run.
        outside_gib: memory outside of torch of one rank, in 2^30 bytes, by the number of ranks on a machine; between
            two numbers, in proportion.
        machines_gib: more of it on several machines.
        graphs_gib: CUDA graphs of batches up to 256 sequences.
        graphs_counted: whether the KV cache leaves room for them.
        absorbed: whether they keep the products of the matrices around compressed keys and values as well.
        utilization: default of gpu_memory_utilization.
        batched: default of max_num_batched_tokens.
        sequences: default of max_num_seqs.
        large_gib: GPUs from this memory on, except A100, have the following defaults.
        large_batched: their max_num_batched_tokens.
        large_sequences: their max_num_seqs.
    """

    since: Annotated[str, Field(alias="from", pattern=r"^\d+(\.\d+)+$")]
    v1: bool
    logit_bytes: Size
    outside_gib: Annotated[dict[Annotated[str, Field(pattern=r"^\d+$")], Size], Field(min_length=1)]
    machines_gib: Size
    graphs_gib: Size
    graphs_counted: bool
    absorbed: bool = False
    utilization: Annotated[float, Field(gt=0, le=1)]
    batched: Count
    sequences: Count
    large_gib: Size
    large_batched: Count
    large_sequences: Count

    def defaults(self, gpus: Gpus) -> tuple[int, int]:
        """max_num_batched_tokens and max_num_seqs that a server chooses on some GPUs."""
        large = gpus.memory_gib >= self.large_gib and not any(name.startswith(SMALL) for name in gpus.names)
        return (self.large_batched, self.large_sequences) if large else (self.batched, self.sequences)

    def outside(self, ranks: int, machines: int = 1) -> float:
        """Memory outside of torch on one rank of several, in 2^30 bytes."""
        known = sorted((int(number), size) for number, size in self.outside_gib.items())
        below = max((pair for pair in known if pair[0] <= ranks), default=known[0])
        above = min((pair for pair in known if pair[0] >= ranks), default=known[-1])
        share = (ranks - below[0]) / (above[0] - below[0]) if above[0] > below[0] else 0.0
        return below[1] + share * (above[1] - below[1]) + self.machines_gib * (machines > 1)

    def graph_gib(self, sequences: int) -> float:
        """CUDA graphs for batches up to some sequences, in 2^30 bytes."""
        return self.graphs_gib * min(1.0, max(sequences, FEWEST_GRAPHS) / GRAPH_SEQUENCES)


class Dated(Value):
    """A flag that older versions of vLLM do not have.

    Args:
        flag: its name, with the value behind it if only that is new.
        since: the first version that has it.
    """

    flag: Annotated[str, Field(pattern=r"^--[a-z-]+( \S+)?$")]
    since: Annotated[str, Field(alias="from", pattern=r"^\d+(\.\d+)+$")]


class Published(Value):
    """The GPUs that vLLM's own wheels have code for.

    Args:
        since: the first version.
        oldest: the oldest compute capability.
    """

    since: Annotated[str, Field(alias="from", pattern=r"^\d+(\.\d+)+$")]
    oldest: Annotated[str, Field(pattern=r"^\d+\.\d+$")]


class Weights(Value):
    """A kind of quantized weights that not every version, GPU and dtype reads.

    Args:
        method: `quant_method` of config.json.
        absent: the last version that is known not to read it.
        since: the first version that is known to.
        oldest: the oldest compute capability.
        dtypes: dtypes of the activations.
    """

    method: str
    absent: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    since: Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
    oldest: Annotated[str, Field(pattern=r"^\d+\.\d+$")]
    dtypes: Annotated[tuple[str, ...], Field(min_length=1)]


class Known(Value):
    """build/gpus/engines.toml, the oldest first."""

    schema_: Literal["dca.engine-memory/1"] = Field(alias="schema")
    stated_lengths: Annotated[str, Field(alias="stated_lengths_from", pattern=r"^\d+(\.\d+)+$")]
    """The first version that takes max_position_embeddings beside YaRN as it is."""
    windows_apart: Annotated[str, Field(alias="windows_apart_from", pattern=r"^\d+(\.\d+)+$")]
    """The first version in which layers with a window do not keep every token."""
    chunks_apart: Annotated[str, Field(alias="chunks_apart_from", pattern=r"^\d+(\.\d+)+$")]
    """The first version in which layers with chunks do not keep every token."""
    quantized_while_loading: Annotated[str, Field(alias="quantized_while_loading_from", pattern=r"^\d+(\.\d+)+$")]
    """The first version that quantizes weights while it loads them, and divides blocks of experts' FP8 weights."""
    own_cache_dtype: Annotated[str, Field(alias="own_cache_dtype_from", pattern=r"^\d+(\.\d+)+$")]
    """The first version that takes the dtype of the KV cache from the checkpoint."""
    smallest_divided_block: Count
    """Numbers along a side of the smallest block of FP8 weights that a larger one is divided into."""
    engines: Annotated[tuple[Era, ...], Field(min_length=1)]
    flags: tuple[Dated, ...] = ()
    no_float16: tuple[str, ...] = ()
    """Types of models that no version serves in float16."""
    wheels: tuple[Published, ...] = ()
    weights: tuple[Weights, ...] = ()

    def oldest(self, version: str) -> str:
        """The oldest compute capability with code in vLLM's own wheel of a version; empty where it is not known."""
        found = [one.oldest for one in self.wheels if releases.order(one.since) <= releases.order(version)]
        return found[-1] if found else ""


@cache
def load(path: Path | None = None) -> Known:
    """The eras.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(Known, path or data.engine_memory_file())


def of(version: str) -> Era:
    """The era of a version; the first for one that is older."""
    eras = load().engines
    return next((era for era in reversed(eras) if releases.order(version) >= releases.order(era.since)), eras[0])
