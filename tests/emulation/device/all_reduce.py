"""The engine's all-reduce between the ranks of one process, each with a stream of its own.

The engine's ranks are processes that open each other's memory; the ops take addresses, which are one process's here.

Args: the module, ranks, numbers, dtype, how many ranks launch.
"""

from __future__ import annotations

import sys

import torch


def main(module: str, ranks: int, count: int, dtype: torch.dtype, launching: int) -> None:
    """Reduce, and print whether every rank has the plain sum."""
    torch.ops.load_library(module)
    ops = torch.ops._C_custom_ar
    size = count * dtype.itemsize
    # A rank's flags, and behind them the room that a reduction of two stages uses.
    flags = [torch.zeros(ops.meta_size() + size, dtype=torch.uint8, device="cuda") for _ in range(ranks)]
    buffers = [torch.zeros(size, dtype=torch.uint8, device="cuda") for _ in range(ranks)]
    tables = [torch.zeros(1 << 16, dtype=torch.uint8, device="cuda") for _ in range(ranks)]
    handles = [ops.init_custom_ar([one.data_ptr() for one in flags], tables[rank], rank, True) for rank in range(ranks)]
    for handle in handles:
        ops.register_buffer(handle, [one.data_ptr() for one in buffers])
    given = [torch.randn(count, device="cuda").to(dtype) for _ in range(ranks)]
    results = [torch.full((count,), torch.nan, device="cuda", dtype=dtype) for _ in range(ranks)]
    streams = [torch.cuda.Stream() for _ in range(ranks)]
    torch.cuda.synchronize()
    for rank in range(launching):
        with torch.cuda.stream(streams[rank]):
            ops.all_reduce(handles[rank], given[rank], results[rank], buffers[rank].data_ptr(), size)
    torch.cuda.synchronize()
    plain = sum((one.double() for one in given), torch.zeros((), dtype=torch.float64, device="cuda"))
    # Each sum in float32 is rounded, and the last one to the dtype.
    bound = sum(one.double().abs() for one in given) * ranks * torch.finfo(torch.float32).eps
    bound += plain.abs() * torch.finfo(dtype).eps
    print(all(bool(((one.double() - plain).abs() <= bound).all()) for one in results))
    for handle in handles:
        ops.dispose(handle)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), getattr(torch, sys.argv[4]), int(sys.argv[5]))
