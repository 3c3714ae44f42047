"""What each version of vLLM counts and chooses by itself: build/gpus/engines.toml."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from dca.catalogue import releases
from dca.catalogue.recipes import Arch
from dca.config.models import Count
from dca.foundation import data, datafile
from dca.foundation.documents import Value
from dca.serve.gpus import Gpus

Version = Annotated[str, Field(pattern=r"^\d+(\.\d+)+$")]
Size = Annotated[float, Field(ge=0)]
FIRST = "0.5.0"
"""The oldest version whose rules are known."""
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
        dense_logit_bytes: the same for models that write text and have no experts and no states; None where it is.
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

    since: Version = Field(alias="from")
    v1: bool
    logit_bytes: Size
    dense_logit_bytes: Size | None = None
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
    since: Version = Field(alias="from")


class Published(Value):
    """The GPUs that vLLM's own wheels have code for.

    Args:
        since: the first version.
        archs: compute capabilities with code of their own, the oldest first.
        ptx: the one whose PTX later ones compile; empty for none.
    """

    since: Version = Field(alias="from")
    archs: Annotated[tuple[Arch, ...], Field(min_length=1)]
    ptx: Arch | Literal[""] = ""

    def runs(self, arch: str) -> bool:
        """Whether a GPU of a compute capability runs them."""
        major, number = _arch(arch)[0], _arch(arch)
        own = any(_arch(one)[0] == major and _arch(one) <= number for one in self.archs)
        return own or bool(self.ptx and _arch(self.ptx) <= number)


class Blocks(Value):
    """The sizes of blocks of the KV cache that versions from one on accept; none for any."""

    since: Version = Field(alias="from")
    sizes: tuple[Count, ...] = ()


class Weights(Value):
    """A kind of quantized weights.

    Args:
        method: `quant_method` of config.json.
        since: the first version that reads it; empty for all.
        last: the last one; empty where the newest does.
        oldest: the oldest compute capability, by the version from which on it holds.
        dtypes: dtypes of the activations; none for any.
    """

    method: str
    since: Version | Literal[""] = ""
    last: Version | Literal[""] = ""
    oldest: dict[Version, Arch] = {}
    dtypes: tuple[str, ...] = ()

    def oldest_in(self, version: str) -> str:
        """The oldest compute capability of a version; empty where it is not known."""
        found = [arch for since, arch in self.oldest.items() if releases.reached(version, since)]
        return next(iter([*found[-1:], *self.oldest.values()]), "")

    def reads(self, version: str) -> bool:
        """Whether a version reads them."""
        early = bool(self.since) and not releases.reached(version, self.since)
        # Fixes of the last release read them too.
        late = bool(self.last) and releases.order(version)[:2] > releases.order(self.last)[:2]
        return not early and not late


class Known(Value):
    """build/gpus/engines.toml, the oldest first."""

    schema_: Literal["dca.engine-memory/1"] = Field(alias="schema")
    stated_lengths: Version = Field(alias="stated_lengths_from")
    """The first version that takes max_position_embeddings beside YaRN as it is."""
    windows_apart: Version = Field(alias="windows_apart_from")
    """The first version in which layers with a window do not keep every token."""
    chunks_apart: Version = Field(alias="chunks_apart_from")
    """The first version in which layers with chunks do not keep every token."""
    quantized_while_loading: Version = Field(alias="quantized_while_loading_from")
    """The first version that quantizes weights while it loads them, and divides blocks of experts' FP8 weights."""
    own_cache_dtype: Version = Field(alias="own_cache_dtype_from")
    """The first version that takes the dtype of the KV cache from the checkpoint."""
    smallest_divided_block: Count
    """Numbers along a side of the smallest block of FP8 weights that a larger one is divided into."""
    engines: Annotated[tuple[Era, ...], Field(min_length=1)]
    flags: tuple[Dated, ...] = ()
    no_float16: tuple[str, ...] = ()
    """Types of models that no version serves in float16."""
    original_lengths: Version = Field(alias="original_lengths_from")
    """The first version that serves models with longrope with their original length unless it is told otherwise."""
    wheels: Annotated[tuple[Published, ...], Field(min_length=1)]
    block_sizes: Annotated[tuple[Blocks, ...], Field(min_length=1)]
    weights: tuple[Weights, ...] = ()

    def published(self, version: str) -> Published:
        """The GPUs that vLLM's own wheel of a version has code for; those of the first known for an older one."""
        return next((one for one in reversed(self.wheels) if releases.reached(version, one.since)), self.wheels[0])

    def sizes(self, version: str) -> tuple[int, ...]:
        """The sizes of blocks that a version accepts; none for any."""
        found = (one.sizes for one in reversed(self.block_sizes) if releases.reached(version, one.since))
        return next(found, self.block_sizes[0].sizes)

    def stored(self, method: str) -> Weights | None:
        """A kind of quantized weights; None for one that is not listed."""
        return next((one for one in self.weights if one.method == method), None)


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


def _arch(name: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", name))
