"""Runs in a build's environment: compares an index conversion in a program of its own with the oracle.

Arguments: the folder of `dca`, how many rows and samples of them, a seed, and the program that converts (converts.cpp).
"""

import array
import json
import subprocess
import sys

root, rows, sampled, seed, *program = sys.argv[1:]
sys.path.insert(0, root)

import torch

from dca.in_wheel_env.proof import conversion

server = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def numbers(values):
    return b"" if values is None else array.array("i", values).tobytes()


def kernel(batch, into):
    vertical, slash = batch.vertical.contiguous(), batch.slash.contiguous()
    size, heads, verticals = vertical.shape
    # Each output lies in memory with a margin on both sides, all of which goes there and back.
    memories = [torch.tensor([], dtype=torch.int32).set_(output.untyped_storage()) for output in into]
    arrays = [memory.numpy().tobytes() for memory in memories]
    arrays += [numbers(batch.query_lengths), numbers(batch.key_lengths)]
    arrays += [vertical.numpy().tobytes(), slash.numpy().tobytes()]
    arrays += [numbers(batch.vertical_count), numbers(batch.slash_count)]
    sizes = [size, heads, verticals, slash.shape[-1], batch.longest, int(batch.causal), conversion.MARGIN]
    lengths = array.array("q", [*sizes, *(len(content) // 4 for content in arrays)])
    server.stdin.write(b"".join([lengths.tobytes(), *arrays]))
    server.stdin.flush()
    for memory in memories:
        content = server.stdout.read(memory.numel() * 4)
        assert len(content) == memory.numel() * 4, "the program ended"
        memory.copy_(torch.frombuffer(bytearray(content), dtype=torch.int32))


for case in conversion.cases(kernel, int(rows), int(sampled)):
    print(json.dumps({"case": case.name, **case.run(int(seed))}), flush=True)
server.stdin.close()
sys.exit(server.wait())
