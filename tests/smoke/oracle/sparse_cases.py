"""Conversion, selection and sparse attention of the oracle against what is known without them."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
import torch
from attention_cases import BASE, DUAL, close, tensors

from dca.in_wheel_env import oracle
from dca.in_wheel_env.oracle.blockwise import spans

BLOCK = 64


def random_row(rng: random.Random) -> tuple[list[int], list[int], int, int, int, bool]:
    causal = rng.random() < 0.5
    queries = rng.randint(1, 700)
    keys = rng.randint(queries if causal else 1, 1500)
    reach = keys if causal else keys + queries
    vertical = sorted(rng.sample(range(keys), min(keys, rng.randint(1, 60))))
    slash = sorted(rng.sample(range(reach), min(reach, rng.randint(1, 60))), reverse=True)
    if causal and rng.random() < 0.8:
        slash = sorted({*slash, *range(min(rng.randint(1, 100), reach))}, reverse=True)
    first = BLOCK * rng.randrange(-(-queries // BLOCK))
    return vertical, slash, first, queries, keys, causal


def rows(count: int, seed: int) -> Iterator[tuple[list[int], list[int], int, int, int, bool]]:
    rng = random.Random(seed)
    for _ in range(count):
        yield random_row(rng)


def test_what_every_conversion_must_keep() -> None:
    """Properties that any right conversion has, whatever its algorithm."""
    count = 4_000 if os.environ["DCA_PROOF_SCALE"] == "1" else 800
    for vertical, slash, first, queries, keys, causal in rows(count, seed=1):
        row = oracle.convert_row_block(vertical, slash, first, queries, keys, causal)
        assert row is not None
        shift = keys - queries if causal else keys
        offsets, columns = row
        assert all(b - a >= BLOCK for a, b in zip(offsets, offsets[1:]))
        assert len(offsets) <= len(slash) + 1
        assert columns == sorted(set(columns))
        assert set(columns) <= set(vertical)
        blocks = {offset + n for offset in offsets for n in range(BLOCK)}
        assert not blocks & set(columns)
        attended = blocks | set(columns)
        for query in range(first, min(first + BLOCK, queries)):
            limit = query + shift if causal else keys - 1
            # A diagonal is dropped only where the whole row has left it behind.
            diagonals = {query + shift - s for s in slash}
            assert {key for key in diagonals if 0 <= key <= min(limit, keys - 1)} <= attended
            if 0 in slash or not causal:
                assert {key for key in vertical if key <= limit} <= attended


def test_rows_beyond_the_queries_are_not_written() -> None:
    assert oracle.convert_row_block([0], [0], 128, 128, 128, causal=True) is None
    assert oracle.convert_row_block([0], [0], 64, 65, 65, causal=True) is not None


def test_counts_per_head_cut_the_lines_short() -> None:
    vertical = torch.tensor([[[1, 5, 700], [2, 3, 900]]], dtype=torch.int32)
    slash = torch.tensor([[[800, 100, 0], [600, 1, 0]]], dtype=torch.int32)
    cut = oracle.convert(oracle.Batch([960], [960], vertical, slash, [2, 1], [3, 2], True))
    for head, (v, s) in enumerate((([1, 5], [800, 100, 0]), ([2], [600, 1]))):
        for m in range(15):
            want = oracle.convert_row_block(v, s, m * BLOCK, 960, 960, causal=True)
            assert want is not None
            got = cut.block_offset[0, head, m][: cut.block_count[0, head, m]].tolist()
            assert (got, cut.column_index[0, head, m][: cut.column_count[0, head, m]].tolist()) == want


def test_full_cover_is_dense_attention() -> None:
    """Every distance chosen: every block is attended, and sparse attention is attention."""
    for queries, keys in ((200, 200), (130, 333), (64, 64), (1, 77)):
        q, k, v = tensors(keys)
        q = q[-queries:]
        for causal in (True, False):
            slash = torch.arange(keys + (0 if causal else queries) - 1, -1, -1, dtype=torch.int32).expand(1, 4, -1)
            vertical = torch.zeros(1, 4, 1, dtype=torch.int32)
            converted = oracle.convert(oracle.Batch([queries], [keys], vertical, slash, None, None, causal))
            limits = torch.arange(keys - queries, keys) if causal else None
            close(
                oracle.sparse_attention(q, k, v, converted, 0.3, causal),
                oracle.attend(q, k, v, 0.3, limits),
            )


def test_sparse_attention_is_attention_masked_to_the_attended_keys() -> None:
    for seed, causal in ((1, True), (2, False)):
        q, k, v = tensors(330, seed=seed)
        q = q[-150:]
        rng = random.Random(seed)
        vertical = torch.tensor([[sorted(rng.sample(range(330), 20)) for _ in range(4)]], dtype=torch.int32)
        slash = torch.tensor([[sorted(rng.sample(range(330), 9), reverse=True) for _ in range(4)]], dtype=torch.int32)
        converted = oracle.convert(oracle.Batch([150], [330], vertical, slash, None, None, causal))
        mask = torch.zeros(4, 150, 330, dtype=torch.bool)
        for head in range(4):
            for row in range(3):
                mask[head, row * 64 : row * 64 + 64, oracle.attended_keys(converted, head, row, 330)] = True
        if causal:
            mask &= torch.arange(330)[None, :] <= torch.arange(180, 330)[:, None]
        out = torch.nn.functional.scaled_dot_product_attention(
            *(t.transpose(0, 1)[None] for t in (q, k, v)), attn_mask=mask[None], scale=0.3, enable_gqa=True
        )
        ours = oracle.sparse_attention(q, k, v, converted, 0.3, causal)
        attends = mask.any(-1).transpose(0, 1)
        torch.testing.assert_close(ours.out[attends], out[0].transpose(0, 1)[attends], rtol=0, atol=1e-12)
        assert ours.out[~attends].eq(0).all()


def test_an_empty_row_is_zero_with_plus_infinity() -> None:
    q, k, v = tensors(64)
    nothing = oracle.Converted(*(torch.zeros(1, 4, 1, *more, dtype=torch.int32) for more in ((), (2,), (), (2,))))
    part = oracle.sparse_attention(q, k, v, nothing, 0.3, causal=True)
    assert part.out.eq(0).all()
    assert part.lse.eq(torch.inf).all()


def test_a_key_in_block_and_column_counts_twice() -> None:
    q, k, v = tensors(64)
    twice = oracle.Converted(
        torch.ones(1, 4, 1, dtype=torch.int32),
        torch.zeros(1, 4, 1, 1, dtype=torch.int32),
        torch.ones(1, 4, 1, dtype=torch.int32),
        torch.full((1, 4, 1, 1), 7, dtype=torch.int32),
    )
    again = torch.cat((torch.arange(64), torch.tensor([7])))
    close(
        oracle.sparse_attention(q, k, v, twice, 0.3, causal=False),
        oracle.attend(q, k[again], v[again], 0.3),
    )


@pytest.mark.parametrize("tokens", [200, 400, 601, 1000], ids="{} tokens".format)
@pytest.mark.parametrize("new", [200, 70])
def test_lines_for_everything_are_dense_dual_chunk_attention(tokens: int, new: int) -> None:
    """A call for each span, because sizes stay clipped to the first span of a call."""
    q, k, v = tensors(tokens)
    dual = oracle.DualChunk(oracle.Chunking(256, 56), BASE, 0.3)
    for begin, end in spans(0 if new == 200 else max(0, tokens - new), tokens, dual.chunking.stride):
        part = (q[begin:end], k[:end], v[:end])
        sparse, _ = oracle.sparse_prefill(*part, dual, [(tokens, tokens)] * 4)
        close(sparse, oracle.plain_attention(*part, dual))


def test_sizes_stay_clipped_to_the_first_span_of_a_call() -> None:
    q, k, v = tensors(400)
    _, chosen = oracle.sparse_prefill(q, k, v, oracle.DualChunk(oracle.Chunking(256, 56), BASE, 0.3), [(300, 400)] * 4)
    assert [(len(head.vertical), len(head.slash)) for span in chosen for head in span] == [(200, 200)] * 8


@pytest.mark.parametrize("tokens", [150, 390, 1000])
def test_rows_alone_are_those_of_the_whole(tokens: int) -> None:
    """Some rows of the last span, dense and sparse, from queries and keys that are rotated already."""
    chunking, sizes = oracle.Chunking(256, 56), [(40, 110), (90, 130), (30, 101), (200, 300)]
    dual = oracle.DualChunk(chunking, BASE, 0.3)
    q, k, v = tensors(tokens)
    first = spans(0, tokens, chunking.stride)[-1][0]
    dense = oracle.prefill(q[first:], k, v, dual)
    sparse, chosen = oracle.sparse_prefill(q[first:], k, v, dual, sizes)
    keys = oracle.rotate(k, oracle.key_positions(torch.arange(tokens), chunking), BASE)
    both = torch.cat((v, v.abs()), dim=-1)
    for row in range(0, tokens - first, BLOCK):
        rows = torch.tensor([row, *([row + 7, row + 63] if row + 63 < tokens - first else [])])
        places = oracle.query_positions(rows + first, chunking)
        turned = oracle.RotatedQueries(
            *(oracle.rotate(q[first + rows], at, BASE) for at in (places.intra, places.successive, places.inter))
        )
        part = oracle.attend_stages(turned, keys, both, rows + first, chunking.stride, 0.3)
        close(oracle.Partial(part.out[..., :16], part.lse), oracle.Partial(dense.out[rows], dense.lse[rows]))
        for head in range(4):
            selection = chosen[0][head]
            stages = (selection.intra, selection.successive, selection.inter)
            lines = oracle.SpanLines(first, tokens, chunking.stride, stages)
            of_head = oracle.RotatedQueries(*(variant[:, head] for variant in turned))
            part = oracle.attend_lines(of_head, keys[:, head // 2], both[:, head // 2], rows + first, lines, 0.3)
            want = oracle.Partial(sparse.out[rows, head], sparse.lse[rows, head])
            close(oracle.Partial(part.out[:, :16], part.lse), want)
    single = same(q[:1, 0])
    with pytest.raises(ValueError, match="behind the span"):
        oracle.attend_lines(single, k[:, 0], v[:, 0], torch.tensor([tokens + 64]), lines, 1.0)


def same(q: torch.Tensor) -> oracle.RotatedQueries:
    """Queries that are the same for every stage."""
    return oracle.RotatedQueries(q, q, q)


def test_a_choice_from_its_voters_alone() -> None:
    q, k, _ = tensors(590)
    whole = oracle.select_vertical_slash(same(q[420:]), k, 200, [(60, 140)] * 4, 0.3)
    voters = oracle.select_vertical_slash(same(q[-64:]), k, 200, [(60, 140)] * 4, 0.3, span=170)
    for expected, got in zip(whole, voters):
        for stage in ("intra", "successive", "inter"):
            assert torch.equal(getattr(got, stage).slash, getattr(expected, stage).slash)
            assert torch.equal(getattr(got, stage).vertical, getattr(expected, stage).vertical)


def test_selection_follows_its_definition() -> None:
    """One span of three chunks, scored pair by pair."""
    chunking, tokens, begin = oracle.Chunking(256, 56), 590, 420
    c = chunking.stride
    q, k, _ = tensors(tokens, heads=1, kv_heads=1)
    keys = oracle.rotate(k, oracle.key_positions(torch.arange(tokens), chunking), BASE)
    places = oracle.query_positions(torch.arange(begin, tokens), chunking)
    voting = oracle.RotatedQueries(
        *(
            oracle.rotate(q[begin:], place, BASE)
            for place in (places.intra, places.successive_critical, places.inter_critical)
        )
    )
    (got,) = oracle.select_vertical_slash(voting, keys, c, [(60, 140)], 0.3)
    weights = torch.zeros(64, tokens, dtype=torch.float64)
    for row, i in enumerate(range(tokens - 64, tokens)):
        ats = (i % c, i % c + c, i % c + chunking.size)
        turned = [oracle.rotate(q[i : i + 1], torch.tensor([at]), BASE)[0, 0] for at in ats]
        for j in range(i + 1):
            weights[row, j] = torch.exp((turned[min(i // c - j // c, 2)] @ keys[j, 0]) * 0.3)
    weights /= weights.sum(-1, keepdim=True)
    for j in range(tokens):
        vertical = weights[:, j].sum() if j >= 30 else torch.inf
        slash = sum(weights[63 - t, j - t] for t in range(64) if j >= t) if j < tokens - 100 else torch.inf
        assert float(got.vertical_scores[j]) == pytest.approx(float(vertical), abs=1e-12)
        assert float(got.slash_scores[j]) == pytest.approx(float(slash), abs=1e-12)
    assert set(range(30)) <= set(got.vertical.tolist())
    assert set(range(tokens - 100, tokens)) <= set(got.slash.tolist())
    assert (len(got.vertical), len(got.slash)) == (60, 140)


def test_a_vertical_size_of_30_is_raised_to_130() -> None:
    q, k, _ = tensors(500, heads=1, kv_heads=1)
    (got,) = oracle.select_vertical_slash(same(q), k, 1000, [(30, 120)], 0.3)
    assert (len(got.vertical), len(got.slash)) == (130, 120)
    assert got.successive is None
    assert got.inter is None


def test_a_stage_without_lines_gets_a_few() -> None:
    """Nothing chosen in the older chunks: five keys and five distances, evenly spread."""
    q, k = torch.ones(200, 1, 4, dtype=torch.float64), torch.zeros(600, 1, 4, dtype=torch.float64)
    k[450] = 9
    (got,) = oracle.select_vertical_slash(same(q), k, 200, [(31, 101)], 1.0)
    assert got.inter is not None
    assert got.successive is not None
    assert got.intra.vertical.tolist() == [50]
    assert got.successive.vertical.tolist() == [0, 40, 80, 120, 160]
    assert got.inter.vertical.tolist() == list(range(30))
    assert got.intra.slash.tolist() == [int(got.intra.slash[0]), *range(99, -1, -1)]
    assert 100 <= got.intra.slash[0] <= 149, "one of the diagonals on which a voter meets key 450"
    assert got.successive.slash.tolist() == got.intra.slash.tolist(), "these cross into the previous chunk"
    assert got.inter.slash.tolist() == [160, 120, 80, 40, 0]


def test_dense_and_sparse_agree_within_one_small_chunk() -> None:
    q, k, v = tensors(32)
    sparse, _ = oracle.sparse_prefill(q, k, v, DUAL, [(32, 32)] * 4)
    close(sparse, oracle.plain_attention(q, k, v, DUAL))
