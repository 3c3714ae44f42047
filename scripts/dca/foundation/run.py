"""What every stage of one run shares."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from dca.foundation.events import Reporter
from dca.foundation.store import Store


@dataclass(frozen=True)
class Run:
    """One run of a command, passed from stage to stage.

    Args:
        cache: what is kept from run to run.
        reporter: receives stages and progress.
        log: file that the output of programs is appended to.
    """

    cache: Store
    reporter: Reporter
    log: Path

    def opened(self) -> Run:
        """The same run, its cache created and usable."""
        return dataclasses.replace(self, cache=self.cache.open())
