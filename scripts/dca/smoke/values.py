"""The findings of a smoke test: the document and its parts."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from dca.foundation.documents import Document, Value

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
KNOWN = "known fault"
"""The figure of a passed case that names a fault which harms no result of dual chunk attention."""


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
    def untested(self) -> tuple[CaseResult, ...]:
        """The cases that could not be tested."""
        return tuple(case for case in self.cases if not case.tested)
