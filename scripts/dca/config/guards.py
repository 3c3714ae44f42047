"""What a wheel's guards refuse of a model, found before a server starts: by the same code, so in the same words.

`patches/guards/vllm/dca_guards.py` imports neither vLLM nor torch and takes plain values, so it runs here too.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Mapping
from importlib.machinery import SourceFileLoader
from typing import Any, NamedTuple

from dca.foundation import data

FILE = ("patches", "guards", "vllm", "dca_guards.py")


class Refusal(NamedTuple):
    """A guard's message.

    Args:
        code: the guard's own.
        what: what is wrong and why, in sentences.
        remedy: what to do, a sentence.
    """

    code: str
    what: str
    remedy: str


class Heads(NamedTuple):
    """What shares a sparse table's entries.

    Args:
        layers: of the model.
        heads: query heads of a layer.
        ranks: GPUs that share the heads of a layer; a divisor of `heads`.
    """

    layers: int
    heads: int
    ranks: int = 1


class _Uncached(SourceFileLoader):
    """Writes no bytecode beside the file: plans have a digest of that folder."""

    def set_data(self, path: str, data: Any, *, _mode: int = 0o666) -> None:
        """Write nothing."""


@functools.cache
def _module() -> Any:
    loader = _Uncached("dca_guards_of_the_wheels", str(data.data_root().joinpath(*FILE)))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    if spec is None:  # only for a loader that is None
        raise ImportError(loader.path)
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


def codes() -> frozenset[str]:
    """The codes of all guards."""
    return frozenset(_module().CODES)


def lines(dual: Mapping[str, Any], table: Any, shape: Heads, length: int) -> Refusal | None:
    """What the guards say of a sparse table's numbers of lines, and of a chunk too short for them.

    Args:
        dual: `dual_chunk_attention_config`.
        table: the sparse table, with an entry for every layer and head.
        shape: the model's layers and heads.
        length: tokens of the longest prompt that is served.

    Returns:
        The first refusal; None without any, and for a chunk without usable numbers, which has no length.
    """
    module = _module()
    try:
        chunk = module.read_chunks(dual).chunk_len
    except module.GuardError:
        return None
    try:
        config = {**dual, "sparse_attention_config": table}
        module.check_lines(config, shape.layers, shape.heads, shape.ranks, length, chunk)
    except module.GuardError as error:
        said = str(error).removesuffix(f" ({error.code})")
        # Its last sentence says what to do.
        what, _, remedy = said.rpartition(". ")
        return Refusal(error.code, f"{what}.", remedy)
    return None
