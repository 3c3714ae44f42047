"""RULER, a benchmark of long contexts, run by its harness against the server under check."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dca.foundation import runner
from dca.foundation.events import Reporter
from dca.serve.check import needles
from dca.serve.check.answers import Card
from dca.serve.check.probes import Asking
from dca.serve.check.ruler import scoring
from dca.serve.check.ruler.asked import Asked
from dca.serve.check.ruler.harness import Cell, Harness, Outcome, Wanted, Watch
from dca.serve.check.values import Cost, Ruler, RulerScore

__all__ = ["Asked", "Begun", "Harness"]


@dataclass
class Begun:
    """RULER's tasks for one server.

    Args:
        asked: what is asked.
        harness: the environment that runs them.
        card: the server's description of the model.
        tokenizer: folder of the model's tokenizer.
        timeout: seconds for a request; None for a time-out that grows with its length.
        known: scores of an interrupted check of the same server, with the same settings.
        scores: so far.
        templated: whether the chat template is applied; None before the first answer.
    """

    asked: Asked
    harness: Harness
    card: Card
    tokenizer: Path
    timeout: float | None = None
    known: tuple[RulerScore, ...] = ()
    scores: list[RulerScore] = field(default_factory=list)
    templated: bool | None = None

    @property
    def cells(self) -> list[Cell]:
        """The tasks at their lengths, the shortest first."""
        cells = []
        for length in self.asked.lengths:
            for name in self.asked.tasks:
                tokens = self.asked.known.task(name).answer_tokens
                timeout = self.timeout or needles.Range((), (), None, 0).deadline(length, tokens)
                cells.append(Cell(name, length, timeout, tokens))
        return cells

    def take_over(self, old: Ruler | None) -> None:
        """Take the scores of an interrupted check, if they were made in the same way."""
        new = self.result(interrupted=False)
        if old is not None and all(
            getattr(old, name) == getattr(new, name) for name in ("harness", "api", "tokenizer", "samples")
        ):
            places = {(cell.task, cell.length) for cell in self.cells}
            self.known = tuple(one for one in old.scores if one.score is not None and (one.task, one.length) in places)
            self.templated = old.templated

    def result(self, *, interrupted: bool) -> Ruler:
        """The result so far.

        Args:
            interrupted: whether the earlier scores that were not taken up yet are kept as well.
        """
        later = tuple(one for one in self.known if one not in self.scores) if interrupted else ()
        scores = (*self.scores, *later)
        published = self.asked.known.results(self.card.root or "", self.card.id, self.asked.tokenizer)
        return Ruler(
            harness=self.asked.known.harness,
            api=self.asked.api,
            templated=self.templated,
            tokenizer=str(self.tokenizer),
            samples=self.asked.samples,
            scores=scores,
            lengths=scoring.averages(scores, self.asked, published),
            source=self.asked.known.published.source if published else "",
        )


def run(asking: Asking, begun: Begun, reporter: Reporter, keep: Callable[[], None]) -> None:
    """Run the tasks, from the shortest length to the longest; `begun` receives their scores.

    Args:
        asking: the server and the budget.
        begun: the tasks.
        reporter: reports each answer.
        keep: called after each score.
    """
    _Running(asking, begun, reporter, keep).run()


@dataclass
class _Running:
    """A run of the tasks.

    Args:
        asking: the server and the budget.
        begun: the tasks.
        reporter: reports each answer.
        keep: called after each score.
        why: why nothing more is sent; empty if something is.
    """

    asking: Asking
    begun: Begun
    reporter: Reporter
    keep: Callable[[], None]
    why: str = ""

    def run(self) -> None:
        """Run all of them."""
        cells = self._open()
        while cells and not self.why:
            before = len(self.begun.scores)
            done = self._send(cells)
            ended = len(self.begun.scores) - before
            cells = cells[ended:]
            if cells and not self.why:
                cells = self._broken(cells, done, ended)
        self._skip(cells, self.why)

    def _open(self) -> list[Cell]:
        """The tasks to send; those that need not be sent, or must not, have their result then."""
        samples, budget = self.begun.asked.samples, self.asking.budget
        known = {(one.task, one.length): one for one in self.begun.known}
        longest = self.begun.card.max_model_len
        cells, prompts, answers = [], 0, 0
        for cell in self.begun.cells:
            prompt, answer = prompts + samples * cell.length, answers + samples * cell.answer_tokens
            if (one := known.get((cell.task, cell.length))) is not None:
                self._add(one)
            elif longest and cell.length > longest:
                self._skip([cell], f"the server takes {longest:,} tokens")
            elif why := budget.forbids(prompt, answer):
                self._skip([cell], why)
            else:
                prompts, answers = prompt, answer
                cells.append(cell)
        return cells

    def _send(self, cells: list[Cell]) -> runner.Completed:
        asked, budget = self.begun.asked, self.asking.budget
        total = asked.samples * len(cells)
        done = 0

        def answered(cell: Cell, count: int) -> None:
            text = f"{cell.task} at {cell.length:,} tokens: {count} of {asked.samples}"
            self.reporter.progress(done + count, total, text)

        def ended(cell: Cell, outcome: Outcome) -> None:
            nonlocal done
            done += asked.samples
            self._ended(cell, outcome)

        left = None if budget.limit.seconds is None else max(0.05, budget.limit.seconds - budget.seconds)
        wanted = Wanted(
            tokenizer=self.begun.tokenizer,
            samples=asked.samples,
            api=asked.api,
            max_model_len=self.begun.card.max_model_len,
            data=asked.data,
            known=asked.known,
        )
        return self.begun.harness.run(cells, wanted, self.asking.server, Watch(answered, ended, left))

    def _ended(self, cell: Cell, outcome: Outcome) -> None:
        """Take what came of a task."""
        answers, sent = outcome.answers, len(outcome.answers)
        failed = outcome.failure
        # A request without an answer counts with its most, like others.
        lost = int(failed is not None and failed.kind not in ("unmade", "too long", "miscounted"))
        self.asking.budget.take_over(
            Cost(
                requests=sent + lost,
                prompt_tokens=sum(one.tokens if one.counted is None else one.counted for one in answers)
                + lost * cell.length,
                answer_tokens=sum(cell.answer_tokens if one.generated is None else one.generated for one in answers),
                seconds=round(outcome.seconds, 3),
            )
        )
        if sent:
            self.begun.templated = outcome.templated
        score = scoring.score_of(cell, outcome, self.begun.asked, self.asking.server)
        if failed is not None and failed.kind in scoring.ENDS:
            self.why = f"{score.task} at {score.length:,} tokens was not answered"
        self._add(score)

    def _broken(self, cells: list[Cell], done: runner.Completed, ended: int) -> list[Cell]:
        """The tasks that are left when the harness ended before them."""
        budget = self.asking.budget
        if done.timed_out:
            budget.take_over(Cost(seconds=done.seconds))
            self.why = f"--max-cost {budget.limit.words} ended it"
        elif not done.ok or not ended:
            cell, *cells = cells
            words = self.asking.server.hide(" ".join(done.tail[-1:])) or f"status {done.returncode}"
            self._add(
                RulerScore(
                    task=cell.task,
                    length=cell.length,
                    samples=self.begun.asked.samples,
                    outcome="failed",
                    code=scoring.UNMADE,
                    detail=f"the harness ended: {words}",
                    remedy=f"see {self.begun.harness.log}; if the tokenizer is named there, check --ruler-tokenizer.",
                )
            )
            self.why = "the harness ended"
        return cells

    def _skip(self, cells: Sequence[Cell], why: str) -> None:
        samples = self.begun.asked.samples
        for cell in cells:
            self._add(RulerScore(task=cell.task, length=cell.length, samples=samples, outcome="skipped", detail=why))

    def _add(self, score: RulerScore) -> None:
        self.begun.scores.append(score)
        self.keep()
