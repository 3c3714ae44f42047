"""Loads kernel repositories with the kernels library, as anybody does, and compares their kernels with the oracle.

A program for an environment with torch: kernels_program.py FOLDER PATHS, where PATHS have the library and the oracle.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

sys.path[:0] = sys.argv[2:]
kernels, oracle = importlib.import_module("kernels"), importlib.import_module("dca.in_wheel_env.oracle")

QUERIES, HEADS, KV_HEADS, DIM = 192, 2, 1, 128
SCALE = DIM**-0.5


def gpu(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cuda")


def expected(q: Tensor, k: Tensor, v: Tensor, chosen: list[list[Tensor]]) -> tuple[Tensor, Tensor]:
    """Attention of each row of 64 queries to the keys that were chosen for it, by head; outputs and log-sum-exps."""
    outs, lses = torch.empty(q.shape, dtype=torch.float64), torch.empty((HEADS, QUERIES), dtype=torch.float64)
    for head in range(HEADS):
        for row in range(QUERIES // 64):
            rows = slice(row * 64, row * 64 + 64)
            part = oracle.attend_chosen(
                q[rows, head].double(),
                k[:, 0].double(),
                v[:, 0].double(),
                chosen[head][row],
                SCALE,
                torch.arange(QUERIES)[rows],
            )
            outs[rows, head], lses[head, rows] = part.out, part.lse
    return outs, lses


def as_old_releases_do(name: str, module: ModuleType) -> bool:
    """Whether the folder in a variant that old releases of the library import has the same."""
    assert module.__file__ is not None
    sys.path.insert(0, str(Path(module.__file__).parent))
    other = importlib.import_module(name)
    return other.ops is module.ops and set(other.__all__) == set(module.__all__) and other is not module


def main(folder: Path) -> dict[str, object]:
    attention, index = (kernels.get_local_kernel(folder / name) for name in ("dca-attention", "dca-index"))
    torch.manual_seed(1)
    q, k, v = (torch.randn(QUERIES, heads, DIM).bfloat16() for heads in (HEADS, KV_HEADS, KV_HEADS))
    # The first head's lines end with the nearest distances, the second has few of either.
    vertical = torch.tensor([[[0, 1, 5, 70], [3, 9, 100, 150]]], dtype=torch.int32)
    slash = torch.tensor([[[130, 64, 1, 0], [90, 65, 2, 0]]], dtype=torch.int32)
    same = {}
    for name, counts in (("all", None), ("some", [3, 4])):
        batch = oracle.Batch([QUERIES], [QUERIES], vertical, slash, counts, counts and [4, 4], True)
        given = [gpu(*counts), gpu(4, 4)] if counts else []
        lists = index.convert(index.Lines(vertical.cuda(), slash.cuda(), *given), gpu(QUERIES), gpu(QUERIES), QUERIES)
        wanted = oracle.convert(batch)
        same[name] = all(torch.equal(one.cpu(), other) for one, other in zip(lists, wanted, strict=True))
    chosen = [
        [oracle.attended_keys(wanted, head, row, QUERIES) for row in range(QUERIES // 64)] for head in range(HEADS)
    ]
    every = [[torch.arange(QUERIES)] * (QUERIES // 64)] * HEADS
    starts = gpu(0, QUERIES)
    on_gpu = [one.cuda() for one in (q, k, v)]
    sparse = attention.attend_sparsely(*(one[None] for one in on_gpu), attention.Lists(*lists))
    dense = attention.attend(*on_gpu, attention.Lengths(starts, starts, QUERIES, QUERIES), causal=True)
    worst = {}
    for name, (out, lse), keys in (("sparse", (sparse.out[0], sparse.lse[0]), chosen), ("dense", dense, every)):
        outs, lses = expected(q, k, v, keys)
        worst[name] = [float((out.cpu() - outs).abs().max()), float((lse.cpu() - lses).abs().max())]
    loaded = kernels.get_loaded_kernels()
    told = [[one.metadata.name.python_name, one.metadata.id, one.module.__name__] for one in loaded]
    old = [as_old_releases_do(name, sys.modules[id_]) for name, id_, _ in told]
    return {"same": same, "worst": worst, "loaded": told, "old": old, "device": torch.cuda.get_device_name()}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]))))
