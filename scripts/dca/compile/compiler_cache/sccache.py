"""sccache, with a server of its own for each build."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import threading
import time
from collections.abc import Mapping

from dca.compile.compiler_cache import builders
from dca.compile.compiler_cache.tool import ANSWER_SECONDS, Counts, Places, Unusable
from dca.foundation import data, environment, runner, store
from dca.foundation.run import Run
from dca.toolchain import environments

START_SECONDS = 10.0
"""How long its server may take to start; it asks its storage meanwhile."""
STOP_SECONDS = 20.0
SOCKET_BYTES = 100
"""Longest path of a socket; Linux allows 107."""

LAUNCH = """\
#!/bin/sh
# Written by dca for one build: through sccache as long as its server can be reached.
[ -S {socket} ] || exec "$@"
[ "$1" != {nvcc} ] || {{ shift; set -- "${{0%/*}}/nvcc" "$@"; }}
exec {program} "$@"
"""
DISTRIBUTED = """\
#!/bin/sh
# Written by dca for one build: through sccache, which sends parts to builders. What fails is compiled here once more
# before it counts, because sccache reports a builder's own failure as one of the compiler.
[ -S {socket} ] || exec "$@"
through() {{
  [ "$1" != {nvcc} ] || {{ shift; set -- "${{0%/*}}/nvcc" "$@"; }}
  {program} "$@"
}}
# A builder gets the files that this names.
export SCCACHE_EXTRAFILES="${{0%/*}}/prefixes.specs"
said={failed}/$$.said
if through "$@" 2> "$said"; then cat "$said" >&2; rm -f "$said"; exit 0; fi
"$@"
status=$?
# Only what compiles here is held against the builder.
if [ $status = 0 ]; then mv "$said" "${{said%.said}}.failed"; else rm -f "$said"; fi
exit $status
"""
NVCC = """\
#!/bin/sh
# sccache runs what nvcc says that it would run, and hashes its arguments. The path of the build folder in them would
# make them different in each cache folder.
case " $* " in *" --dryrun "*) ;; *) exec {nvcc} "$@" ;; esac
said=$({nvcc} "$@" 2>&1)
status=$?
printf '%s\\n' "$said" | ROOT="\\"${{0%/generated/nvcc}}/" awk '
  /^#[$] (cudafe[+][+]|cicc) / {{
    root = ENVIRON["ROOT"]
    while (at = index($0, root)) $0 = substr($0, 1, at) substr($0, at + length(root))
  }}
  {{ print }}' >&2
exit $status
"""


class Sccache:
    """A server of sccache for this run alone, which ends with it."""

    gate: builders.Gate | None = None
    """What distributes; None without a scheduler."""

    def __init__(self, places: Places, variables: Mapping[str, str], stack: contextlib.ExitStack, run: Run) -> None:
        plan = places.job.plan
        self._program = (
            environments.make(data.cache_lock("sccache"), plan.python_path, plan.python, run).parent / "sccache"
        )
        # Not in the cache, whose path may be too long for a socket.
        self._socket = stack.enter_context(store.scratch()) / "sccache"
        if len(os.fsencode(self._socket)) > SOCKET_BYTES:
            raise Unusable(f"the path of the temporary folder is too long for a socket: {self._socket.parent}.")
        # The user's own settings are variables; a file of settings must be named by one.
        settings = variables.get("SCCACHE_CONF", os.devnull)
        failed = places.work / "failed"
        if scheduler := builders.scheduler(settings):
            failed.mkdir(parents=True, exist_ok=True)
            self.gate = builders.Gate(scheduler, failed, stack)
            toolchains = run.cache.folder("compiled", "toolchains")
            settings = str(builders.through(self.gate.url, settings, self._socket.parent, toolchains))
        fixed = {
            "SCCACHE_SERVER_UDS": str(self._socket),
            "SCCACHE_CONF": settings,
            "SCCACHE_DIR": variables.get("SCCACHE_DIR", str(run.cache.folder("compiled", "sccache"))),
        }
        self.env = {**fixed, "SCCACHE_IGNORE_SERVER_IO_ERROR": "1"}
        given = {name: value for name, value in variables.items() if name not in _OF_THE_SERVER}
        server = {
            **given,
            **fixed,
            "SCCACHE_START_SERVER": "1",
            "SCCACHE_NO_DAEMON": "1",
            "SCCACHE_IDLE_TIMEOUT": "0",
            "SCCACHE_BASEDIRS": os.pathsep.join(str(folder) for folder in places.all),
            "TMPDIR": str(places.work),
        }
        if self.gate:
            # The gate is on this machine, whatever proxy leads out of it.
            for name in ("no_proxy", "NO_PROXY"):
                server[name] = ",".join(filter(None, (os.environ.get(name), "127.0.0.1")))
        self._server = stack.enter_context(
            runner.beside(
                [self._program],
                env=environment.of("network", server),
                log=run.log,
                supervision=runner.Supervision(sharing=True, grace=1.0),
            )
        )
        self._wait()
        if self.gate:
            threading.Thread(target=self.gate.watch, daemon=True).start()
        nvcc = shlex.quote(str(places.job.cuda / "bin/nvcc"))
        program, socket = shlex.quote(str(self._program)), shlex.quote(str(self._socket))
        launch = DISTRIBUTED if self.gate else LAUNCH
        self.scripts = {
            "launch": launch.format(nvcc=nvcc, program=program, socket=socket, failed=shlex.quote(str(failed))),
            "nvcc": NVCC.format(nvcc=nvcc),
        }

    def _wait(self) -> None:
        end = time.monotonic() + START_SECONDS
        while self._server.running:
            if self._socket.exists() and self._ask("--show-stats").ok:
                return
            if time.monotonic() > end:
                raise Unusable(f"sccache did not start within {START_SECONDS:.0f} s; its storage does not answer.")
            time.sleep(0.05)
        said = next((line for line in self._server.tail if "error" in line.lower()), "it ended without a word.")
        raise Unusable(f"sccache did not start: {said[:300]}")

    def _ask(self, *arguments: str, timeout: float = ANSWER_SECONDS) -> runner.Completed:
        env = environment.of("compiler", {**self.env, "SCCACHE_NO_DAEMON": "1"})
        return runner.run([self._program, *arguments], env=env, timeout=timeout)

    def alive(self) -> bool:
        """Whether its server runs."""
        return self._server.running

    def counts(self) -> Counts:
        """From the server's statistics; nothing if it has ended."""
        if not self._server.running:
            # Asked now, sccache would start another server.
            return Counts()
        done = self._ask("--show-stats", "--stats-format=json")
        try:
            stats = json.loads(done.text)["stats"]
            hits, misses = (sum(stats[name]["counts"].values()) for name in ("cache_hits", "cache_misses"))
            errors = ("cache_read_errors", "cache_write_errors", "cache_timeouts")
            wrong = sum(stats[name] for name in errors)
            return Counts(hits, misses, wrong, dict(stats["dist_compiles"]), stats["dist_errors"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return Counts()

    def finish(self) -> None:
        """Let the server store what it has."""
        if self._server.running:
            self._ask("--stop-server", timeout=STOP_SECONDS)
        self.end()

    def end(self) -> None:
        """End the server; without a socket the launcher starts compilers without it."""
        self._socket.unlink(missing_ok=True)
        self._server.end()


# What the server of a run has its own values for.
_OF_THE_SERVER = frozenset(
    ("SCCACHE_SERVER_PORT", "SCCACHE_LOG", "SCCACHE_ERROR_LOG", "SCCACHE_STARTUP_NOTIFY", "SCCACHE_SERVER_UDS")
)
