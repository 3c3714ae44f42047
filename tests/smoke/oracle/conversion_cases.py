"""What the cases of the index conversion find: rows at some lengths only, and writes beside the outputs."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from dca.in_wheel_env.oracle import Batch, Converted, convert_row_block
from dca.in_wheel_env.proof import conversion
from dca.in_wheel_env.proof.case import Wrong
from dca.in_wheel_env.proof.lengths import LONGEST, STRIDE, cuts, draw, source, spread

Rows = Callable[[int], int]


def kernel(rows: Rows) -> conversion.Kernel:
    """The oracle's conversion of the first `rows(n)` of n row blocks, of the columns and blocks alone that exist."""

    def convert(batch: Batch, into: Converted) -> None:
        size, heads, count = into.block_count.shape
        for b in range(size):
            lengths = (batch.query_lengths[b], batch.key_lengths[b])
            for h in range(heads):
                vertical, slash = batch.lines(b, h)
                for m in range(rows(count)):
                    row = convert_row_block(vertical, slash, m * 64, *lengths, batch.causal)
                    if row is None:
                        continue
                    into.block_count[b, h, m], into.column_count[b, h, m] = len(row.offsets), len(row.columns)
                    for place, value in enumerate(row.offsets):
                        into.block_offset[b, h, m, place] = value
                    for place, value in enumerate(row.columns):
                        into.column_index[b, h, m, place] = value

    return convert


@pytest.mark.parametrize(
    ("rows", "first"),
    [
        (lambda n: n // 64 * 64 if n > 64 else n, 64),
        (lambda n: n - 1 if n % 64 == 1 and n > 1 else n, 64),
        (lambda n: n - 1 if n == 63 else n, 62),
    ],
    ids=["rounded down", "one behind full thread blocks", "not full"],
)
def test_a_launcher_that_forgets_rows_is_found_at_every_seed(rows: Rows, first: int) -> None:
    with pytest.raises(Wrong, match=f"row blocks were not written, first {first}"):
        conversion._rows(kernel(rows), 5)


def test_a_row_beyond_the_queries_is_found() -> None:
    def beyond(batch: Batch, into: Converted) -> None:
        kernel(lambda n: n)(batch, into)
        into.block_count[0, 0, -1] = into.column_count[0, 0, -1] = 0

    long = conversion._batch(random.Random(1), (700, 900), False, True, 4)
    both = long._replace(vertical=long.vertical.expand(2, -1, -1), slash=long.slash.expand(2, -1, -1))
    batch = both._replace(query_lengths=[70, 700], key_lengths=[900, 900])
    conversion.check(kernel(lambda n: n), batch)
    with pytest.raises(Wrong, match="row block 10 lies beyond the queries"):
        conversion.check(beyond, batch)


@pytest.mark.parametrize("behind", [True, False])
@pytest.mark.parametrize("name", Converted._fields)
def test_a_write_beside_an_output_is_found(name: str, behind: bool) -> None:
    def outside(batch: Batch, into: Converted) -> None:
        kernel(lambda n: n)(batch, into)
        output = getattr(into, name)
        size = output.numel()
        around = output.as_strided((1,), (1,), output.storage_offset() + (size if behind else -1))
        around[0] = 0

    batch = conversion.random_batch(random.Random(3))
    conversion.check(kernel(lambda n: n), batch)
    with pytest.raises(Wrong, match=f"wrote beside its output {name}"):
        conversion.check(outside, batch)


def test_lengths_are_drawn_over_the_whole_range_and_repeat_with_their_seed() -> None:
    seen = set()
    for seed in range(50):
        lengths = spread(source(seed), 4096, STRIDE, 24)
        assert lengths == spread(source(seed), 4096, STRIDE, 24)
        assert all(4096 <= length <= STRIDE for length in lengths)
        assert sum(length % 2 for length in lengths) >= 12
        assert lengths[0] < 5000
        assert lengths[-1] > 200_000
        seen |= set(lengths)
    assert len(seen) > 1000
    assert {draw(source(n), 7, 7) for n in range(9)} == {7}
    assert max(draw(source(n), 1, LONGEST) for n in range(99)) <= LONGEST


def test_pieces_are_the_whole_and_none_is_empty() -> None:
    for seed in range(50):
        sizes = cuts(source(seed), 300, 5)
        assert (len(sizes), sum(sizes)) == (5, 300)
        assert min(sizes) > 0
    assert cuts(source(1), 1, 5) == [1]
    assert cuts(source(1), 9, 1) == [9]
