"""The plan of spans and the merge against the distance of every pair; runs where torch is, without vLLM."""

from __future__ import annotations

import os
import random
import time

import numpy as np
import pytest
import torch
from drawn import Drawn, Request, draw, error, installed

from vllm_dca import attention, rotary, spans
from vllm_dca.chunking import Chunking

SEED = os.environ.get("DCA_TEST_SEED", "0")
COUNT = int(os.environ.get("DCA_DRAWN_STEPS", "150"))
CLOSE = 2e-5


def test_drawn_steps_are_right() -> None:
    chance, plugin = random.Random(SEED), installed()
    for number in range(COUNT):
        drawn = draw(chance)
        wrong = error(drawn, plugin, padding=number % 3)
        assert wrong < CLOSE, (wrong, drawn)


@pytest.mark.parametrize("whole_prompt", [False, True])
def test_every_length_of_three_chunks_is_right_by_itself(whole_prompt: bool) -> None:
    plugin = installed()
    for length in range(1, 26):
        for queries in {1, (length + 1) // 2, length}:
            request = Request(length, queries, length)
            drawn = Drawn(11, 3, 4, 1, 2, 8, 5, whole_prompt, (request,), seed=length)
            assert error(drawn, plugin) < CLOSE, drawn


def test_results_are_merged_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "MERGED", 7)
    monkeypatch.setattr(attention, "ATTENDED", 5)
    drawn = Drawn(24, 8, 8, 2, 2, 8, 0, False, (Request(61, 61, 61), Request(40, 1, 40)), seed=1)
    assert error(drawn, installed()) < CLOSE


def test_a_part_without_keys_counts_for_nothing() -> None:
    one = (torch.ones(2, 1, 4), torch.tensor([[0.0, 5.0]]))
    none = (torch.full((2, 1, 4), 7.0), torch.full((1, 2), -torch.inf))
    output = torch.empty(2, 1, 4)
    attention.merge([one, none, none], output)
    assert torch.equal(output, one[0])


def test_a_key_of_partly_rotated_heads_keeps_its_other_dimensions() -> None:
    rotation = rotary.Rotation(4, 1e4)
    heads = torch.randn(3, 2, 8)
    turned = rotation.apply(heads, rotation.table(9)[torch.tensor([0, 1, 8])])
    assert torch.equal(turned[..., 4:], heads[..., 4:])
    assert torch.equal(turned[0], heads[0])
    assert not torch.allclose(turned[1:, :, :4], heads[1:, :, :4])


def test_the_interleaved_form_is_the_other_one_with_dimensions_reordered() -> None:
    heads = torch.randn(5, 2, 8)
    order = torch.tensor([0, 2, 4, 6, 1, 3, 5, 7])
    rows = rotary.Rotation(8, 1e4).table(5)
    halves, pairs = (rotary.Rotation(8, 1e4, neox).apply for neox in (True, False))
    torch.testing.assert_close(pairs(heads, rows)[..., order], halves(heads[..., order], rows))


def test_one_decode_a_request_in_the_first_chunk_copies_no_table() -> None:
    table = torch.arange(12, dtype=torch.int32).view(3, 4)
    layout = attention.Layout(Chunking(24, 8), 8)
    step = layout.plan(attention.Batch(np.arange(4), np.array([1, 9, 16]), None, table))
    assert step.intra is not None
    assert step.intra.table is table
    assert step.successive is None
    assert step.inter is None
    step = layout.plan(attention.Batch(np.arange(4), np.array([34, 33, 49]), None, table))
    assert step.successive is not None
    assert step.inter is not None
    assert step.inter.table is table
    assert step.intra is not None
    assert step.intra.table.shape == (3, 1)
    assert step.successive.table.shape == (3, 2)


def test_a_call_has_no_span_without_keys() -> None:
    table = torch.arange(24, dtype=torch.int32).view(4, 6)
    starts, lengths = np.array([0, 1, 11, 12, 15]), np.array([40, 18, 5, 33])
    step = attention.Layout(Chunking(24, 8), 8).plan(attention.Batch(starts, lengths, None, table))
    assert step.intra is not None
    assert step.intra.rows is None
    assert step.intra.lengths.tolist() == [8, 16, 2, 5, 16, 1]
    assert step.successive is not None
    assert step.successive.rows is not None
    assert step.successive.rows.tolist() == [0, 9, 10, 12, 13, 14]
    assert step.successive.starts.tolist() == [0, 1, 3, 5, 6]
    assert (step.successive.most, step.successive.lengths.tolist()) == (2, [16] * 4)
    assert step.successive.table.tolist() == [[2, 3], [6, 7], [18, 19], [20, 21]]
    assert step.inter is not None
    assert step.inter.rows is not None
    assert step.inter.rows.tolist() == [0, 14]
    assert step.inter.lengths.tolist() == [16, 16]
    assert step.inter.table.tolist() == [[0, 1], [18, 19]]


def test_tables_are_as_wide_as_the_longest_needs() -> None:
    table = torch.zeros(2, 1000, dtype=torch.int32)
    layout = attention.Layout(Chunking(80, 16), 8)
    step = layout.plan(attention.Batch(np.array([0, 70, 72]), np.array([150, 70]), None, table))
    assert step.intra is not None
    assert step.intra.table.shape[1] == 8
    assert step.successive is not None
    assert step.successive.table.shape[1] == 8
    assert step.inter is not None
    assert step.inter.table.shape[1] == 8


def loop(query_starts: list[int], lengths: list[int], stride: int) -> list[tuple[int, ...]]:
    """The plan in plain Python: request, start, chunk, and keys of the three kinds."""
    found: list[tuple[int, ...]] = []
    for request, length in enumerate(lengths):
        start, end = query_starts[request], query_starts[request + 1]
        place = length - (end - start)
        while start < end:
            chunk = place // stride
            taken = min(end - start, (chunk + 1) * stride - place)
            older = stride * (chunk > 0), max(chunk - 1, 0) * stride
            found.append((request, start, chunk, place + taken - chunk * stride, *older))
            start, place = start + taken, place + taken
    return found


def test_the_plan_of_1024_decodes_is_that_of_a_plain_loop_and_costs_less(capsys: pytest.CaptureFixture[str]) -> None:
    chance, stride = random.Random(SEED), 253_952
    lengths = np.array([chance.randrange(1, 1_010_000) for _ in range(1024)])
    starts = np.arange(1025)
    ours = spans.cut(starts, lengths, stride)
    theirs = loop(starts.tolist(), lengths.tolist(), stride)
    columns = (ours.request, ours.starts[:-1], ours.chunk, ours.intra, ours.successive, ours.inter)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == theirs

    def best(call: object) -> float:
        times = []
        for _ in range(9):
            begin = time.perf_counter()
            call()  # type: ignore[operator]
            times.append(time.perf_counter() - begin)
        return min(times)

    table = torch.zeros(1024, 4, dtype=torch.int32)
    layout = attention.Layout(Chunking(262_144, 8192), 253_952)
    cut = best(lambda: spans.cut(starts, lengths, stride))
    whole = best(lambda: layout.plan(attention.Batch(starts, lengths, None, table)))
    plain = best(lambda: loop(starts.tolist(), lengths.tolist(), stride))
    with capsys.disabled():
        print(
            f"\n1,024 decodes: {1e3 * plain:.2f} ms in a plain loop, {1e3 * cut:.2f} ms vectorised, a ratio of "
            f"{plain / cut:.1f}; {1e3 * whole:.2f} ms with the tensors and tables of the step"
        )
