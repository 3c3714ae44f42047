"""Single faults in the plugin's plan, rotation and merge, each a piece of its text and what stands in its place."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault: the file, a piece of its text that occurs once, what stands in its place, and what is wrong then."""

    file: str
    old: str
    new: str
    wrong: str


FAULTS = (
    Fault("spans.py", "first = cached // stride", "first = lengths // stride", "spans begin in the last chunk"),
    Fault("spans.py", "- first + 1, 0)", "- first, 0)", "the last chunk of each request is missing"),
    Fault(
        "spans.py", "chunk = first[request] + np", "chunk = 0 * first[request] + np", "cached chunks are not counted"
    ),
    Fault(
        "spans.py",
        "np.maximum(cached[request], chunk * stride)",
        "chunk * stride",
        "spans begin before the step's queries",
    ),
    Fault(
        "spans.py",
        "np.minimum(lengths[request], (chunk + 1) * stride)",
        "np.minimum(lengths[request], (chunk + 1) * stride - 1)",
        "the last key of a chunk is lost",
    ),
    Fault(
        "spans.py",
        "query_starts[request] + begin - cached[request]",
        "query_starts[request] + begin",
        "queries are taken from a later place",
    ),
    Fault("spans.py", "intra=end - chunk * stride", "intra=end - begin", "cached keys of the same chunk are lost"),
    Fault(
        "spans.py",
        "np.where(chunk > 0, stride, 0)",
        "np.where(chunk > 1, stride, 0)",
        "the first chunk is never the previous one",
    ),
    Fault(
        "spans.py",
        "np.where(chunk > 0, stride, 0)",
        "np.where(chunk > 0, stride - 1, 0)",
        "the last key of the previous chunk is lost",
    ),
    Fault(
        "spans.py",
        "np.maximum(chunk - 1, 0) * stride",
        "np.maximum(chunk - 2, 0) * stride",
        "the chunk before the previous one is lost",
    ),
    Fault("spans.py", "np.maximum(chunk - 1, 0) * stride", "chunk * stride", "the previous chunk counts twice"),
    Fault(
        "spans.py",
        "(cached - query_starts[:-1])[rows]",
        "(-query_starts[:-1])[rows]",
        "queries are rotated as if nothing were cached",
    ),
    Fault(
        "spans.py", "(cached - query_starts[:-1])[rows]", "cached[rows]", "positions count on from the request before"
    ),
    Fault(
        "spans.py",
        "rows = np.repeat(np.arange(len(lengths)), queries)",
        "rows = np.repeat(np.arange(len(lengths))[::-1], queries[::-1])",
        "queries are taken for those of another request",
    ),
    Fault(
        "spans.py",
        "np.cumsum(count) - count, count)",
        "np.cumsum(count) - 1, count)",
        "chunks are counted from the last one on",
    ),
    Fault("chunking.py", "return self.size - self.local", "return self.size", "chunks are as long as chunk_size"),
    Fault(
        "chunking.py",
        "self.stride + self.stride).clamp(max=self.size)",
        "self.stride + self.stride)",
        "no clamp towards the previous chunk",
    ),
    Fault(
        "chunking.py",
        "(positions % self.stride + self.stride)",
        "(positions % self.stride)",
        "the previous chunk is as near as the own one",
    ),
    Fault("chunking.py", "min(2 * self.stride - 1, self.size)", "self.stride", "older chunks are too near"),
    Fault("chunking.py", "min(2 * self.stride - 1, self.size)", "self.size - 1", "older chunks are a token too near"),
    Fault(
        "rotary.py",
        "one * cos - two * sin, two * cos + one * sin), dim=-1)\n        else",
        "one * cos + two * sin, two * cos - one * sin), dim=-1)\n        else",
        "heads turn the other way",
    ),
    Fault(
        "rotary.py",
        "one, two = turned.chunk(2, dim=-1)",
        "two, one = turned.chunk(2, dim=-1)",
        "the halves of a head are exchanged",
    ),
    Fault(
        "rotary.py",
        "turned = turned * factor[:, None, None]",
        "turned = turned * factor[:, None, None].sqrt()",
        "the factor counts once, not twice",
    ),
    Fault("rotary.py", "(0.1 * (lengths", "(0.2 * (lengths", "the factor grows too fast"),
    Fault("rotary.py", "+ 1).clamp(min=1)", "+ 1)", "short lengths blur attention"),
    Fault(
        "attention.py",
        "(spans.chunk - 1) * blocks",
        "spans.chunk * blocks * 1",
        "the previous chunk is the own one",
    ),
    Fault(
        "attention.py",
        "blocks = self.chunking.stride // self.block",
        "blocks = self.chunking.size // self.block",
        "tables are shifted by chunk_size",
    ),
    Fault("attention.py", "at == 0) for at", "True) for at", "older keys are attended causally"),
    Fault("attention.py", "at == 0) for at", "False) for at", "later keys of the own chunk are attended"),
    Fault(
        "attention.py",
        "lengths = spans.positions + 1",
        "lengths = spans.positions",
        "the factor is that of one token less",
    ),
    Fault(
        "attention.py",
        "np.maximum(lengths, prompts[spans.rows])",
        "prompts[spans.rows]",
        "what is generated does not lengthen a prompt",
    ),
    Fault(
        "attention.py",
        "np.maximum(lengths, prompts[spans.rows])",
        "lengths",
        "the whole prompt's factor is the token's",
    ),
    Fault("attention.py", "> self.original else None", "> 2 * self.original else None", "the factor begins too late"),
    Fault(
        "attention.py",
        "~chosen & (keys > 0)",
        "~chosen & (keys > 0) & (spans.chunk != 1)",
        "all is lost in the second chunk",
    ),
    Fault(
        "attention.py",
        "keys[kept])",
        "keys[kept[::-1]])",
        "spans have as many keys as others",
    ),
    Fault("attention.py", "first[kept], keys", "0 * first[kept], keys", "tables of some spans are not shifted"),
    Fault("attention.py", "np.cumsum(queries[kept])", "np.cumsum(queries)[kept]", "queries are counted among all"),
    Fault(
        "attention.py",
        "seen = keys - (end - first) if call.causal",
        "seen = keys - (end - first) - 1 if call.causal",
        "no query attends itself",
    ),
    Fault(
        "attention.py",
        "last = min(first + ATTENDED, end)",
        "last = min(first + ATTENDED, end - 1)",
        "the last query of a span is left out",
    ),
    Fault(
        "attention.py",
        "weights = torch.softmax(lses, dim=0)",
        "weights = torch.softmax(0 * lses, dim=0)",
        "parts count alike",
    ),
    Fault(
        "attention.py",
        "weights = torch.softmax(lses, dim=0)",
        "weights = torch.softmax(lses / 0.6931, dim=0)",
        "the log-sum-exp is of another base",
    ),
    Fault(
        "attention.py",
        "weights = torch.softmax(lses, dim=0)",
        "weights = torch.softmax(-lses, dim=0)",
        "the smaller part counts more",
    ),
    Fault(
        "attention.py",
        "lse.new_full((len(lse), tokens), -torch.inf)",
        "lse.new_full((len(lse), tokens), 0.0)",
        "parts without keys count",
    ),
    Fault(
        "attention.py",
        "index_copy_(0, rows, out)",
        "index_copy_(0, rows.flip(0), out)",
        "results are those of other queries",
    ),
    Fault(
        "attention.py",
        "np.repeat(kept, queries)",
        "np.repeat(kept, queries[::-1])[: queries.sum()]",
        "the queries of a span are counted as another's",
    ),
    Fault(
        "attention.py",
        "rotation.apply(queries[rows]",
        "rotation.apply(queries[: len(step.positions[rows])]",
        "the first queries attend for others",
    ),
    Fault(
        "attention.py",
        "add_(request[:, None] * table.shape[1])",
        "add_(request[:, None] * 0)",
        "all requests have the first one's blocks",
    ),
    Fault(
        "attention.py",
        "own = table[:, : -(-longest // self.block)].index_select(0, request)",
        "own = table[: len(request), : -(-longest // self.block)]",
        "older chunks are those of another request",
    ),
    Fault("attention.py", "keys[:count][written]", "keys[:count][written.flip(0)]", "keys are written a slot too late"),
    Fault(
        "attention.py",
        "if part.first.any():",
        "if part.first.any() and len(request) > len(table):",
        "tables are not shifted while decoding",
    ),
    Fault(
        "attention.py",
        "lse = torch.logsumexp(logits, dim=-1)",
        "lse = logits.amax(dim=-1)",
        "the log-sum-exp is the largest logit",
    ),
    Fault(
        "attention.py",
        "table[places(step.positions[rows])], factor",
        "table[places(step.positions[rows])], None",
        "no factor",
    ),
    Fault(
        "attention.py",
        "table[places(step.positions[rows])], factor",
        "table[step.positions[rows] % len(table)], factor",
        "queries turn by their position",
    ),
)
