# SPDX-License-Identifier: Apache-2.0
"""Which parts of a step attend which keys: every request's queries, cut where a chunk ends.

With a stride of c tokens (`chunk_size - local_size`), a query in chunk n attends three kinds of keys: those of its own
chunk, those of chunk n-1, and those of all older chunks. Each kind has its own rotary position of the query, so it
needs a call of attention of its own. Queries of one chunk share all three, so they form a span: a virtual sequence
whose keys begin at a shifted place of the request's block table. One plan serves whole prompts, pieces of prompts,
mixed batches and decoding, where each request is a span of one query.

Everything here is vectorised over requests and runs on the host, once a step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Spans:
    """The virtual sequences of one step, in the order of their queries.

    Attributes:
        request: `[spans]`, the row of the batch that each span belongs to.
        starts: `[spans + 1]`, where the queries of each span begin in the step, and where the last ones end.
        chunk: `[spans]`, the number of the chunk that holds the span's queries.
        intra: `[spans]`, keys of the same chunk, up to the span's last query.
        successive: `[spans]`, keys of the chunk before it; 0 in the first chunk.
        inter: `[spans]`, keys of all older chunks; 0 in the first two chunks.
        positions: `[tokens]`, the position of each query in its request.
        rows: `[tokens]`, the row of the batch that each query belongs to.
    """

    request: Ints
    starts: Ints
    chunk: Ints
    intra: Ints
    successive: Ints
    inter: Ints
    positions: Ints
    rows: Ints

    @property
    def count(self) -> int:
        """How many spans there are."""
        return len(self.request)


def cut(query_starts: Ints, lengths: Ints, stride: int) -> Spans:
    """Cut the queries of a step into spans.

    Args:
        query_starts: `[requests + 1]`, where the queries of each request begin in the step. A request without queries
            is padding and gets no span.
        lengths: `[requests]`, tokens of each request, the step's own included.
        stride: tokens of a chunk.
    """
    query_starts, lengths = query_starts.astype(np.int64), lengths.astype(np.int64)
    queries = np.diff(query_starts)
    cached = lengths - queries
    first = cached // stride
    count = np.where(queries > 0, (lengths - 1) // stride - first + 1, 0)
    request = np.repeat(np.arange(len(lengths)), count)
    chunk = first[request] + np.arange(len(request)) - np.repeat(np.cumsum(count) - count, count)
    begin = np.maximum(cached[request], chunk * stride)
    end = np.minimum(lengths[request], (chunk + 1) * stride)
    rows = np.repeat(np.arange(len(lengths)), queries)
    total = query_starts[-1:]
    return Spans(
        request=request,
        starts=np.concatenate((query_starts[request] + begin - cached[request], total)),
        chunk=chunk,
        intra=end - chunk * stride,
        successive=np.where(chunk > 0, stride, 0),
        inter=np.maximum(chunk - 1, 0) * stride,
        positions=np.arange(int(total[0])) + (cached - query_starts[:-1])[rows],
        rows=rows,
    )
