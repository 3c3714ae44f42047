"""Runs in a build's environment: compares an index conversion in a program of its own with the oracle.

Arguments: the folder of `dca`, how many rows and samples of them, a seed, and the program that converts (converts.cpp).
"""

import array
import json
import subprocess
import sys
from typing import IO, Any

root, rows, sampled, seed, *program = sys.argv[1:]
sys.path.insert(0, root)

import torch

from dca.in_wheel_env.proof import conversion


def numbers(values: "list[int] | None") -> bytes:
    return b"" if values is None else array.array("i", values).tobytes()


def message(batch: Any, memories: "list[torch.Tensor]") -> bytes:
    """The sizes, the memory around the four outputs, and the six inputs."""
    vertical, slash = batch.vertical.contiguous(), batch.slash.contiguous()
    arrays = [memory.numpy().tobytes() for memory in memories]
    arrays += [numbers(batch.query_lengths), numbers(batch.key_lengths)]
    arrays += [vertical.numpy().tobytes(), slash.numpy().tobytes()]
    arrays += [numbers(batch.vertical_count), numbers(batch.slash_count)]
    sizes = [*vertical.shape, slash.shape[-1], batch.longest, int(batch.causal), conversion.MARGIN]
    lengths = array.array("q", [*sizes, *(len(content) // 4 for content in arrays)])
    return b"".join([lengths.tobytes(), *arrays])


def converting(asked: "IO[bytes]", answered: "IO[bytes]") -> Any:
    """The conversion that a program does, by its two pipes."""

    def kernel(batch: Any, into: Any) -> None:
        # Each output lies in memory with a margin on both sides, all of which goes there and back.
        memories = [torch.tensor([], dtype=torch.int32).set_(output.untyped_storage()) for output in into]
        asked.write(message(batch, memories))
        asked.flush()
        for memory in memories:
            content = answered.read(memory.numel() * 4)
            assert len(content) == memory.numel() * 4, "the program ended"
            memory.copy_(torch.frombuffer(bytearray(content), dtype=torch.int32))

    return kernel


with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
    assert server.stdin
    assert server.stdout
    for case in conversion.cases(converting(server.stdin, server.stdout), int(rows), int(sampled)):
        print(json.dumps({"case": case.name, **case.run(int(seed))}), flush=True)
sys.exit(server.returncode)
