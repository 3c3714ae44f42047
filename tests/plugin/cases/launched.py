"""The plugin's launch of its kernel on a CUDA device, against the oracle."""

from __future__ import annotations

import random

import torch
from stand_ins import OracleKernels

from vllm_dca import operator
from vllm_dca.selection import Lines

PADDING = 2**31 - 1


def drawn(chance: random.Random) -> tuple[Lines, int, int, bool]:
    """Lines of some heads, as a stage has them, and how many queries and keys there are."""
    queries, more, causal = chance.randint(1, 300), chance.randint(0, 300), chance.random() < 0.5
    keys = queries + more if causal else more + 1
    reach = keys if causal else keys + queries
    lines: dict[str, list[list[int]]] = {"vertical": [], "slash": []}
    for _ in range(3):
        lines["vertical"].append(sorted(chance.sample(range(keys), chance.randint(1, min(40, keys)))))
        lines["slash"].append(sorted(chance.sample(range(reach), chance.randint(1, min(60, reach))))[::-1])
    tensors = []
    for name, rest in (("vertical", PADDING), ("slash", -1)):
        most = max(map(len, lines[name]))
        tensors.append(torch.tensor([one + [rest] * (most - len(one)) for one in lines[name]], dtype=torch.int32))
    tensors += [torch.tensor([len(one) for one in lines[name]], dtype=torch.int32) for name in ("vertical", "slash")]
    return Lines(*tensors), queries, keys, causal


def main() -> None:
    """Compare what is valid of the lists."""
    chance = random.Random(3)
    for _ in range(12):
        lines, queries, keys, causal = drawn(chance)
        wanted = OracleKernels(1.0).convert(lines, queries, keys, causal)
        found = operator.convert(Lines(*(each.cuda() for each in lines)), queries, keys, causal)
        for place in (0, 2):
            count, listed = wanted[place], wanted[place + 1]
            assert torch.equal(found[place].cpu(), count)
            valid = torch.arange(listed.shape[-1]) < count[..., None]
            assert torch.equal(found[place + 1].cpu()[valid], listed[valid])
    print("all equal")


if __name__ == "__main__":
    main()
