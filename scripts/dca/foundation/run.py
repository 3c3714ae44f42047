"""What every stage of one run shares."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

from dca.foundation.events import Reporter
from dca.foundation.store import Store
from dca.foundation.timeline import Recorder


@dataclass(frozen=True)
class Run:
    """One run of a command, passed from stage to stage.

    Args:
        cache: what is kept from run to run.
        reporter: receives stages and progress.
        log: file that the output of programs is appended to.
        times: records when stages and objects begin and end.
    """

    cache: Store
    reporter: Reporter
    log: Path
    times: Recorder = field(default_factory=Recorder, compare=False)

    def opened(self) -> Run:
        """The same run, its cache created and usable."""
        return dataclasses.replace(self, cache=self.cache.open())
