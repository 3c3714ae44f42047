"""The findings of a smoke test: the document and its parts."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Literal

from pydantic import Field

from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError

Level = Literal["static", "engine", "cpu", "kernels", "gpu"]
LEVELS: tuple[Level, ...] = ("static", "engine", "cpu", "kernels", "gpu")
"""From the one that proves least of what the wheel computes to the one that proves most."""
INCLUDED: dict[Level, tuple[Level, ...]] = {
    "static": (),
    "cpu": ("static",),
    "kernels": ("static", "cpu"),
    # It shows whether an engine that may be served wrong is; what each part computes is for the others.
    "engine": ("static",),
    # A GPU runs the cases of `kernels` itself, but does not report races or reads of memory that nothing wrote.
    "gpu": ("static", "cpu"),
}
"""The levels whose cases also run at a level."""
MOST_SHOWN = 5
"""How many cases a message names."""
KNOWN = "known fault"
"""The figure of a passed case that names a fault which harms no result of dual chunk attention."""


def folder_of(node: str) -> str:
    """The folder, within that of a wheel's reports, of those of one kind of machine.

    Args:
        node: the kind, such as gpu:h100.
    """
    return f"node-{re.sub(r'[^a-z0-9]+', '-', node.lower())}"


class CaseResult(Value):
    """One case.

    Args:
        level: of the case.
        name: for `--case`.
        overlay: the folder that it was run with, if any.
        proves: what is proven when it passes.
        passed: whether it passed.
        tested: whether it could be tested; a case that could not has not passed, and says nothing about the wheel.
        detail: what is wrong, or why it could not be tested, in a sentence; empty when it passed.
        figures: counts and measurements, by name.
        seed: of its random numbers; None when it has none.
        seconds: how long it ran.
        repeat: the command that runs only this case.
    """

    level: Level
    name: str
    overlay: str = ""
    proves: str
    passed: bool
    tested: bool = True
    detail: str = ""
    figures: dict[str, Any] = {}
    seed: int | None = None
    seconds: float = 0.0
    repeat: str = ""

    @property
    def place(self) -> str:
        """Its name, with the folder that it was run with."""
        return f"{self.name} with {self.overlay}" if self.overlay else self.name


class ProvenSource(Value):
    """A source file that was run.

    Args:
        path: in the source tree or in the wheel.
        sha256: of the file that was run.
        origin: where it came from, and what connects it with the wheel.
    """

    path: str
    sha256: str
    origin: str


class Smoke(Document):
    """What a smoke test proved about a wheel, and what it did not.

    Args:
        wheel: name of the file.
        version: of the wheel.
        recipe: that it was checked against.
        level: the highest that was run.
        python: version of Python; empty for `static`.
        torch: version of torch; empty for `static`.
        device: the GPU, which may be emulated; empty without one.
        node: the kind of machine that it was run for, such as gpu:h100; empty, and not written, if none was named.
        sources: the files that were run, with their hashes.
        partial: whether only some of the cases were run, or could be tested.
        not_proven: what was not proven, in words.
        left_out: what the wheel lacks by design, in words; such a wheel is not one to serve with.
        stood_in: what something else took the place of, at the level `engine`.
        sha256: SHA-256 of the wheel.
        seed: seed of the random numbers.
        cases: the cases that were run.
        seconds: how long the run took.
    """

    SCHEMA: ClassVar[str] = "dca.smoke/1"

    wheel: str
    sha256: str
    version: str
    recipe: str
    level: Level
    python: str = ""
    torch: str = ""
    device: str = ""
    node: str = Field(default="", exclude_if=lambda node: not node)
    seed: int
    sources: tuple[ProvenSource, ...] = ()
    cases: tuple[CaseResult, ...]
    partial: bool = False
    not_proven: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    stood_in: tuple[str, ...] = ()
    seconds: float = 0.0

    @property
    def tables(self) -> tuple[tuple[Level, str, tuple[CaseResult, ...]], ...]:
        """The cases by level and overlay, in running order."""
        order = dict.fromkeys((case.level, case.overlay) for case in self.cases)
        return tuple(
            (level, overlay, tuple(case for case in self.cases if (case.level, case.overlay) == (level, overlay)))
            for level, overlay in order
        )

    @property
    def passed(self) -> bool:
        """Whether every case passed."""
        return all(case.passed for case in self.cases)

    @property
    def failed(self) -> tuple[CaseResult, ...]:
        """The cases that found something wrong with the wheel."""
        return tuple(case for case in self.cases if case.tested and not case.passed)

    @property
    def error(self) -> DcaError | None:
        """What is wrong, for a command to end with: DCA-801 or DCA-834; None when every case passed."""
        if failed := self.failed:
            return DcaError(
                "DCA-801",
                f"{self.wheel} computes wrong results: {len(failed)} of {len(self.cases)} cases failed.",
                why=_reasons(failed),
                remedy=f"do not serve it. Repeat one case: {failed[0].repeat}",
            )
        if untested := self.untested:
            return DcaError(
                "DCA-834",
                f"{len(untested)} of {len(self.cases)} cases of {self.wheel} could not be tested; the others passed.",
                why=_reasons(untested),
                remedy="provide what is missing, where that is possible; nothing was found wrong with the wheel. "
                f"Repeat one case: {untested[0].repeat}",
            )
        return None

    @property
    def untested(self) -> tuple[CaseResult, ...]:
        """The cases that could not be tested."""
        return tuple(case for case in self.cases if not case.tested)


def _reasons(cases: tuple[CaseResult, ...]) -> str:
    rest = len(cases) - MOST_SHOWN
    lines = [f"{case.place}: {case.detail}" for case in cases[:MOST_SHOWN]]
    return "\n".join([*lines, *([f"and {rest} more."] if rest > 0 else [])])
