"""The oracle's two forms against each other and against what is known without them; runs where torch is."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from dca.in_wheel_env import oracle

BASE = 1e4
SMALL = oracle.Chunking(size=48, local=16)
DUAL = oracle.DualChunk(SMALL, BASE, 0.3)
CHUNKS = {"one": 32, "two": 64, "three": 96, "five": 160, "five and a bit": 169}


def tensors(tokens: int, heads: int = 4, kv_heads: int = 2, dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(seed)
    return tuple(torch.randn(tokens, count, dim, dtype=torch.float64) for count in (heads, kv_heads, kv_heads))


def close(a: oracle.Partial, b: oracle.Partial) -> None:
    torch.testing.assert_close(a.out, b.out, rtol=0, atol=1e-12)
    torch.testing.assert_close(a.lse, b.lse, rtol=0, atol=1e-12)


@pytest.mark.parametrize("tokens", CHUNKS.values(), ids=CHUNKS)
@pytest.mark.parametrize("new", ["all", "some", "one"])
@pytest.mark.parametrize("chunking", [SMALL, oracle.Chunking(40, 8), oracle.Chunking(33, 32)], ids=str)
def test_spans_and_merges_equal_the_distance_of_every_pair(tokens: int, new: str, chunking: oracle.Chunking) -> None:
    q, k, v = tensors(tokens)
    q = q[-{"all": tokens, "some": 23, "one": 1}[new] :]
    dual = oracle.DualChunk(chunking, BASE, 0.3)
    close(oracle.prefill(q, k, v, dual), oracle.plain_attention(q, k, v, dual))


def test_decode_is_the_last_row_of_prefill() -> None:
    q, k, v = tensors(131)
    whole = oracle.prefill(q, k, v, DUAL)
    close(oracle.decode(q[-1:], k, v, DUAL), oracle.Partial(whole.out[-1:], whole.lse[-1:]))
    with pytest.raises(ValueError, match="one query, not 2"):
        oracle.decode(q[:2], k, v, DUAL)


def test_one_chunk_is_ordinary_causal_attention() -> None:
    q, k, v = tensors(32)
    places = torch.arange(32)
    ours = oracle.prefill(q, k, v, DUAL)
    theirs = torch.nn.functional.scaled_dot_product_attention(
        *(t.transpose(0, 1)[None] for t in (oracle.rotate(q, places, BASE), oracle.rotate(k, places, BASE), v)),
        is_causal=True,
        scale=0.3,
        enable_gqa=True,
    )
    torch.testing.assert_close(ours.out, theirs[0].transpose(0, 1), rtol=0, atol=1e-12)


def test_blocks_of_queries_and_keys_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = tensors(100)
    limits = torch.arange(100)
    whole = oracle.attend(q, k, v, 0.3, limits)
    monkeypatch.setattr("dca.in_wheel_env.oracle.attention.QUERIES", 7)
    monkeypatch.setattr("dca.in_wheel_env.oracle.attention.KEYS", 11)
    close(oracle.attend(q, k, v, 0.3, limits), whole)


def test_nothing_attended_is_zero_and_minus_infinity() -> None:
    q, k, v = tensors(5)
    empty = oracle.attend(q, k[:0], v[:0], 1.0)
    none_yet = oracle.attend(q, k, v, 1.0, torch.full((5,), -1))
    for part in (empty, none_yet, oracle.merge([empty, none_yet])):
        assert part.out.eq(0).all()
        assert part.lse.eq(-math.inf).all()
    full = oracle.attend(q, k, v, 1.0)
    close(oracle.merge([empty, full]), full)


def test_heads_that_cannot_share_are_refused() -> None:
    q, k, v = tensors(4, heads=3)
    with pytest.raises(ValueError, match="3 query heads cannot share 2 key heads"):
        oracle.attend(q, k, v, 1.0)


def test_distances_follow_their_definition() -> None:
    """Pair by pair, in the words of the definition and with the lengths of the 1M models scaled down."""
    chunk, local = 64, 2
    c = chunk - local
    tokens = 5 * c + 3
    distances = oracle.relative_distances(torch.arange(tokens), torch.arange(tokens), oracle.Chunking(chunk, local))
    for i, j in itertools.product(range(tokens), range(tokens)):
        if j > i:
            continue
        if i // c == j // c:
            want = i - j
        elif i // c == j // c + 1:
            want = min(i % c + c, chunk) - j % c
            if i % c <= local:
                assert want == i - j, "the first tokens of a chunk see the previous one at its true distance"
        else:
            want = chunk - j % c
            assert local + 1 <= want <= chunk
        assert distances[i, j] == want, (i, j)


def test_positions_of_the_1m_models() -> None:
    chunking = oracle.Chunking(262_144, 8_192)
    assert chunking.stride == 253_952
    p = torch.tensor([0, 8_191, 8_192, 253_951, 253_952, 262_145, 507_903, 507_904, 1_009_999])
    places = oracle.query_positions(p, chunking)
    assert oracle.key_positions(p, chunking).tolist() == [0, 8191, 8192, 253_951, 0, 8193, 253_951, 0, 248_143]
    assert places.successive.tolist() == [
        253_952,
        262_143,
        262_144,
        262_144,
        253_952,
        262_144,
        262_144,
        253_952,
        262_144,
    ]
    assert set(places.inter.tolist()) == {262_144}
    assert places.successive_critical.tolist()[-1] == 248_143 + 253_952
    assert places.inter_critical.tolist()[-1] == 248_143 + 262_144


@pytest.mark.parametrize("chunking", [(64, 64), (64, 0), (64, 80)])
def test_lengths_that_make_no_chunk_are_refused(chunking: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="between 0 and chunk_size"):
        oracle.Chunking(*chunking)


def test_the_length_factor() -> None:
    assert oracle.length_factor(1_010_000, 0) == 1
    assert oracle.length_factor(262_144, 262_144) == 1
    assert oracle.length_factor(1_000, 262_144) == 1
    assert oracle.length_factor(1_010_000, 262_144) == pytest.approx(1.1349, abs=5e-5)
    assert oracle.length_factor(1_010_000, 262_144) ** 2 == pytest.approx(1.288, abs=5e-4)
