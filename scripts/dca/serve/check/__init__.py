"""Whether a running server really answers: the protocol, and prompts up to the length that it is to take."""

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
    "ask for longer prompts (--length), of a server that takes them (--max-model-len), or leave them out with "
    "--skip needles."
)
START = "start the server, or correct the URL; a server listens only when its model is loaded, which takes minutes."


@dataclass(frozen=True)
class Request:
    """What is to be checked.

    Args:
        url: of the server.
        model: that is asked, by the name it is served under; the server's only one when empty.
        key: that the server wants.
        length: the greatest, prompt and answer together, in tokens; what the server says it takes when None.
        lengths: in place of lengths that double up to it.
        depths: of the fact, in percent.
        skipped: names of probes that are left out, or `needles`.
        needed: names of probes that must not be refused.
        timeout: seconds for a short request.
        needle_timeout: seconds for a long one; a minute and what its length adds when None.
        limit: what the check may cost.
        seed: of the texts.
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
    """Ask a server for everything that a client of a long-context model relies on.

    Args:
        asked: what is to be checked.
        reporter: told of each request.
        keep: given what was seen so far, after each long prompt: they may take hours, and be interrupted.

    Returns:
        What was seen, good or bad.

    Raises:
        DcaError: DCA-160 when nobody answers at the URL or the key is refused, DCA-201 for a URL or a model that
            cannot be asked, DCA-103 without the client library.
    """
    load()
    server = Server(base_of(asked.url), key=asked.key, model=asked.model)
    budget = Budget(asked.limit)
    asking = probes.Asking(server, budget, asked.timeout)
    names = [name for name in probes.PROBES if name not in asked.skipped]
    reporter.stage("requests", f"{server.shown}: {len(names) + 1} short ones")
    first, card = _models(server, budget, asked)
    found = [first, *probes.run(asking, tuple(names), asked.needed, reporter)]
    wanted = _range(asked, card)
    seen: list[Needle] = []
    counter = None
    if NEEDLES not in asked.skipped and not any(one.code == troubles.UNREACHABLE for one in found):
        total = sum(wanted.lengths) * len(wanted.depths)
        reporter.stage(
            "needles",
            f"{len(wanted.lengths)} lengths to {max(wanted.lengths):,} tokens at {len(wanted.depths)} depths: about "
            f"{total:,} tokens" + (f", not past --max-cost {asked.limit.words}" if asked.limit.words else ""),
        )
        counter = needles.calibrate(asking, wanted)

    def so_far() -> ServeCheck:
        result = ServeCheck(
            url=server.shown,
            model=server.hide(server.model),
            max_model_len=card.max_model_len,
            seed=asked.seed,
            probes=tuple(found),
            needles=tuple(seen),
            lengths=wanted.lengths if counter else (),
            depths=wanted.depths if counter else (),
            reached=_reached(seen, wanted),
            chars_per_token=round(counter.ratio, 4) if counter else None,
            cost=budget.cost,
        )
        doubted = counter.doubted if counter else ""
        open_to = _not_proven(result, asked, card, doubted)
        return result.model_copy(update={"verdict": _verdict(result), "not_proven": open_to})

    if counter:
        for needle in needles.run(asking, wanted, counter, reporter):
            seen.append(needle)
            keep(so_far())
        if seen and all(one.detail == needles.TOO_SHORT for one in seen):
            # No prompt was sent, and not for its cost: nothing was seen of what was asked for.
            seen[0] = seen[0].model_copy(update={"code": troubles.PROMPT, "remedy": LONGER})
    return so_far()


def _models(server: Server, budget: Budget, asked: Request) -> tuple[Probe, Card]:
    """Ask /v1/models, and settle which model is meant.

    Raises:
        DcaError: DCA-160, DCA-201.
    """
    proves = "the server lists its models"
    if why := budget.forbids(0, 0):
        raise DcaError("DCA-201", f"nothing can be asked: {why}.", remedy="allow more with --max-cost.")
    budget.send(0, 0)
    try:
        cards = server.cards(budget.deadline(asked.timeout))
    except RequestFailed as failed:
        budget.receive(None, None)
        told = troubles.tell(failed)
        if told.code == troubles.UNREACHABLE:
            raise DcaError(
                "DCA-160",
                f"{server.shown} cannot be asked: {told.detail}.",
                remedy=told.remedy if failed.kind == "denied" else START,
            ) from None
        if not asked.model:
            raise DcaError(
                "DCA-161",
                f"{server.shown} does not list its models: {told.detail}.",
                remedy="name the model with --model, and the other requests are made all the same.",
            ) from None
        found = Probe(
            name=probes.MODELS,
            proves=proves,
            status="failed",
            code=told.code,
            detail=told.detail,
            remedy=told.remedy,
            seconds=round(failed.seconds, 3),
            deadline=asked.timeout,
        )
        return found, Card(id=asked.model)
    budget.receive(None, None)
    about: dict[str, Any] = {
        "name": probes.MODELS,
        "proves": proves,
        "seconds": round(budget.seconds, 3),
        "deadline": asked.timeout,
    }
    if not cards and asked.model:
        return Probe(**about, status="failed", code="DCA-161", detail="it lists none", remedy=troubles.LOG), Card(
            id=asked.model
        )
    card = _chosen(cards, asked.model, server.hide)
    server.model = card.id
    takes = f", takes {card.max_model_len:,} tokens" if card.max_model_len else ""
    return Probe(**about, status="passed", detail=f"{server.hide(card.id)}{takes}"), card


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
    # The adapters that an engine loads beside its model have no length of their own.
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


def _reached(seen: list[Needle], wanted: needles.Range) -> int:
    """The greatest length at which every depth found its fact, and every shorter one did."""
    reached = 0
    for length in wanted.lengths:
        if sum(one.outcome == "found" for one in seen if one.length == length) < len(wanted.depths):
            break
        reached = length
    return reached


def _verdict(found: ServeCheck) -> str:
    wrong = [one for one in found.probes if one.code]
    words = []
    if wrong:
        names = ", ".join(one.name for one in wrong)
        words.append(f"{len(wrong)} of {len(found.probes)} short requests failed ({names})")
    # The first of each kind: a fact that was lost says nothing of a prompt that was refused.
    troubled = {one.outcome: one for one in reversed(found.needles) if one.code}
    first = sorted(troubled.values(), key=found.needles.index)
    words += [f"at {one.length:,} tokens, depth {one.depth:g} %, {one.detail}" for one in first]
    if found.needles:
        longest = max((one.tokens for one in found.needles if one.length == found.reached), default=0)
        words.append(
            f"every fact was found up to {found.reached:,} tokens (the longest prompt had {longest:,}, and the answer "
            f"{needles.ANSWER_TOKENS} at most)"
            if found.reached
            else "no length passed at every depth"
        )
    elif not wrong:
        words.append("every short request was answered")
    return "; ".join(words) + "."


def _not_proven(found: ServeCheck, asked: Request, card: Card, doubted: str) -> tuple[str, ...]:
    told = [f"{one.name}: refused by the server ({one.detail})" for one in found.probes if one.status == "refused"]
    told += [f"{one.name}: not asked, because {one.detail}" for one in found.probes if one.status == "skipped"]
    told += [f"{name}: left out by --skip" for name in asked.skipped]
    if missing := len(found.lengths) * len(found.depths) - len(found.needles):
        told.append(f"{_prompts(missing)}: not sent, because the check was ended before")
    skipped: dict[str, list[Needle]] = {}
    for one in found.needles:
        if one.outcome == "skipped":
            skipped.setdefault(one.detail, []).append(one)
    told += [
        f"{_prompts(len(those))}, the longest of {max(one.length for one in those):,} tokens: not sent, because {why}"
        for why, those in skipped.items()
    ]
    if doubted:
        told.append(f"what the server counts: {doubted}, which no text has, is not believed")
    if found.needles and not any(one.counted == "usage" for one in found.needles):
        told.append("lengths: the server does not tell credibly how many tokens a prompt had; they are estimated")
    if found.needles and not (asked.length or asked.lengths or card.max_model_len):
        told.append("longer prompts: the server does not say what it takes, and no --length was asked for")
    longest = max((one.length for one in found.needles), default=0)
    if card.max_model_len and found.needles and longest < card.max_model_len:
        told.append(f"prompts from {longest:,} to the {card.max_model_len:,} tokens that the server says it takes")
    return tuple(told)


def _prompts(count: int) -> str:
    return f"{count} prompt{'s' * (count != 1)}"
