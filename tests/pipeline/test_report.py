"""The report of a run: its figures, its page and its trace, from documents as a build leaves them."""

from __future__ import annotations

import errno
import itertools
import json
import os
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import click
import pytest

from dca.catalogue.model_needs import Model
from dca.catalogue.plan import Asked, Plan, Reach, Request
from dca.catalogue.recipes import load_all
from dca.cli import options, run
from dca.compile.cmake import CompiledObject
from dca.compile.compiler_cache import CacheUse
from dca.compile.compiler_cache.builders import Builders
from dca.compile.compiling import Build, BuiltModule
from dca.foundation import documents, store
from dca.foundation.errors import DcaError, Interrupted
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.foundation.timeline import FILE, MemoryUse, ObjectTime, StageTime, Timeline
from dca.pipeline import report, wheel
from dca.pipeline.planned import Planned
from dca.pipeline.report import page
from dca.pipeline.report.lanes import lanes
from dca.pipeline.report.trace import trace
from dca.pipeline.wheel import Made
from tests.resolve.test_resolve import planned

GIB = 2**30
NAME = "vllm-0.10.2-0123456789abcdef"
KERNEL, LAYERNORM = "source/csrc/attention/vertical_slash_index.cu", "source/csrc/layernorm_kernels.cu"
MOE = Model(name="m", architectures=("Qwen3MoeForCausalLM",), head_dim=128, experts=4)
TIMES = Timeline(
    began="2026-11-28T20:58:00Z",
    seconds=100,
    memory_limit=8 * GIB,
    stages=(
        StageTime(name="fetch", started=0, ended=5),
        StageTime(name="environment", started=1, ended=9),
        StageTime(name="compile", started=10, ended=90),
        StageTime(name="load", started=90, ended=92),
        StageTime(name="load", started=93, ended=94),
    ),
    objects=(
        ObjectTime(
            source="generated/_C.units-1.cu",
            module="_C",
            started=10,
            ended=70,
            sources={KERNEL: 300, LAYERNORM: 100},
            archs={"8.0": 20, "9.0": 30},
        ),
        ObjectTime(source="generated/_C_bindings.cpp", module="_C", started=10, ended=30, sources={"x": 1}),
        ObjectTime(source="_C.abi3.so", module="_C", started=70, ended=71),
    ),
    memory=(MemoryUse(at=11, used=3 * GIB, own=GIB), MemoryUse(at=60, used=6 * GIB, own=4 * GIB)),
)


def objects(*pairs: tuple[str, float]) -> tuple[CompiledObject, ...]:
    return tuple(CompiledObject(source=name, sha256="0" * 64, seconds=spent, command_hash="0") for name, spent in pairs)


def saved(folder: Path, plan: Plan, times: Timeline | None = TIMES, built: tuple[CompiledObject, ...] = ()) -> Path:
    """A run's folder."""
    documents.write(plan, folder / "plan.json")
    if times is not None:
        documents.write(times, folder / FILE)
    if built:
        module = BuiltModule(
            name="_C", path="vllm/_C.abi3.so", origin="compiled", file="/f", sha256="0" * 64, schemas=(), objects=built
        )
        build = Build(
            plan_key=plan.key,
            toolkit="12.4",
            host_compiler="12.2.0",
            torch="2.8.0",
            modules=(module,),
            compile_seconds=80,
            objects_compiled_now=1,
            jobs=2,
        )
        documents.write(build, folder / "build.json")
    return folder


@pytest.fixture(scope="module")
def plan() -> Plan:
    return planned(Request(recipe="vllm-0.10.2"))


def test_seconds_are_split_by_arch_and_by_group(plan: Plan, tmp_path: Path) -> None:
    result = report.read(saved(tmp_path, plan), options.spelled)
    assert {cost.name: (cost.seconds, cost.share) for cost in result.archs} == {
        "8.0": (20, 0.25),
        "9.0": (30, 0.375),
        report.ALL_ARCHS: (30, 0.375),
    }
    # A unit's seconds go by the length of its sources; the recipe has the kernel in `dca` and the norm in `core`.
    assert {cost.name: cost.seconds for cost in result.groups} == {"dca": 45, "core": 15, report.SHARED: 20}
    assert [cost.source for cost in result.objects] == ["generated/_C.units-1.cu", "generated/_C_bindings.cpp"]
    assert result.notes == ()


def test_a_cuda_object_without_a_sample_is_not_counted_for_all_archs(plan: Plan, tmp_path: Path) -> None:
    hit = ObjectTime(source="generated/_C.units-2.cu", module="_C", started=30, ended=50, sources={KERNEL: 1})
    times = TIMES.model_copy(update={"objects": (*TIMES.objects, hit)})
    result = report.read(saved(tmp_path, plan, times), options.spelled)
    assert {cost.name: cost.seconds for cost in result.archs} == {
        "8.0": 20,
        "9.0": 30,
        report.ALL_ARCHS: 30,
        report.NOT_SAMPLED: 20,
    }


def test_objects_of_an_earlier_run_are_listed_and_marked(plan: Plan, tmp_path: Path) -> None:
    built = objects(("generated/_C.units-1.cu", 60), ("generated/_C_bindings.cpp", 20), ("generated/old.cu", 70))
    result = report.read(saved(tmp_path, plan, built=built), options.spelled)
    assert [(cost.source[10:], cost.now) for cost in result.objects] == [
        ("old.cu", False),
        ("_C.units-1.cu", True),
        ("_C_bindings.cpp", True),
    ]
    assert "from an earlier run" in page.render(result)


@pytest.mark.parametrize(
    ("used", "says"),
    [
        (
            CacheUse(name="sccache", version="0.16.0", storage="redis", hits=9, misses=3),
            "75 % found<small>9 of 12 parts;",
        ),
        (CacheUse(name="sccache", version="0.16.0", storage="local"), "not asked"),
        (
            CacheUse(
                name="sccache",
                version="0.16.0",
                storage="local",
                builders=Builders(scheduler="http://s:1", places={"b:2": 7}, repeated=1, left_out={"b:3": "<ill>"}),
            ),
            "; 7 compiled by b:2; 1 objects failed there and were compiled here; b:3 was left out: &lt;ill&gt;",
        ),
        (CacheUse(name="sccache", version="0.16.0", storage="redis", off="it <died>."), "cache: it &lt;died&gt;."),
        (None, ""),
    ],
)
def test_hits_of_a_compiler_cache_are_shown(used: CacheUse | None, says: str, plan: Plan, tmp_path: Path) -> None:
    saved(tmp_path, plan, built=objects(("generated/_C.units-1.cu", 60)))
    build = documents.read(Build, tmp_path / "build.json")
    documents.write(build.model_copy(update={"compiler_cache": used}), tmp_path / "build.json")
    result = report.read(tmp_path, options.spelled)
    assert result.compiler_cache == used
    text = page.render(result)
    assert text.count(says) >= 1
    assert ("Compiler cache" in text) == (used is not None)


def test_a_group_has_no_cost_once_the_recipe_has_changed(plan: Plan, tmp_path: Path) -> None:
    result = report.read(saved(tmp_path, plan.model_copy(update={"recipe_digest": "0" * 64})), options.spelled)
    assert result.groups == ()
    assert result.archs
    assert "has changed since this run" in result.notes[0]


@pytest.mark.parametrize("damage", [None, b"{", b'{"schema": "dca.timeline/9"}'], ids=["none", "damaged", "newer"])
def test_a_run_without_a_timeline_has_a_page_that_says_so(plan: Plan, tmp_path: Path, damage: bytes | None) -> None:
    saved(tmp_path, plan, None, objects(("source/a.cu", 12.5)))
    if damage is not None:
        (tmp_path / FILE).write_bytes(damage)
    text = page.render(report.read(tmp_path, options.spelled))
    assert "has no timeline.json" in text
    assert "source/a.cu" in text
    assert "12 s" in text
    assert "<h2>Timeline" not in text


def test_a_run_that_failed_shows_where_and_what_was_stopped(plan: Plan, tmp_path: Path) -> None:
    stopped = TIMES.objects[0].model_copy(update={"finished": False})
    stages = (*TIMES.stages[:2], StageTime(name="compile", started=10))
    times = TIMES.model_copy(update={"error": "DCA-603", "stages": stages, "objects": (stopped,)})
    text = page.render(report.read(saved(tmp_path, plan, times), options.spelled))
    assert "Failed with DCA-603" in text
    assert "dca explain DCA-603" in text
    assert text.count("not finished") >= 2


@pytest.mark.parametrize(
    ("failure", "error", "says"),
    [
        (DcaError("DCA-603", "no", remedy="x"), "DCA-603", "Failed with DCA-603"),
        (KeyboardInterrupt(), "KeyboardInterrupt", "Interrupted"),
        (Interrupted(), "Interrupted", "Interrupted"),
        (OSError(errno.ENOSPC, "full"), "DCA-101", "Failed with DCA-101"),
    ],
)
def test_a_run_leaves_its_timeline_however_it_ends(
    failure: BaseException, error: str, says: str, plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stages(planned: Planned, out: Path, run: Run) -> None:
        documents.write(plan, run.log.parent / "plan.json")
        with run.times.stage("fetch"):
            raise failure

    monkeypatch.setattr(wheel, "_stages", stages)
    recipe = next(loaded.recipe for loaded in load_all() if loaded.recipe.name == plan.recipe)
    contents = Planned(plan, recipe, (), Reach(places={}))
    with pytest.raises(type(failure)):
        wheel.make(contents, store.Store(tmp_path), tmp_path / "dist", Silent())
    (file,) = tmp_path.glob(f"run/*/{FILE}")
    result = report.read(file.parent, options.spelled)
    assert result.timeline is not None
    assert (result.timeline.error, result.timeline.stages[0].name) == (error, "fetch")
    assert result.timeline.stages[0].ended is not None
    assert says in page.render(result)


def test_what_a_document_says_cannot_change_the_page(plan: Plan, tmp_path: Path) -> None:
    evil = "<script>alert(1)</script>\"'><img src=x>"
    choice = plan.choices[0].model_copy(update={"reason": evil, "value": evil})
    one = TIMES.objects[0].model_copy(update={"source": evil, "module": evil, "archs": {evil: 3.0}})
    changed = plan.model_copy(update={"choices": (choice,), "version": evil})
    folder = saved(tmp_path, changed, TIMES.model_copy(update={"objects": (one,)}))
    text = page.render(report.read(folder, options.spelled))
    assert [text.count(tag) for tag in ("<script", "<img")] == [0, 0]


class Checked(HTMLParser):
    """The elements of a page, checked to be closed in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_needs_no_network_and_draws_nothing_outside_its_charts(plan: Plan, tmp_path: Path) -> None:
    text = page.render(report.read(saved(tmp_path, plan), options.spelled))
    checked = Checked()
    checked.feed(text)
    assert checked.open == []
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in checked.seen}
    assert re.findall(r"(?:src|href)=|url\(|@import", text) == []
    bars = [re.findall(r"[\d.]+", attrs["style"] or "") for tag, attrs in checked.seen if tag == "b"]
    # Five bars of stages, and two objects and a link in two lanes.
    assert len(bars) == 8
    for left, width in bars:
        assert float(left) >= 0
        assert float(left) + float(width) <= 100.001
    (area,) = [attrs["points"] for tag, attrs in checked.seen if tag == "polygon"]
    assert area == "11,100 11,62.50 60,25.00 60,100"


@pytest.mark.parametrize("seconds", [0.0, 0.004, 3.0, 59.0, 3599.0, 90000.0, 1e8])
def test_the_axis_has_a_few_ticks_for_runs_of_any_length(plan: Plan, tmp_path: Path, seconds: float) -> None:
    folder = saved(tmp_path, plan, TIMES.model_copy(update={"seconds": seconds, "objects": (), "memory": ()}))
    text = page.render(report.read(folder, options.spelled))
    ticks = re.search(r'<div class="grid">(.*?)</div>', text)
    assert ticks is not None
    assert 1 <= ticks[1].count("<span") <= page.TICKS + 1


def test_lanes_have_no_overlap_and_are_as_few_as_what_ran_at_once() -> None:
    times = [(0, 5), (0, 3), (3, 9), (5, 6), (6, 7), (1, 2)]
    timed = [ObjectTime(source=f"{a}-{b}", module="m", started=a, ended=b) for a, b in times]
    found = lanes(timed)
    assert [[(one.started, one.ended) for one in lane] for lane in found] == [
        [(0, 3), (3, 9)],
        [(0, 5), (5, 6), (6, 7)],
        [(1, 2)],
    ]


def test_the_trace_has_every_span_in_microseconds(plan: Plan) -> None:
    events = trace(TIMES, "title")["traceEvents"]
    spans: list[dict[str, Any]] = [event for event in events if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"]) for event in spans[2:3]] == [("compile", 10_000_000, 80_000_000)]
    assert len(spans) == len(TIMES.stages) + len(TIMES.objects)
    # Spans of one thread never overlap: viewers would nest them.
    by_thread: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for event in spans:
        by_thread.setdefault((event["pid"], event["tid"]), []).append(event)
    for own in by_thread.values():
        own.sort(key=lambda event: event["ts"])
        assert all(one["ts"] + one["dur"] <= two["ts"] for one, two in itertools.pairwise(own))
    named = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    assert set(by_thread) == named
    unit = next(event for event in spans if event["name"] == "_C.units-1.cu")
    assert unit["args"]["seconds for 9.0"] == 30
    counters = [event["args"]["in use"] for event in events if event["ph"] == "C"]
    assert counters == [3 * GIB, 6 * GIB]


@pytest.mark.parametrize(
    "asked",
    [
        Request(),
        Request(
            recipe="vllm-0.10.2", archs=("8.0", "9.0+PTX"), groups=("moe",), cuda="12.4", jobs=3, compiler_cache="off"
        ),
        Request(recipe="vllm-0.10.2", prebuilt=("all",)),
        Request(recipe="vllm-0.10.2", groups=("index-only",)),
        Request(recipe="vllm-0.10.2", cuda="12.6"),
        Request(
            recipe="vllm-0.10.2", model=Model(name="m", architectures=("Qwen3MoeForCausalLM",), head_dim=128, experts=4)
        ),
    ],
    ids=["default", "options", "copied", "small", "another CUDA", "model"],
)
def test_the_command_leads_to_the_same_plan(asked: Request, tmp_path: Path) -> None:
    made = planned(asked)
    documents.write(Asked(request=asked), tmp_path / "request.json")
    words = shlex.split(report.read(saved(tmp_path, made, None), options.spelled).command)
    assert words[:2] == ["dca", "wheel"]
    read: list[Request] = []

    @click.command()
    @options.request
    def command(request: Request, update: str) -> None:
        read.append(request)

    command.main(words[2:], standalone_mode=False)
    again = planned(read[0])
    assert (again.key, again.jobs) == (made.key, made.jobs)


def report_of(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = run(["report", *map(str, arguments)])
    told = capsys.readouterr()
    return code, told.out, told.err


@pytest.fixture
def cache(plan: Plan, tmp_path: Path) -> Path:
    """A cache with two runs, of which NAME is the newer."""
    for seconds, name in ((100, "vllm-0.10.2-ffffffffffffffff"), (200, NAME)):
        folder = saved(tmp_path / "cache/run" / name, plan)
        os.utime(folder / "plan.json", (seconds, seconds))
    return tmp_path / "cache"


def test_a_run_is_found_by_its_folder_its_name_its_wheel_json_or_as_the_newest(
    cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = cache / "run" / NAME
    made = Made(
        wheel="/w.whl",
        sha256="0" * 64,
        bytes=9_500_000,
        modified_ns=0,
        run=str(folder),
        lock="",
        compiled=("vllm/_C.abi3.so",),
        copied=(),
        objects=3,
        objects_compiled_now=2,
        compile_seconds=80.0,
        seconds=100.0,
    )
    documents.write(made, tmp_path / "elsewhere.json")
    for words in ([], [folder], [NAME], [tmp_path / "elsewhere.json"]):
        code, out, err = report_of(capsys, *words, "--cache-dir", cache, "--quiet")
        assert (code, out, err) == (0, f"{folder}/report.html\n", "")
        assert "<h2>Timeline" in (folder / "report.html").read_text()
        (folder / "report.html").unlink()
    code, out, _ = report_of(capsys, "--cache-dir", cache, "--json", "--trace", tmp_path / "t.json")
    assert json.loads(out)["schema"] == "dca.report/1"
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([NAME.replace("ab", "ba")], "DCA-204", f"did you mean `dca report {NAME}`?"),
        (["/no/such/run"], "DCA-204", "there is no run /no/such/run"),
        (["."], "DCA-204", "is not the folder of a run"),
        (["broken.json"], "DCA-104", "not a dca.wheel/1 document"),
        (["--out", "broken.json/page.html"], "DCA-204", "cannot be written"),
    ],
)
def test_a_wrong_name_is_one_message(
    words: list[str],
    code: str,
    says: str,
    cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(cache)
    Path("broken.json").write_text("{}")
    _, out, err = report_of(capsys, *words, "--cache-dir", cache)
    assert out == ""
    assert code in err
    assert says in err


def test_a_cache_without_a_run_and_a_run_without_a_timeline_say_what_to_do(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(DcaError, match="holds no run") as failed:
        report.find(None, store.Store(tmp_path))
    assert failed.value.code == "DCA-204"
    folder = saved(tmp_path / "one", plan, None)
    assert run(["report", str(folder), "--trace", str(tmp_path / "t.json"), "--cache-dir", str(tmp_path)]) == 2
    assert not (folder / "report.html").exists()
    assert not (tmp_path / "t.json").exists()
