"""Decides which of the lines that a search has found is the cause, and what the program overcame."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from dca.catalogue.failures import UNKNOWN, Failure, Known
from dca.catalogue.failures import Line as Numbered
from dca.catalogue.logs import times
from dca.catalogue.logs.grades import aborted, grade_of
from dca.catalogue.logs.lines import PLAIN, WARNING, shown
from dca.catalogue.logs.search import Event, Kept, Scan

Outcome = Literal["failed", "well", "unclear", "unreadable"]

SUSPICIOUS = 6
"""Other lines that look like an error to report with an unknown failure, from each end of the log."""
NEAR = 60
"""Lines before an unknown failure in which a line that is no error by itself can be its cause."""
QUIET = 200
"""Quiet lines after an error from which on its program has gone on; with fewer, the log may have been cut."""
BELOW = 6
"""Lines below a line of source in which the exception of its traceback stands."""
SERIOUS = 4


@dataclass
class Verdict:
    """What is true of a log.

    Args:
        outcome: how the run ended.
        found: causes with the most likely one first, then consequences, then warnings.
        overcome: failures after which the program went on.
        suspicious: other lines that look like an error, if the first finding is unknown.
        ended: the line that says that it ended well.
    """

    outcome: Outcome
    found: tuple[Known, ...] = ()
    overcome: tuple[Known, ...] = ()
    suspicious: tuple[Numbered, ...] = ()
    ended: Numbered | None = None


@dataclass
class _Candidate:
    """A known failure in the log.

    Args:
        event: the occurrence to report.
        count: how many there are.
        serious: how serious its line is.
    """

    event: Event
    count: int
    serious: int
    because: str = ""

    @property
    def failure(self) -> Failure | None:
        return self.event.failure

    @property
    def line(self) -> int:
        return self.event.line.number


def _seriousness(event: Event) -> int:
    """How much a line's own words say that it is a failure."""
    if event.line.level < PLAIN:
        return event.line.level
    return SERIOUS if event.role == "code" or grade_of(event.line) is not None else PLAIN


@dataclass
class Judge:
    """Judges the findings of one search.

    Args:
        scan: the findings.
        readable: whether the log is text, so that what is not found in it is not there.
    """

    scan: Scan
    readable: bool = True
    _errors: list[Event] = field(default_factory=list)
    _consequences: list[Event] = field(default_factory=list)
    _timed: bool = False

    def verdict(self) -> Verdict:
        """What is true of the log."""
        self._timed = self._has_times()
        for kept in self.scan.errors.values():
            for event in kept.events:
                # Any words occur by chance in what is no text.
                if self._went_on(event) is None and (self.readable or event.grade != "soft" or event.role != "error"):
                    (self._errors if event.role == "error" else self._consequences).append(event)
        causes, consequences, warnings, overcome = self._known()
        caught = self._all_caught(causes)
        self._errors = [event for event in self._errors if id(event) not in caught]
        overcome += [one for one in causes if id(one.event) in caught]
        causes = [one for one in causes if id(one.event) not in caught]
        unknown = self._unknown()
        failing = bool(unknown or self._consequences or any(one.serious >= PLAIN for one in causes))
        causes = [one for one in causes if failing or one.serious >= WARNING]
        ranked = self._ranked(causes, unknown)
        found = [
            *ranked,
            *self._following(consequences, ranked),
            *(self._report(one, "it need not stop anything") for one in warnings),
        ]
        failed = any(known.kind != "warning" for known in found)
        ended = None if failed else self._ended()
        return Verdict(
            "failed" if failed else "well" if ended else "unclear",
            tuple(found),
            tuple(self._report(one, one.because) for one in sorted(overcome, key=lambda one: one.line)),
            self._suspicious(ranked),
            ended,
        )

    # --- what happened first ---------------------------------------------------------------------------------

    def _has_times(self) -> bool:
        """Whether the log is one of several containers or jobs, which says of each failure when it was written.

        Such a log often has one container or job after the other, though they ran at the same time.
        """
        kept = (*self.scan.failures.values(), *self.scan.errors.values())
        written = [event.line for some in kept for event in some.events]
        return len({line.group for line in written}) > 1 and all(line.stamp for line in written)

    def _when(self, event: Event) -> tuple[float, int]:
        """What failures are ordered by: the time where it is known, then the line."""
        seconds = times.seconds(event.line.stamp, 0) if self._timed else None
        return seconds or 0.0, event.line.number

    # --- what the program overcame ---------------------------------------------------------------------------

    def _went_on(self, event: Event) -> str | None:
        """How the log shows that the program went on after a failure; None if it does not."""
        line = event.line
        for (role, owner, _), mark in self.scan.marks.items():
            if role in ("done", "up") and mark.line.number >= line.number and _together(mark, event):
                return f"the run went on: line {mark.line.number:,} says “{shown(mark.line.body.strip())[:60]}”"
            if (
                role == "later"
                and event.failure
                and owner in event.failure.not_followed_by
                and mark.line.number > line.number
            ):
                return f"line {mark.line.number:,} shows that it was repeated: “{shown(mark.line.body.strip())[:60]}”"
        up = min(self.scan.first.values(), default=0) or self.scan.serving
        if 0 < up < line.number < self.scan.served and not self._died_after(line.number):
            return "the server answered requests afterwards"
        return None

    def _died_after(self, number: int) -> bool:
        """Whether the process that does the work ended after a line, or just before it."""
        return any(
            event.role == "death" and event.line.number > number - 2 * NEAR
            for kept in self.scan.errors.values()
            for event in kept.events
        )

    def _all_caught(self, causes: list[_Candidate]) -> set[int]:
        """Identities of the events that a program only printed; the last ones first, as nothing may fail after one."""
        known = [one.event for one in causes if one.serious >= WARNING]
        last, caught = 0, set()
        for event in sorted([*self._errors, *self._consequences, *known], key=lambda event: -event.line.number):
            if event.line.number >= last and event.role != "consequence" and self._caught(event):
                caught.add(id(event))
            elif event.line.level >= PLAIN:
                last = max(last, event.line.number)
        return caught

    def _caught(self, event: Event) -> bool:
        """Whether a program printed an error and went on, if nothing fails after it."""
        grade = event.grade if event.role == "error" else grade_of(event.line)
        # In what is no text, lines follow by chance.
        if grade == "hard" or event.role in ("death", "code") or not self.readable:
            return False
        if event.onward:
            return True
        if event.traced or event.line.level > PLAIN:
            return False
        return self.scan.lines - event.line.number >= QUIET

    def _ended(self) -> Numbered | None:
        """The last line that says that the run ended well, or that a server serves."""
        marks = [mark for (role, _, _), mark in self.scan.marks.items() if role in ("done", "up")]
        last = max(marks, key=lambda mark: mark.line.number, default=None)
        return Numbered(line=last.line.number, text=shown(last.line.text)) if last else None

    # --- known failures --------------------------------------------------------------------------------------

    def _known(self) -> tuple[list[_Candidate], list[_Candidate], list[_Candidate], list[_Candidate]]:
        """Causes, consequences and warnings in the log, and what was overcome."""
        events = self._fitting()
        lines = {event.line.number for some in events.values() for event in some}
        self._errors = [event for event in self._errors if event.line.number not in lines]
        causes: list[_Candidate] = []
        consequences: list[_Candidate] = []
        warnings: list[_Candidate] = []
        overcome: list[_Candidate] = []
        for name, occurrences in events.items():
            alive = [event for event in occurrences if self._went_on(event) is None]
            kind = occurrences[0].failure.kind if occurrences[0].failure else "cause"
            one = self._candidate(name, alive or occurrences)
            if kind == "harmless":
                continue
            if not alive:
                one.because = self._went_on(one.event) or ""
                overcome.append(one)
            else:
                {"cause": causes, "consequence": consequences, "warning": warnings}[kind].append(one)
        serious = {one.event.line.process for one in causes if one.serious == SERIOUS}
        for one in causes:
            if one.serious == PLAIN and one.event.line.process not in serious and self._ended_after(one.event):
                one.serious = SERIOUS
        for some in (causes, consequences, warnings):
            some.sort(key=lambda one: (one.event.role == "code", one.serious < SERIOUS, self._when(one.event)))
        return causes, consequences, warnings, overcome

    def _ended_after(self, event: Event) -> bool:
        """Whether the process of an event, if it is named, reports later that something failed."""
        process = event.line.process
        kept = self.scan.errors.get(process, Kept()) if process else Kept()
        return any(error.role != "error" and error.line.number > event.line.number for error in kept.events)

    def _fitting(self) -> dict[str, list[Event]]:
        """Occurrences whose entries hold for the log's tools and versions; of several in a line, the most special."""
        marks = {owner: mark for (role, owner, _), mark in self.scan.marks.items() if role == "later"}
        special: dict[int, tuple[int, int]] = {}
        fitting: dict[str, list[tuple[tuple[int, int], Event]]] = {}
        for name, kept in self.scan.failures.items():
            for event in kept.events:
                how = event.special
                if event.failure is None and self.scan.catalogue.of(name) is None:
                    continue
                if event.failure is not None:
                    holds = event.failure.holds(self.scan.versions, self.scan.tools)
                    later = [mark for text in event.failure.followed_by if (mark := marks.get(text))]
                    if holds is None or (
                        event.failure.followed_by and not any(mark.line.number > event.line.number for mark in later)
                    ):
                        continue
                    how = how[0] + holds, how[1]
                    special[event.line.number] = max(special.get(event.line.number, how), how)
                fitting.setdefault(name, []).append((how, event))
        best = {
            name: [event for how, event in events if event.failure is None or how == special[event.line.number]]
            for name, events in fitting.items()
        }
        return {name: events for name, events in best.items() if events}

    def _candidate(self, name: str, alive: list[Event]) -> _Candidate:
        """The occurrence to report: the first that says it is an error; of an exception, the last of its process."""
        serious = [event for event in alive if _seriousness(event) == SERIOUS]
        event = min(serious or alive, key=self._when)
        if serious and grade_of(event.line) == "exception":
            event = next(
                other
                for other in reversed(serious)
                if other.line.process == event.line.process and other.line.body.strip() == event.line.body.strip()
            )
        return _Candidate(event, self.scan.failures[name].count, self._serious(event))

    def _serious(self, event: Event) -> int:
        """How serious a line is: a line of source in a traceback is as serious as the exception below it."""
        below = (
            error.line.number - event.line.number
            for error in self.scan.errors.get(event.line.process, Kept()).events
            if error.role == "error" and error.grade != "soft"
        )
        serious = _seriousness(event)
        return SERIOUS if serious == PLAIN and any(0 <= distance <= BELOW for distance in below) else serious

    # --- unknown failures ------------------------------------------------------------------------------------

    def _unknown(self) -> Event | None:
        """The root of the failure of the process that failed first, among lines that no entry knows."""
        roots = [root for process in {event.line.process for event in self._errors} if (root := self._root(process))]
        certain = [root for root in roots if root.grade != "soft"]
        return min(certain or roots, key=self._when, default=None)

    def _root(self, process: str) -> Event | None:
        """The line that a process failed with: its first hard error, or else its last exception."""
        mine = [event for event in self._errors if event.line.process == process]
        if hard := next((event for event in mine if event.grade == "hard"), None):
            said = [event for event in mine if 0 < hard.line.number - event.line.number <= NEAR]
            return said[0] if said and aborted(hard.line) else hard
        exceptions = [event for event in mine if event.grade == "exception"]
        if not exceptions:
            return mine[0] if mine else None
        place = len(exceptions) - 1
        # The cause of an exception that was raised from another one is the other one.
        while place > 0 and exceptions[place].link == "caused":
            place -= 1
        return exceptions[place]

    # --- the answer ------------------------------------------------------------------------------------------

    def _ranked(self, causes: list[_Candidate], unknown: Event | None) -> list[Known]:
        """Causes in their order, each with the reason of its rank."""
        names = {one.event.owner for one in causes}
        follows = {
            one.event.owner: by
            for one in causes
            if one.failure and (by := next((name for name in one.failure.consequence_of if name in names), None))
        }
        roots = [one for one in causes if one.event.owner not in follows]
        first = roots[0] if roots else None
        found = [self._report(one, self._why(one, first)) for one in roots]
        found += [
            self._report(one, f"it follows from {follows[one.event.owner]}")
            for one in causes
            if one.event.owner in follows
        ]
        if unknown is not None and (first is None or self._before(unknown, first)):
            found.insert(0, self._unknown_as(unknown))
        return found

    def _before(self, unknown: Event, first: _Candidate) -> bool:
        """Whether an unknown failure is the cause rather than the first known one."""
        if first.event.role == "code":
            return False
        line = unknown.line
        if self._when(unknown) < self._when(first.event) and unknown.grade == "exception" and unknown.traced:
            other = line.process != first.event.line.process
            if other and line.process and first.serious == SERIOUS:
                return True
        if (
            unknown.grade == "hard"
            and line.number < first.line - NEAR
            and self._when(unknown) < self._when(first.event)
        ):
            return True
        strong = unknown.grade == "hard" or unknown.traced
        return strong and first.serious < SERIOUS and not line.number - NEAR <= first.line

    def _why(self, one: _Candidate, first: _Candidate | None) -> str:
        if one is first or first is None:
            where = _of(one.event.line.process)
            return f"the first failure{where} that no later line shows to be overcome"
        if one.serious < first.serious:
            return "its line is no error by itself"
        return (
            "a later failure"
            if one.event.line.process == first.event.line.process
            else "a later failure of another process"
        )

    def _following(self, consequences: list[_Candidate], ranked: list[Known]) -> list[Known]:
        reason = "it follows from what is above" if ranked else "a consequence; its cause is not in this log"
        found = [self._report(one, reason) for one in consequences]
        if not ranked and not found and self._consequences:
            found = [self._unknown_as(min(self._consequences, key=self._when))]
        return found

    def _report(self, one: _Candidate, reason: str) -> Known:
        event = one.event
        seen = {"line": event.line.number, "text": shown(event.line.text).strip(), "count": one.count, "reason": reason}
        seen |= {"around": _around(event), "time": event.around.time}
        known = self.scan.catalogue.of(event.owner) if event.failure is None else None
        if known is not None:
            return known.model_copy(update=seen)
        assert event.failure is not None  # noqa: S101 - codes are known, see _fitting
        title, cause, remedy = event.failure.answer(self.scan.versions, self.scan.tools, event.number)
        named = event.failure.model_dump(include={"id", "kind", "when", "source"})
        return Known.model_validate(named | seen | {"title": title, "cause": cause, "remedy": remedy})

    def _unknown_as(self, event: Event) -> Known:
        where = _of(event.line.process)
        kind = {
            "hard": f"the first error{where}",
            "exception": f"the last exception{where}",
            "soft": f"the first line{where} that looks like an error",
        }
        return Known(
            id=UNKNOWN,
            title="a failure that the catalogue does not have",
            cause="",
            remedy="Read this line and those above it first; what follows may only be its consequence.",
            line=event.line.number,
            text=shown(event.line.text).strip(),
            count=1,
            around=_around(event),
            time=event.around.time,
            reason=kind[event.grade],
        )

    def _suspicious(self, ranked: list[Known]) -> tuple[Numbered, ...]:
        """Other lines that look like an error, if the first finding is unknown."""
        if not ranked or ranked[0].id != UNKNOWN:
            return ()
        events = sorted(self._errors, key=lambda event: event.line.number)
        lines = {
            event.line.number: Numbered(line=event.line.number, text=shown(event.line.text).strip()) for event in events
        }
        lines.pop(ranked[0].line, None)
        rest = list(lines.values())
        return tuple(rest if len(rest) <= 2 * SUSPICIOUS else [*rest[:SUSPICIOUS], *rest[-SUSPICIOUS:]])


def _around(event: Event) -> tuple[Numbered, ...]:
    return tuple(
        Numbered(line=number, text=shown(text.decode("utf-8", "replace"))) for number, text in event.around.lines
    )


def _of(process: str) -> str:
    """The process of a line in words, such as " of process 511 of vllm-1"; empty without one."""
    group, _, pid = process.rpartition("/")
    if not pid.isdigit():
        return f" of {process.strip('/')}" if process else ""
    return f" of process {pid}{group and f' of {group}'}"


def _together(mark: Event, event: Event) -> bool:
    """Whether a line that says that all went well is about what an event is about: the same container or step."""
    return mark.line.group == event.line.group or not mark.line.group or not event.line.group


def known_only(found: Iterable[Known]) -> tuple[Known, ...]:
    """Findings that the catalogue knows."""
    return tuple(known for known in found if known.id != UNKNOWN)
