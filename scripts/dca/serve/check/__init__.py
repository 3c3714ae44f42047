"""Checks a running server: the protocol, and prompts up to the length that it should accept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.serve.check import needles, probes, troubles
from dca.serve.check.budget import Budget, Limit
from dca.serve.check.client import Card, RequestFailed, Server, base_of, load
from dca.serve.check.values import Cost, Needle, Probe, ServeCheck

__all__ = ["DEPTHS", "Cost", "Limit", "Needle", "Probe", "Request", "ServeCheck", "check"]

DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)
TIMEOUT = 60.0
LONGER = (
    "check longer prompts (--length) on a server that accepts them (--max-model-len), or omit them with --skip needles."
)
START = "start the server, or correct the URL; a server listens only once its model is loaded, which takes minutes."


@dataclass(frozen=True)
class Request:
    """What to check.

    Args:
        url: the server's URL.
        model: the name that the model is served under; empty for the server's only model.
        key: the server's key.
        length: greatest length, prompt and answer together, in tokens; None for what the server reports.
        lengths: exact lengths; empty for lengths that double up to `length`.
        depths: depths of the fact, in percent.
        skipped: names of probes to omit, or `needles`.
        needed: names of probes whose refusal is a failure.
        timeout: seconds for a short request.
        needle_timeout: seconds for a long prompt; None for a time-out that grows with its length.
        limit: limit on the check's cost.
        seed: seed of the texts.
    """

    url: str
    model: str = ""
    key: str = field(default="", repr=False)
    length: int | None = None
    lengths: tuple[int, ...] = ()
    depths: tuple[float, ...] = DEPTHS
    skipped: tuple[str, ...] = ()
    needed: tuple[str, ...] = ()
    timeout: float = TIMEOUT
    needle_timeout: float | None = None
    limit: Limit = field(default_factory=Limit)
    seed: int = 0


NEEDLES = "needles"


def check(asked: Request, reporter: Reporter, keep: Callable[[ServeCheck], None] = lambda _: None) -> ServeCheck:
    """Check everything that a client of a long-context model relies on.

    Args:
        asked: what to check.
        reporter: reports each request.
        keep: called with the result so far after each long prompt; these may take hours, and be interrupted.

    Returns:
        The result, good or bad.

    Raises:
        DcaError: DCA-160 when nothing answers at the URL or the key is rejected, DCA-201 for an invalid URL or model,
            DCA-103 without the client library.
    """
    load()
    server = Server(base_of(asked.url), key=asked.key, model=asked.model)
    budget = Budget(asked.limit)
    asking = probes.Asking(server, budget, asked.timeout)
    names = [name for name in probes.PROBES if name not in asked.skipped]
    reporter.stage("requests", f"{server.shown}: {len(names) + 1} short requests")
    first, card = _models(server, budget, asked)
    probed = [first, *probes.run(asking, tuple(names), asked.needed, reporter)]
    grid = _range(asked, card)
    seen: list[Needle] = []
    counter = None
    if NEEDLES not in asked.skipped and not any(probe.code == troubles.UNREACHABLE for probe in probed):
        total = sum(grid.lengths) * len(grid.depths)
        reporter.stage(
            "needles",
            f"{len(grid.lengths)} lengths up to {max(grid.lengths):,} tokens at {len(grid.depths)} depths: about "
            f"{total:,} tokens" + (f", limited by --max-cost {asked.limit.words}" if asked.limit.words else ""),
        )
        counter = needles.calibrate(asking, grid)

    def so_far() -> ServeCheck:
        result = ServeCheck(
            url=server.shown,
            model=server.hide(server.model),
            max_model_len=card.max_model_len,
            seed=asked.seed,
            probes=tuple(probed),
            needles=tuple(seen),
            lengths=grid.lengths if counter else (),
            depths=grid.depths if counter else (),
            reached=_reached(seen, grid),
            chars_per_token=round(counter.ratio, 4) if counter else None,
            cost=budget.cost,
        )
        doubted = counter.doubted if counter else ""
        open_to = _not_proven(result, asked, card, doubted)
        return result.model_copy(update={"verdict": _verdict(result), "not_proven": open_to})

    if counter:
        for needle in needles.run(asking, grid, counter, reporter):
            seen.append(needle)
            keep(so_far())
        if seen and all(needle.detail == needles.TOO_SHORT for needle in seen):
            # All prompts are too short for the facts, so none was sent and nothing is proven.
            seen[0] = seen[0].model_copy(update={"code": troubles.PROMPT, "remedy": LONGER})
    return so_far()


def _models(server: Server, budget: Budget, asked: Request) -> tuple[Probe, Card]:
    """Request /v1/models, and choose the model to check.

    Raises:
        DcaError: DCA-160, DCA-201.
    """
    proves = "the server lists its models"
    if why := budget.forbids(0, 0):
        raise DcaError("DCA-201", f"no request is possible: {why}.", remedy="allow more with --max-cost.")
    budget.send(0, 0)
    try:
        cards = server.cards(budget.deadline(asked.timeout))
    except RequestFailed as failed:
        budget.receive(None, None)
        trouble = troubles.explain(failed)
        if trouble.code == troubles.UNREACHABLE:
            raise DcaError(
                "DCA-160",
                f"{server.shown} cannot be checked: {trouble.detail}.",
                remedy=trouble.remedy if failed.kind == "denied" else START,
            ) from None
        if not asked.model:
            raise DcaError(
                "DCA-161",
                f"{server.shown} does not list its models: {trouble.detail}.",
                remedy="name the model with --model; the other requests do not need the list.",
            ) from None
        probe = Probe(
            name=probes.MODELS,
            proves=proves,
            status="failed",
            code=trouble.code,
            detail=trouble.detail,
            remedy=trouble.remedy,
            seconds=round(failed.seconds, 3),
            deadline=asked.timeout,
        )
        return probe, Card(id=asked.model)
    budget.receive(None, None)
    about: dict[str, Any] = {
        "name": probes.MODELS,
        "proves": proves,
        "seconds": round(budget.seconds, 3),
        "deadline": asked.timeout,
    }
    if not cards and asked.model:
        return Probe(**about, status="failed", code="DCA-161", detail="the list is empty", remedy=troubles.LOG), Card(
            id=asked.model
        )
    card = _chosen(cards, asked.model, server.hide)
    server.model = card.id
    maximum = f", at most {card.max_model_len:,} tokens" if card.max_model_len else ""
    return Probe(**about, status="passed", detail=f"{server.hide(card.id)}{maximum}"), card


def _chosen(cards: list[Card], name: str, hide: Callable[[str], str]) -> Card:
    names = hide(", ".join(card.id for card in cards)) or "none"
    if name:
        for card in cards:
            if card.id == name:
                return card
        raise DcaError(
            "DCA-201",
            f"the server has no model {name}.",
            why=f"it serves: {names}.",
            remedy="name one of them with --model; `vllm serve --served-model-name` sets the name.",
        )
    # Adapters that an engine loads in addition to its model report no length.
    whole = [card for card in cards if card.max_model_len] or cards
    if len(whole) != 1:
        raise DcaError(
            "DCA-201",
            f"the server has {len(cards)} models.",
            why=f"it serves: {names}.",
            remedy="name one of them with --model.",
        )
    return whole[0]


def _range(asked: Request, card: Card) -> needles.Range:
    """The lengths and depths to try."""
    limit = asked.length or min(card.max_model_len or needles.LONGEST_UNASKED, needles.LONGEST)
    lengths = asked.lengths or needles.lengths_to(limit)
    return needles.Range(tuple(sorted(set(lengths))), asked.depths, asked.needle_timeout, asked.seed)


def _reached(seen: list[Needle], grid: needles.Range) -> int:
    """The greatest length at which, as at every shorter one, the fact was found at every depth."""
    reached = 0
    for length in grid.lengths:
        if sum(needle.outcome == "found" for needle in seen if needle.length == length) < len(grid.depths):
            break
        reached = length
    return reached


def _verdict(result: ServeCheck) -> str:
    wrong = [probe for probe in result.probes if probe.code]
    words = []
    if wrong:
        names = ", ".join(probe.name for probe in wrong)
        words.append(f"{len(wrong)} of {len(result.probes)} short requests failed ({names})")
    # The first failure of each kind: a lost fact and a rejected prompt have different causes.
    troubled = {needle.outcome: needle for needle in reversed(result.needles) if needle.code}
    first = sorted(troubled.values(), key=result.needles.index)
    words += [f"at {needle.length:,} tokens, depth {needle.depth:g} %, {needle.detail}" for needle in first]
    if result.needles:
        longest = max((needle.tokens for needle in result.needles if needle.length == result.reached), default=0)
        words.append(
            f"every fact was found up to {result.reached:,} tokens (the longest prompt had {longest:,}, its answer at "
            f"most {needles.ANSWER_TOKENS})"
            if result.reached
            else "no length passed at every depth"
        )
    elif not wrong:
        words.append("every short request was answered")
    return "; ".join(words) + "."


def _not_proven(result: ServeCheck, asked: Request, card: Card, doubted: str) -> tuple[str, ...]:
    """What the check leaves open, in words.

    Args:
        result: the result.
        asked: what to check.
        card: the server's description of the model.
        doubted: an impossible token count of the server's, in words; empty when there was none.
    """
    remains = [
        f"{probe.name}: rejected by the server ({probe.detail})" for probe in result.probes if probe.status == "refused"
    ]
    remains += [
        f"{probe.name}: not sent, because {probe.detail}" for probe in result.probes if probe.status == "skipped"
    ]
    remains += [f"{name}: omitted by --skip" for name in asked.skipped]
    if missing := len(result.lengths) * len(result.depths) - len(result.needles):
        remains.append(f"{_prompts(missing)}: not sent, because the check was interrupted")
    skipped: dict[str, list[Needle]] = {}
    for needle in result.needles:
        if needle.outcome == "skipped":
            skipped.setdefault(needle.detail, []).append(needle)
    for why, prompts in skipped.items():
        longest = max(needle.length for needle in prompts)
        remains.append(f"{_prompts(len(prompts))}, the longest of {longest:,} tokens: not sent, because {why}")
    if doubted:
        remains.append(f"the server's token count of {doubted}: impossible, and therefore ignored")
    if result.needles and not any(needle.counted == "usage" for needle in result.needles):
        remains.append("lengths: the server reports no credible token count for a prompt; they are estimated")
    if result.needles and not (asked.length or asked.lengths or card.max_model_len):
        remains.append("longer prompts: the server does not report its maximum, and --length is not given")
    longest = max((needle.length for needle in result.needles), default=0)
    if card.max_model_len and result.needles and longest < card.max_model_len:
        remains.append(f"prompts from {longest:,} to the {card.max_model_len:,} tokens that the server reports")
    return tuple(remains)


def _prompts(count: int) -> str:
    return f"{count} prompt{'s' * (count != 1)}"
