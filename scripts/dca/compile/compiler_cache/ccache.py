"""ccache, which has no server."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping

from dca.catalogue.plan import PlannedCache
from dca.compile.compiler_cache.tool import Counts, Places
from dca.foundation.run import Run


class Ccache:
    """ccache, which has no server."""

    gate = None

    def __init__(self, planned: PlannedCache, places: Places, variables: Mapping[str, str], run: Run) -> None:
        self.scripts = {"launch": f'#!/bin/sh\nexec {shlex.quote(planned.path)} "$@"\n'}
        self._log = places.work / "ccache.log"
        self.env = {
            "CCACHE_DIR": str(run.cache.folder("compiled", "ccache")),
            "CCACHE_CONFIGPATH": os.devnull,
            **variables,
            # Without the compiler's output for the key: of a source for several archs nvcc preprocesses one, so that a
            # change of what only the others compile would be a hit.
            "CCACHE_DEPEND": "1",
            "CCACHE_BASEDIR": str(run.cache.root),
            "CCACHE_NOHASHDIR": "1",
            "CCACHE_COMPILERCHECK": "content",
            "CCACHE_STATSLOG": str(self._log),
        }

    def alive(self) -> bool:
        """Nothing runs that could end."""
        return True

    def counts(self) -> Counts:
        """From the log of what each call counted."""
        words = self._log.read_text().split() if self._log.is_file() else []
        hits = sum(word in ("direct_cache_hit", "preprocessed_cache_hit") for word in words)
        errors = sum(word in ("internal_error", "remote_storage_error", "remote_storage_timeout") for word in words)
        return Counts(hits, words.count("cache_miss"), errors)

    def finish(self) -> None:
        """Nothing runs."""

    def end(self) -> None:
        """Nothing runs."""
