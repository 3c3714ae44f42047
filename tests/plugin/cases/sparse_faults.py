"""Single faults in sparse attention, each a replacement of one text of the plugin."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """A single fault: what is wrong, in which file, and the text that is replaced."""

    wrong: str
    file: str
    old: str
    new: str


FAULTS = (
    Fault("one voter less", "sparse", "-min(span, selection.VOTERS)", "-min(span, selection.VOTERS - 1)"),
    Fault(
        "voters of the previous chunk are clamped",
        "sparse",
        "chunking.successive, chunking.stride",
        "chunking.successive, chunking.stride - 9",
    ),
    Fault("voters of older chunks stand elsewhere", "sparse", "chunking.inter, chunking.size", "chunking.inter, 0"),
    Fault("voters without the factor", "sparse", "else of.factor[last]", "else None"),
    Fault(
        "queries without the factor",
        "sparse",
        "table[places(of.positions)], of.factor)",
        "table[places(of.positions)], None)",
    ),
    Fault("keys of the span's end are left out", "sparse", "[: span.end] for half", "[: span.end - 1] for half"),
    Fault(
        "heads of another group",
        "sparse",
        "own = slice(group.start * share, group.stop * share)",
        "own = slice(group.start, group.stop * share)",
    ),
    Fault("no older chunks", "sparse", "if previous > 0:", "if previous > 10**6:"),
    Fault("no previous chunk", "sparse", "if previous >= 0:", "if previous >= 10**6:"),
    Fault("own chunk not causal", "sparse", "Stage(own, end, causal=True)", "Stage(own, end, causal=False)"),
    Fault(
        "lines of the first head for all",
        "sparse",
        "torch.tensor(of.sizes).T)",
        "torch.tensor(of.sizes[:1] * len(of.sizes)).T)",
    ),
    Fault(
        "the last query's diagonals are moved",
        "selection",
        "torch.where(met, behind - 1 - slash, -1)",
        "torch.where(met, behind - slash, -1)",
    ),
    Fault("diagonals end at their chunk", "selection", "else stage.after + span", "else stage.after"),
    Fault(
        "verticals are not counted from the stage's first key",
        "selection",
        "vertical - stage.first, _PADDING",
        "vertical, _PADDING",
    ),
    Fault("diagonals are summed along rows", "selection", "weights.flip(1)", "weights"),
    Fault("the first keys are not kept", "selection", "vertical[:, :FIRST] = torch.inf", "pass"),
    Fault("the nearest distances are not kept", "selection", "slash[:, -NEAREST:] = torch.inf", "pass"),
    Fault("voters see what comes after them", "selection", "if after > end - voters:", "if after > end:"),
    Fault(
        "scores of the last block alone",
        "selection",
        "total = torch.logaddexp(total, torch.logsumexp(logits(*block), dim=-1))",
        "total = torch.logsumexp(logits(*block), dim=-1)",
    ),
    Fault("the smallest scores", "selection", "scored.topk(int(counts.max()))", "(-scored).topk(int(counts.max()))"),
    Fault(
        "lines of the widest head for all",
        "selection",
        "place >= counts.to(found.device)[:, None]",
        "place >= counts.max()",
    ),
    Fault(
        "prompts of the threshold's length are sparse",
        "attention",
        "(lengths > self.threshold)",
        "(lengths >= self.threshold)",
    ),
    Fault(
        "decodes are sparse",
        "attention",
        "(spans.positions[spans.starts[:-1]] < lengths)",
        "(spans.positions[spans.starts[:-1]] <= lengths)",
    ),
    Fault(
        "sparse spans end early", "attention", "int(spans.positions[end - 1]) + 1)", "int(spans.positions[end - 1]))"
    ),
    Fault("dense spans have no keys", "attention", "~chosen & (keys > 0)", "chosen & (keys > 0)"),
)
