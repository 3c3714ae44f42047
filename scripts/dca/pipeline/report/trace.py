"""A run's timeline in the Trace Event Format, which Perfetto and Chrome's tracing open.

https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

from typing import Any

from dca.foundation.timeline import Timeline
from dca.pipeline.report.lanes import lanes

Event = dict[str, Any]
RUN, OBJECTS = 1, 2
"""Ids of the two processes: the run's stages, and its compilers."""


def trace(times: Timeline, title: str) -> dict[str, Any]:
    """A timeline as one JSON object; times are in microseconds.

    Args:
        times: the timeline.
        title: of the run.
    """
    events = [_named("process_name", title, RUN), _named("process_name", "compilers", OBJECTS)]
    rows = list(dict.fromkeys(stage.name for stage in times.stages))
    for thread, name in enumerate(rows, 1):
        events.append(_named("thread_name", name, RUN, thread))
    for stage in times.stages:
        ended = times.seconds if stage.ended is None else stage.ended
        events.append(_complete(stage.name, (stage.started, ended), RUN, rows.index(stage.name) + 1))
    for thread, lane in enumerate(lanes(times.objects), 1):
        events.append(_named("thread_name", f"lane {thread}", OBJECTS, thread))
        for one in lane:
            about = {"source": one.source, "module": one.module, "finished": one.finished}
            about |= {f"seconds for {arch}": seconds for arch, seconds in one.archs.items()}
            name = one.source.rsplit("/", 1)[-1]
            events.append(_complete(name, (one.started, one.ended), OBJECTS, thread) | {"args": about})
    for sample in times.memory:
        values = {"in use": sample.used, "this run": sample.own}
        events.append({"name": "memory", "ph": "C", "ts": _micro(sample.at), "pid": RUN, "args": values})
    return {"traceEvents": events, "displayTimeUnit": "ms", "otherData": {"began": times.began}}


def _named(what: str, name: str, process: int, thread: int = 0) -> Event:
    return {"name": what, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _complete(name: str, span: tuple[float, float], process: int, thread: int) -> Event:
    start, end = span
    duration = max(0, _micro(end) - _micro(start))
    return {"name": name, "ph": "X", "ts": _micro(start), "dur": duration, "pid": process, "tid": thread}


def _micro(seconds: float) -> int:
    return round(seconds * 1e6)
