"""A run's report as one HTML page, which needs no network and no JavaScript."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dca.config.plot import filled
from dca.foundation.documents import Value
from dca.foundation.timeline import MemoryUse, Timeline
from dca.pipeline.report import Report
from dca.pipeline.report.lanes import lanes

TEMPLATE = Path(__file__).with_name("page.html")
SLOWEST = 12
GIB = 2**30
# Ticks of the time axis, in seconds.
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
TICKS = 10
# Narrower bars have no text: per cent of the chart.
LABELLED = 6.0
TIME_LABELLED = 14.0
# A bar that ends further to the right has its note on the left.
NOTE_ENDS = 80.0
# The colours of modules are in the template.
COLOURS = 6
# Of the memory chart.
HEIGHT = 100.0


class Bar(Value):
    """A bar of the timeline.

    Args:
        left: its start, in per cent of the chart's width.
        width: likewise.
        kind: its CSS class.
        label: text in it; empty where it is too narrow.
        about: tooltip.
    """

    left: float
    width: float
    kind: str
    label: str
    about: str


class Row(Value):
    """A row of the timeline.

    Args:
        name: its name.
        bars: its bars.
        note: text beside a bar that is too narrow for it.
        before: whether the note is on the left of the bars, because there is no room on the right.
    """

    name: str
    bars: tuple[Bar, ...]
    note: str = ""
    before: bool = False

    @property
    def end(self) -> float:
        """The right end of the bars, in per cent of the chart's width."""
        return max(bar.left + bar.width for bar in self.bars)


class Tick(Value):
    """A line of an axis.

    Args:
        at: per cent of the chart.
        text: its label.
    """

    at: float
    text: str


class Memory(Value):
    """The chart of memory, in per cent of its width and height.

    Args:
        used: points of the area of memory in use.
        own: points of the line of this run's processes.
        ticks: lines of the axis, from the top down.
        limit: GiB that the run may use.
        peak: GiB that were in use at most.
        own_peak: GiB of the run's processes at most.
    """

    used: str
    own: str
    ticks: tuple[Tick, ...]
    limit: float
    peak: float
    own_peak: float


def render(report: Report) -> str:
    """The page."""
    times = report.timeline
    modules = list(dict.fromkeys(one.module for one in times.objects)) if times else []
    kinds = {module: f"module{number % COLOURS}" for number, module in enumerate(modules)}
    return filled(
        TEMPLATE,
        report=report,
        plan=report.plan,
        times=times,
        stages=_stages(times) if times else (),
        lanes=_lanes(times, kinds) if times else (),
        ticks=_ticks(times.seconds) if times else (),
        kinds=kinds,
        memory=_memory(times) if times and times.memory else None,
        slowest=report.objects[:SLOWEST],
        rest=report.objects[SLOWEST:],
        compile_seconds=sum(one.seconds for one in report.compiled),
        duration=duration,
        short=short,
        percent=lambda share: f"{100 * share:.0f} %" if share == 0 or share >= 0.01 else "< 1 %",
    )


def _stages(times: Timeline) -> tuple[Row, ...]:
    """A row for each name, in the order in which they began."""
    rows = []
    for name in dict.fromkeys(stage.name for stage in times.stages):
        bars, total = [], 0.0
        for stage in times.stages:
            if stage.name == name:
                ended = times.seconds if stage.ended is None else stage.ended
                total += ended - stage.started
                spent = duration(ended - stage.started)
                about = f"{name}: {spent}, from {duration(stage.started)} to {duration(ended)}"
                bar = _bar((stage.started, ended), times, "stage", spent, about)
                bars.append(bar if bar.width >= TIME_LABELLED else bar.model_copy(update={"label": ""}))
        row = Row(name=name, bars=tuple(bars), note="" if any(bar.label for bar in bars) else duration(total))
        rows.append(row.model_copy(update={"before": row.end > NOTE_ENDS}))
    return tuple(rows)


def _lanes(times: Timeline, kinds: dict[str, str]) -> tuple[Row, ...]:
    rows = []
    for number, lane in enumerate(lanes(times.objects), 1):
        bars = []
        for one in lane:
            kind = kinds[one.module] + ("" if one.finished else " stopped")
            about = f"{one.source}: {duration(one.seconds)}, from {duration(one.started)} to {duration(one.ended)}"
            about += "" if one.finished else "; not finished"
            bars.append(_bar((one.started, one.ended), times, kind, short(one.source), about))
        rows.append(Row(name=f"lane {number}", bars=tuple(bars)))
    return tuple(rows)


def _bar(span: tuple[float, float], times: Timeline, kind: str, label: str, about: str) -> Bar:
    start, end = (_share(moment, times.seconds) for moment in span)
    width = round(max(0.0, end - start), 3)
    return Bar(left=start, width=width, kind=kind, label=label if width >= LABELLED else "", about=about)


def _share(part: float, whole: float) -> float:
    """Per cent."""
    return round(min(100.0, 100 * part / whole), 3) if whole else 0.0


def _ticks(seconds: float) -> tuple[Tick, ...]:
    step = next((step for step in STEPS if seconds / step <= TICKS), max(seconds / TICKS, 1.0))
    return tuple(
        Tick(at=_share(number * step, seconds), text=_clock(number * step)) for number in range(int(seconds / step) + 1)
    )


def _memory(times: Timeline) -> Memory:
    """The chart; samples that a gap separates are connected, because nothing was compiled between them."""
    limit = max(times.memory_limit, *(sample.used for sample in times.memory))
    first, last = times.memory[0], times.memory[-1]
    used = _points(times, ((sample.at, sample.used) for sample in times.memory), limit)
    ends = (f"{_share(moment, times.seconds):g},{HEIGHT:g}" for moment in (first.at, last.at))
    step = next(step for step in (1, 2, 4, 8, 16, 32, 64, 128, 256, limit / GIB) if limit / GIB / step <= 4)
    # The limit has a label of its own.
    levels = [step * number for number in range(int(limit / GIB / step + 0.6) - 1, -1, -1)]
    return Memory(
        used=" ".join([next(ends), used, next(ends)]),
        own=_points(times, ((sample.at, sample.own) for sample in times.memory), limit),
        ticks=tuple(Tick(at=round(HEIGHT * (1 - level * GIB / limit), 2), text=f"{level:g}") for level in levels),
        limit=times.memory_limit / GIB,
        peak=_peak(times.memory, "used"),
        own_peak=_peak(times.memory, "own"),
    )


def _peak(samples: Iterable[MemoryUse], field: str) -> float:
    return float(max(getattr(sample, field) for sample in samples)) / GIB


def _points(times: Timeline, values: Iterable[tuple[float, int]], limit: float) -> str:
    return " ".join(
        f"{_share(at, times.seconds):g},{HEIGHT * (1 - min(1.0, value / limit)):.2f}" for at, value in values
    )


def duration(seconds: float) -> str:
    """A time span for people: 0.4 s, 75 s, 12 min 5 s, 2 h 3 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s" if seconds >= 0.05 else "< 0.1 s"
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s".removesuffix(" 0 s")
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _clock(seconds: float) -> str:
    """A label of the time axis: minutes and seconds, or hours, minutes and seconds."""
    whole = round(seconds)
    minutes = f"{whole // 60}:{whole % 60:02d}"
    return minutes if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02d}:{whole % 60:02d}"


def short(source: str) -> str:
    """The file name of a source."""
    return source.rsplit("/", 1)[-1]
