"""Checks a running server: the protocol, and prompts up to the length that it should accept."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from difflib import get_close_matches
from typing import Any

from dca import __version__
from dca.foundation.errors import DcaError
from dca.foundation.events import Reporter
from dca.serve.check import identity, metrics, needles, probes, ruler, troubles
from dca.serve.check.answers import Card
from dca.serve.check.budget import Budget, Limit
from dca.serve.check.client import Server, base_of
from dca.serve.check.failed import ABSENT, RequestFailed
from dca.serve.check.needles import Counter
from dca.serve.check.transport import load
from dca.serve.check.values import Cost, Engine, Flag, Load, Needle, Probe, Ruler, RulerScore, ServeCheck

__all__ = [
    "DEPTHS",
    "Cost",
    "Engine",
    "Flag",
    "Keeper",
    "Limit",
    "Needle",
    "Probe",
    "Request",
    "Ruler",
    "ServeCheck",
    "check",
]

DEPTHS = (0.0, 25.0, 50.0, 75.0, 100.0)
TIMEOUT = 60.0
WAIT = 600.0
IDENTITY_SECONDS = 5.0
MOST_NAMES = 12
"""Names of models that are shown."""
ROOM_SHARE = 4
"""With reasoning, a short answer may take up to this fraction of the server's maximum length."""
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
        wait: seconds to wait for a server that answers that it is loading.
        no_thinking: whether to ask the model not to reason.
        limit: limit on the check's cost.
        seed: seed of the texts.
        ruler: RULER's tasks; None to omit them.
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
    wait: float = WAIT
    no_thinking: bool = False
    limit: Limit = field(default_factory=Limit)
    seed: int = 0
    ruler: ruler.Asked | None = None


NEEDLES, RULER = "needles", "ruler"


@dataclass(frozen=True)
class Keeper:
    """Keeps what was seen, because a check may take hours, and be interrupted.

    Args:
        keep: called with the result so far after each request; it is `interrupted` until the check has ended.
        earlier: the kept result of the same server, model and seed (as `ServeCheck` has them); None without one.
        harness: the environment that runs RULER's tasks; called once if they are asked for.
    """

    keep: Callable[[ServeCheck], None] = lambda _: None
    earlier: Callable[[str, str, int], ServeCheck | None] = lambda *_: None
    harness: Callable[[], ruler.Harness] | None = None


def check(asked: Request, reporter: Reporter, keeper: Keeper | None = None) -> ServeCheck:
    """Check everything that a client of a long-context model relies on.

    Args:
        asked: what to check.
        reporter: reports each request.
        keeper: keeps the result so far; None for nobody.

    Returns:
        The result, good or bad.

    Raises:
        DcaError: DCA-160 when nothing answers at the URL or the key is rejected, DCA-201 for an invalid URL or model,
            DCA-103 without the client library; DCA-407 when RULER's harness cannot be installed.
    """
    load()
    keeper = keeper or Keeper()
    server = Server(base_of(asked.url), key=asked.key, model=asked.model, no_thinking=asked.no_thinking)
    # Waiting for a server that is loading costs time as well.
    patience = min(asked.wait, asked.limit.seconds or math.inf)
    asking = probes.Asking(server, Budget(asked.limit), asked.timeout, patience=patience, tell=reporter.note)
    names = [name for name in probes.PROBES if name not in asked.skipped]
    reporter.stage("requests", f"{server.shown}: {len(names) + 1} short requests")
    first, card, cards = _models(asking, asked)
    tasks = _tasks(asked, card, keeper)
    deadline = asking.budget.deadline(min(asked.timeout, IDENTITY_SECONDS))
    asking.engine = identity.of(server, card, deadline)
    asking.room = max(1, min(probes.REASONING, (card.max_model_len or needles.LONGEST) // ROOM_SHARE))
    measured = metrics.text_of(server, deadline)
    flags = identity.flags(server, asking.engine, cards, measured)
    seen = _Seen(asked, card, asking, _range(asked, card), flags, tasks, metrics.read(measured))
    seen.take_over(keeper)
    seen.add(first, keeper)
    for probe in probes.run(asking, tuple(names), asked.needed, reporter):
        seen.add(probe, keeper)
    if NEEDLES not in asked.skipped and not seen.gone:
        grid = seen.grid
        total = sum(grid.lengths) * len(grid.depths)
        reporter.stage(
            "needles",
            f"{len(grid.lengths)} lengths up to {max(grid.lengths):,} tokens at {len(grid.depths)} depths: about "
            f"{total:,} tokens"
            + (f", {len(grid.known)} answered before the interruption" if grid.known else "")
            + (f", limited by --max-cost {asked.limit.words}" if asked.limit.words else ""),
        )
        seen.counter = needles.calibrate(asking, grid)
        for needle in needles.run(asking, grid, seen.counter, reporter):
            seen.add(needle, keeper)
        if all(needle.detail == needles.TOO_SHORT for needle in seen.needles):
            # All prompts are too short for the facts, so none was sent and nothing is proven.
            seen.needles[0] = seen.needles[0].model_copy(update={"code": troubles.PROMPT, "remedy": LONGER})
    if tasks is not None and not seen.ended:
        reporter.stage(RULER, f"{len(tasks.cells)} tasks and lengths of {tasks.asked.samples} texts each")
        ruler.run(asking, tasks, reporter, lambda: keeper.keep(seen.result(interrupted=True)))
    if seen.before is not None and not seen.ended:
        seen.after = metrics.read(metrics.text_of(server, IDENTITY_SECONDS))
    return seen.result(interrupted=False)


@dataclass
class _Seen:
    """What was seen so far.

    Args:
        asked: what to check.
        card: the server's description of the model.
        asking: the requests.
        grid: the long prompts.
        flags: what shows of the server's settings without an answer.
        tasks: RULER's; None if they were not asked for.
        before: what the engine's metrics reported before the check; None without any.
        after: what they reported after it.
    """

    asked: Request
    card: Card
    asking: probes.Asking
    grid: needles.Range
    flags: tuple[Flag, ...]
    tasks: ruler.Begun | None = None
    before: Load | None = None
    after: Load | None = None
    probes: list[Probe] = field(default_factory=list)
    needles: list[Needle] = field(default_factory=list)
    counter: Counter | None = None
    date: str = field(default_factory=lambda: datetime.now(timezone.utc).isoformat(timespec="seconds"))

    @property
    def gone(self) -> str:
        """Why nothing more can be asked; empty if the server answers."""
        return next((why for probe in self.probes if (why := probes.end_of(probe))), "")

    @property
    def ended(self) -> str:
        """Why nothing more can be asked, not even after the long prompts; empty if the server answers."""
        last = next((one for one in reversed(self.needles) if one.outcome != "skipped"), None)
        if last is not None and last.outcome in needles.END:
            return f"after {last.place} the server {'hangs' if last.outcome == 'hung' else 'does not answer'}"
        return self.gone

    def add(self, part: Probe | Needle, keeper: Keeper) -> None:
        """Add one request, and keep the result."""
        if isinstance(part, Probe):
            self.probes.append(part)
        else:
            self.needles.append(part)
        keeper.keep(self.result(interrupted=True))

    def take_over(self, keeper: Keeper) -> None:
        """Take the answers of an interrupted check of the same server, with the same settings."""
        new = self.result(interrupted=True)
        old = keeper.earlier(new.url, new.model, new.seed)
        same = ("url", "model", "seed", "engine", "max_model_len", "no_thinking")
        if old is None or not old.interrupted or any(getattr(old, name) != getattr(new, name) for name in same):
            return
        known = tuple(needle for needle in old.needles if needle.outcome in ("found", "lost"))
        known = tuple(one for one in known if one.length in self.grid.lengths and one.depth in self.grid.depths)
        if self.tasks is not None:
            self.tasks.take_over(old.ruler)
        if known or (self.tasks is not None and self.tasks.known):
            self.grid = replace(self.grid, known=known)
            self.asking.budget.take_over(old.cost)
            self.asking.reasons = old.reasons

    @property
    def _taken(self) -> int:
        """How many of RULER's scores are of an interrupted run."""
        return sum(one in self.tasks.known for one in self.tasks.scores) if self.tasks else 0

    def result(self, *, interrupted: bool) -> ServeCheck:
        """The result so far."""
        asked, card, counter, server = self.asked, self.card, self.counter, self.asking.server
        # Until they are taken up, the earlier answers are kept as well: this run may be interrupted too.
        known = tuple(needle for needle in self.grid.known if needle not in self.needles) if interrupted else ()
        needed = counter is not None or known
        result = ServeCheck(
            date=self.date,
            tool=__version__,
            url=server.shown,
            engine=self.asking.engine,
            model=server.hide(server.model),
            flags=(*self.flags, *self.asking.seen.values()),
            max_model_len=card.max_model_len,
            seed=asked.seed,
            no_thinking=asked.no_thinking,
            reasons=self.asking.reasons,
            interrupted=interrupted,
            resumed=sum(needle in self.grid.known for needle in self.needles) + self._taken,
            probes=tuple(self.probes),
            needles=(*self.needles, *known),
            lengths=self.grid.lengths if needed else (),
            depths=self.grid.depths if needed else (),
            reached=_reached(self.needles, self.grid),
            chars_per_token=round(counter.ratio, 4) if counter else None,
            ruler=self.tasks.result(interrupted=interrupted) if self.tasks else None,
            before=self.before,
            after=self.after,
            cost=self.asking.budget.cost,
        )
        doubted = counter.doubted if counter else ""
        open_to = _not_proven(result, asked, card, doubted, self.gone)
        if self.tasks is not None:
            open_to += _not_scored(result, self.tasks, self.ended)
        return result.model_copy(update={"verdict": _verdict(result, self.gone), "not_proven": open_to})


def _tasks(asked: Request, card: Card, keeper: Keeper) -> ruler.Begun | None:
    """RULER's tasks, if they are asked for; before anything is generated, all that they need is there.

    Raises:
        DcaError: DCA-201 without the model's tokenizer, DCA-407.
    """
    if asked.ruler is None or keeper.harness is None:
        return None
    tokenizer = asked.ruler.tokenizer_folder(card)
    return ruler.Begun(asked.ruler, keeper.harness(), card, tokenizer, asked.needle_timeout)


def _models(asking: probes.Asking, asked: Request) -> tuple[Probe, Card, list[Card]]:
    """Request /v1/models, and choose the model to check.

    Raises:
        DcaError: DCA-160, DCA-161, DCA-201.
    """
    server, budget = asking.server, asking.budget
    proves = "the server lists its models"
    if why := budget.forbids(0, 0):
        raise DcaError("DCA-201", f"no request is possible: {why}.", remedy="allow more with --max-cost.")
    budget.send(0, 0)
    try:
        cards = asking.patiently(lambda: server.cards(budget.deadline(asked.timeout)))
    except RequestFailed as failed:
        budget.receive(None, None)
        trouble = troubles.explain(failed)
        if trouble.code == troubles.UNREACHABLE:
            raise DcaError(
                "DCA-160",
                f"{server.shown} cannot be checked: {trouble.detail.rstrip('.')}.",
                remedy=START if failed.kind == "gone" else trouble.remedy,
            ) from None
        if not asked.model:
            raise DcaError(
                "DCA-161",
                f"{server.shown} does not list its models: {trouble.detail.rstrip('.')}.",
                remedy="name the model with --model; the other requests do not need the list."
                + (f" Or {troubles.PLACE}" if failed.status in ABSENT else ""),
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
        return probe, Card(id=asked.model), []
    budget.receive(None, None)
    about: dict[str, Any] = {
        "name": probes.MODELS,
        "proves": proves,
        "seconds": round(max(0.0, budget.seconds - asking.waited), 3),
        "deadline": asked.timeout,
    }
    if not cards and asked.model:
        failed_probe = Probe(**about, status="failed", code="DCA-161", detail="the list is empty", remedy=troubles.LOG)
        return failed_probe, Card(id=asked.model), []
    if not cards:
        raise DcaError(
            "DCA-161",
            f"{server.shown} lists no model.",
            remedy=f"{troubles.LOG} A gateway may list none: name the model with --model.",
        )
    card = _chosen(cards, asked.model, server.hide)
    server.model = card.id
    maximum = f", at most {card.max_model_len:,} tokens" if card.max_model_len else ""
    return Probe(**about, status="passed", detail=f"{server.hide(card.id)}{maximum}"), card, cards


def _chosen(cards: list[Card], name: str, hide: Callable[[str], str]) -> Card:
    several = list(dict.fromkeys(card.id for card in cards))
    near = get_close_matches(name, several, MOST_NAMES) if name else []
    shown = [*near, *(one for one in several if one not in near)][:MOST_NAMES]
    more = f" and {len(several) - len(shown)} more" if len(several) > len(shown) else ""
    names = hide(", ".join(shown)) + more
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
    # Adapters that an engine loads in addition to its model report no length, or name the model.
    own = [card for card in cards if card.parent not in several] or cards
    whole = [card for card in own if card.max_model_len] or own
    # A model that is served under several names has a card for each.
    if len({card.id for card in whole} - set(identity.names_of(whole[0].id, whole))):
        raise DcaError(
            "DCA-201",
            f"the server has {len(several)} models.",
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


def _verdict(result: ServeCheck, gone: str) -> str:
    wrong = [probe for probe in result.probes if probe.code]
    words = []
    if wrong:
        names = ", ".join(probe.name for probe in wrong)
        words.append(f"{len(wrong)} of {len(result.probes)} short requests failed ({names})")
    if gone:
        words.append(f"{gone}, and nothing more was asked")
    # The first failure of each kind: a lost fact and a rejected prompt have different causes.
    troubled = {needle.outcome: needle for needle in reversed(result.needles) if needle.code}
    first = sorted(troubled.values(), key=result.needles.index)
    words += [f"at {needle.length:,} tokens, depth {needle.depth:g} %, {needle.detail.rstrip('.')}" for needle in first]
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
    words += _ruled(result)
    if open_to := [probe.name for probe in result.probes if probe.status == "undecided"]:
        words.append(f"{', '.join(open_to)}: undecided")
    if result.interrupted:
        words.append("the check was interrupted")
    return "; ".join(words) + "."


def _ruled(result: ServeCheck) -> list[str]:
    """What RULER's tasks came to, in words; the first failure of each kind."""
    if result.ruler is None:
        return []
    first: dict[str, RulerScore] = {}
    for one in result.ruler.scores:
        if one.code:
            first.setdefault(one.outcome, one)
    words = [f"{one.place}: {one.detail}" for one in first.values()]
    return words + [f"RULER at {one.length:,} tokens: {one.words}" for one in result.ruler.lengths]


def _not_scored(result: ServeCheck, tasks: ruler.Begun, ended: str) -> tuple[str, ...]:
    """What RULER's tasks leave open, in words."""
    scores = result.ruler.scores if result.ruler else ()
    places = ", ".join(f"{cell.task} at {cell.length:,}" for cell in tasks.cells[len(scores) :])
    remains = [f"RULER's {places} tokens: not asked, because {ended or 'the check was interrupted'}"] if places else []
    skipped: dict[str, list[str]] = {}
    for one in scores:
        if one.outcome == "skipped":
            skipped.setdefault(one.detail, []).append(f"{one.task} at {one.length:,}")
    remains += [f"RULER's {', '.join(named)} tokens: not run, because {why}" for why, named in skipped.items()]
    remains += [f"{one.place}: {one.detail}" for one in scores if one.outcome == "scored" and one.detail]
    if any(one.answered and one.counted is None for one in scores):
        remains.append("RULER: the server reports no token counts, so that it may have truncated prompts")
    return tuple(remains)


def _not_proven(result: ServeCheck, asked: Request, card: Card, doubted: str, gone: str) -> tuple[str, ...]:
    """What the check leaves open, in words.

    Args:
        result: the result.
        asked: what to check.
        card: the server's description of the model.
        doubted: an impossible token count of the server's, in words; empty when there was none.
        gone: why nothing more could be asked; empty if the server answers.
    """
    remains = [
        f"{probe.name}: rejected by the server ({probe.detail})" for probe in result.probes if probe.status == "refused"
    ]
    remains += [f"{probe.name}: undecided ({probe.detail})" for probe in result.probes if probe.status == "undecided"]
    remains += [
        f"{probe.name}: not asked, because {probe.detail}" for probe in result.probes if probe.status == "skipped"
    ]
    remains += [f"{name}: omitted by --skip" for name in asked.skipped]
    if gone and NEEDLES not in asked.skipped:
        remains.append(f"long prompts: not asked, because {gone}")
    if result.no_thinking and result.reasons:
        remains.append("--no-thinking: the model reasons all the same; its chat template has no such switch")
    if missing := len(result.lengths) * len(result.depths) - len(result.needles):
        remains.append(f"{_prompts(missing)}: not asked, because the check was interrupted")
    skipped: dict[str, list[Needle]] = {}
    for needle in result.needles:
        if needle.outcome == "skipped":
            skipped.setdefault(needle.detail, []).append(needle)
    for why, prompts in skipped.items():
        longest = max(needle.length for needle in prompts)
        remains.append(f"{_prompts(len(prompts))}, the longest of {longest:,} tokens: not asked, because {why}")
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
