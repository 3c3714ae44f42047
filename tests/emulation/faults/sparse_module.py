"""Runs a module's sparse attention on the device and prints its largest error by case, as JSON.

Arguments: the module, and the name of its operators.
"""

import json
import math
import sys

import torch

torch.ops.load_library(sys.argv[1])
run = getattr(torch.ops, sys.argv[2]).fwd_sparse
DIM, SCALE = 128, 0.1


def errors(queries: int, keys: int, causal: bool) -> float:
    """The largest error of two sequences with four heads; nan counts as infinite."""
    drawn = torch.Generator().manual_seed(queries)
    shapes = ((2, queries, 4, DIM), (2, keys, 2, DIM), (2, keys, 2, DIM))
    q, k, v = (torch.randn(shape, generator=drawn).bfloat16() for shape in shapes)
    rows = -(-queries // 64)
    blocks = torch.zeros((2, 4, rows, 3), dtype=torch.int32)
    columns = torch.zeros((2, 4, rows, 5), dtype=torch.int32)
    counts = [torch.zeros((2, 4, rows), dtype=torch.int32) for _ in range(2)]
    chosen = torch.zeros((2, 4, queries, keys), dtype=torch.bool)
    for b in range(2):
        for h in range(4):
            for row in range(rows):
                # Another block for each sequence and head, and columns before or behind it.
                first = (b + h + row) % 2 * 64
                listed = list(range(64 - first + row, 69 - first + row))[: 3 + b]
                blocks[b, h, row, 0], counts[0][b, h, row] = first, 1
                columns[b, h, row, : len(listed)] = torch.tensor(listed)
                counts[1][b, h, row] = len(listed)
                for key in (*range(first, min(first + 64, keys)), *listed):
                    chosen[b, h, row * 64 : row * 64 + 64, key] = True
    lists = (counts[0], blocks, counts[1], columns)
    # Values that are not contiguous: their strides are those of no other tensor.
    on_device = [one.cuda() for one in (q, k, torch.cat((v, v.new_full((2, keys, 1, DIM), math.nan)), 2))]
    on_device[2] = on_device[2][:, :, :2]
    out, _ = run(*on_device, *(one.cuda() for one in lists), None, None, 0.0, SCALE, causal, 0.0, False, None)
    if causal:
        chosen &= torch.arange(keys)[None, :] <= torch.arange(queries)[:, None] + keys - queries
    logits = torch.einsum("bnhd,bmhd->bhnm", q.double(), k.double().repeat_interleave(2, 2)) * SCALE
    weights = logits.masked_fill(~chosen, -math.inf).softmax(-1).nan_to_num(0.0)
    wanted = torch.einsum("bhnm,bmhd->bnhd", weights, v.double().repeat_interleave(2, 2))
    return float((out.cpu().double() - wanted).abs().nan_to_num(math.inf).max())


CASES = {"causal": (70, 133, True), "not causal": (70, 133, False), "one query": (1, 133, True)}
print(json.dumps({name: errors(*case) for name, case in CASES.items()}))
