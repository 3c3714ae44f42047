"""Wheels that are proven on each kind of GPU node: a stand-in of a cluster runs each job's command in this process.

What real clusters do is in test_slurm and test_ray.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from dca import cli
from dca.foundation import documents
from dca.matrix import engine, slurm
from dca.matrix.engine import Kind, Seen
from dca.matrix.values import Job, Outcome
from dca.publish.check import check
from dca.publish.folder import Folder
from dca.publish.records import read_records
from dca.smoke import Smoke
from tests.matrix.test_engine import GONE, StandIn
from tests.matrix.test_running import Matrix, states

A100, H100 = Kind("gpu:a100", "gpu:a100:1", 2), Kind("gpu:h100", "gpu:h100:1", 1)
BOTH = (A100, H100)
NO_CODE = {
    "schema": "dca.error/1",
    "code": "DCA-841",
    "what": "w.whl has no code for NVIDIA A100 (8.0).",
    "why": "why.",
}
Answer = Callable[[Job, int], Seen]


@pytest.fixture
def matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Matrix:
    one = Matrix(tmp_path, capsys)
    # So that only smoke tests are jobs.
    assert one.report()[0] == 0
    return one


def really(matrix: Matrix) -> Answer:
    """Runs a job's command."""

    def answer(job: Job, _: int) -> Seen:
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            cli.run([*job.command[1:], "--cache-dir", str(matrix.folder / "cache"), "--json"])
        return Seen("ended", node="n7", report=out.getvalue())

    return answer


def wrong(seen: Seen) -> Seen:
    """The same report with a case that failed."""
    report = Smoke.model_validate_json(seen.report)
    first, *rest = report.cases
    bad = first.model_copy(update={"passed": False, "detail": "it is wrong."})
    return Seen("ended", node="n7", report=report.model_copy(update={"cases": (bad, *rest)}).model_dump_json())


def table(done: Outcome) -> list[tuple[str, str, str]]:
    return [(one.version, one.kind, one.state) for one in done.nodes]


@pytest.mark.slow
def test_each_wheel_is_proven_once_on_each_kind_of_node_of_a_stand_in(
    matrix: Matrix, use: Callable[[StandIn], None]
) -> None:
    one, index = StandIn(really(matrix), kinds=BOTH), matrix.folder / "index"
    use(one)
    words = ("--executor", "slurm", "--smoke", "nodes", "--index", index)
    code, done = matrix.report(*words)
    assert (code, states(done), len(done.added)) == (0, ["unchanged", "unchanged"], 2)
    versions = [cell.version for cell in done.cells]
    assert table(done) == [(version, kind.name, "passed") for version in versions for kind in BOTH]
    assert len(one.jobs) == 4
    for result in done.nodes:
        report = documents.read(Smoke, Path(result.report))
        assert (report.node, report.passed, result.node) == (result.kind, True, "n7")
        assert result.proven is not None
        assert (result.proven.level, result.proven.passed) == ("static", len(report.cases))
    # They are published with the wheel.
    for record in read_records(Folder(index)).records():
        kinds = {proof.kind: proof.says for proof in record.evidence}
        assert kinds["smoke-node-gpu-a100"].startswith("static on gpu:a100: ")
        assert kinds["smoke-node-gpu-h100"].startswith("static on gpu:h100: ")
    assert check(index).wrong == ()
    # What has passed is not done again.
    code, again = matrix.report(*words)
    assert (code, table(again), len(one.jobs)) == (0, table(done), 4)
    text = matrix.run(*words)[1]
    assert text.count("  gpu:a100  passed    static: ") == 2
    assert text.count("On each kind of GPU node") == 1


@pytest.mark.slow
def test_a_wheel_that_fails_on_one_kind_is_barred_alone(matrix: Matrix, use: Callable[[StandIn], None]) -> None:
    run, first = really(matrix), Path(sorted(matrix.wheels)[0]).name

    def answer(job: Job, number: int) -> Seen:
        seen = run(job, number)
        fails = first in job.command[2] and job.command[-1] == H100.name
        if fails:
            # As the node itself keeps it.
            (kept,) = (matrix.folder / "cache/run").glob(f"smoke-{job.id[:8]}*/node-gpu-h100/smoke-static.json")
            kept.write_bytes(documents.dumps(Smoke.model_validate_json(wrong(seen).report)))
        return wrong(seen) if fails else seen

    use(StandIn(answer, kinds=BOTH))
    index = matrix.folder / "index"
    code, done = matrix.report("--executor", "slurm", "--smoke", "nodes", "--index", index)
    assert (code, sorted(states(done))) == (8, ["failed", "unchanged"])
    assert sorted(state for *_, state in table(done)) == ["failed", "passed", "passed", "passed"]
    (trouble,) = [cell.trouble for cell in done.failed]
    assert trouble is not None
    assert (trouble.code, trouble.what) == ("DCA-801", "its smoke test failed on gpu:h100.")
    assert "it is wrong." in trouble.why
    assert [path.name for path in index.rglob("*.whl")] == [name for name in matrix.wheels if name != first]
    # Neither is it published by hand, although it has passed on the other kind since.
    wheel = matrix.folder / "out" / first
    code = cli.run(["publish", str(wheel), "--index", str(index), "--cache-dir", str(matrix.folder / "cache")])
    assert code == 9
    assert "--node gpu:h100" in matrix.capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("everywhere", [False, True])
def test_a_card_that_cannot_run_a_wheel_is_named_and_one_that_none_can_run_is_not_proven(
    everywhere: bool, matrix: Matrix, use: Callable[[StandIn], None]
) -> None:
    run, printed = really(matrix), json.dumps({**NO_CODE, "next": "build one.", "known": []})

    def answer(job: Job, number: int) -> Seen:
        lacks = everywhere or job.command[-1] == A100.name
        return Seen("ended", node="n3", report=printed) if lacks else run(job, number)

    one = StandIn(answer, kinds=BOTH)
    use(one)
    code, done = matrix.report("--executor", "slurm", "--smoke", "nodes")
    by_kind = {kind: state for _, kind, state in table(done)}
    assert by_kind == {"gpu:a100": "not run", "gpu:h100": "not run" if everywhere else "passed"}
    assert set(one.submitted.values()) == {1}
    assert (code, set(states(done))) == ((8, {"failed"}) if everywhere else (0, {"unchanged"}))
    text = matrix.run("--executor", "slurm", "--smoke", "nodes")[1]
    assert "DCA-841: w.whl has no code for NVIDIA A100 (8.0). why." in text
    if everywhere:
        assert {cell.trouble.what for cell in done.failed if cell.trouble} == {
            "no kind of GPU node can run it: gpu:a100, gpu:h100."
        }


@pytest.mark.slow
def test_a_kind_whose_nodes_are_down_is_not_waited_for_and_a_dying_job_is_no_proof(
    matrix: Matrix, use: Callable[[StandIn], None]
) -> None:
    down = Kind("gpu:b200", "gpu:b200:1", 1, "its nodes are drained")
    one = StandIn(lambda *_: GONE, kinds=(down, H100))
    use(one)
    code, done = matrix.report("--executor", "slurm", "--smoke", "nodes")
    assert (code, set(states(done))) == (1, {"failed"})
    assert {kind: state for _, kind, state in table(done)} == {"gpu:b200": "not run", "gpu:h100": "untested"}
    assert {job.command[-1] for job in one.jobs.values()} == {"gpu:h100"}
    assert set(one.submitted.values()) == {engine.TRIES}
    troubles = {one.kind: one.trouble for one in done.nodes}
    assert {kind: trouble.code for kind, trouble in troubles.items() if trouble} == {
        "gpu:b200": "DCA-171",
        "gpu:h100": "DCA-170",
    }
    assert {cell.trouble.what for cell in done.failed if cell.trouble} == {
        "its smoke test could not be run to its end on gpu:h100."
    }


@pytest.mark.slow
def test_a_report_about_another_wheel_or_kind_is_not_believed(matrix: Matrix, use: Callable[[StandIn], None]) -> None:
    run = really(matrix)

    def answer(job: Job, number: int) -> Seen:
        report = Smoke.model_validate_json(run(job, number).report)
        return Seen("ended", node="n7", report=report.model_copy(update={"node": "gpu:v100"}).model_dump_json())

    use(StandIn(answer, kinds=(H100,)))
    code, done = matrix.report("--executor", "slurm", "--smoke", "nodes")
    assert (code, {state for *_, state in table(done)}) == (1, {"untested"})


def test_a_cluster_without_gpus_is_an_error_before_anything_is_built(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], use: Callable[[StandIn], None]
) -> None:
    use(StandIn(lambda *_: GONE))
    one = Matrix(tmp_path, capsys)
    code, _, err = one.run("--executor", "slurm", "--smoke", "nodes")
    assert (code, one.wheels) == (1, {})
    assert "DCA-171: Slurm has no node with a GPU that jobs can ask for." in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--smoke", "nodes"), "--smoke nodes needs --executor slurm or ray"),
        (("--smoke", "nodes", "--format", "json"), "--smoke nodes needs --executor slurm or ray"),
        (("--smoke", "nodes", "--executor", "ray", "--smoke-slurm", "mem=1G"), "--smoke-slurm needs --executor slurm"),
        (("--smoke", "cpu", "--executor", "slurm", "--smoke-slurm", "mem=1G"), "--smoke-slurm needs --executor slurm"),
        (("--smoke", "nodes", "--executor", "slurm", "--smoke-slurm", "array=1"), "dca sets this option itself"),
    ],
)
def test_options_without_an_effect_are_rejected(
    words: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = Matrix(tmp_path, capsys).run(*words)
    assert code == 2
    assert said in err


# --- what Slurm says of nodes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        ([("(null)", 4, "idle")], []),
        ([("gpu:8", 2, "idle")], [Kind("gpu", "gpu:1", 2)]),
        (
            [("gpu:h100:8(S:0-1)", 2, "mixed"), ("gpu:a100:4,mps:400", 3, "idle"), ("gpu:h100:4", 1, "down*")],
            [Kind("gpu:a100", "gpu:a100:1", 3), Kind("gpu:h100", "gpu:h100:1", 3)],
        ),
        (
            [("gpu:a100_1g.5gb:7(S:0),gpu:a100_3g.20gb:2(S:0,1)", 1, "allocated")],
            [Kind("gpu:a100_1g.5gb", "gpu:a100_1g.5gb:1", 1), Kind("gpu:a100_3g.20gb", "gpu:a100_3g.20gb:1", 1)],
        ),
        ([("gpu:l4:no_consume:1", 1, "idle~")], [Kind("gpu:l4", "gpu:l4:1", 1)]),
        (
            [("gpu:t4:1", 1, "drained"), ("gpu:t4:1", 2, "down*")],
            [Kind("gpu:t4", "gpu:t4:1", 3, "its nodes are down or drained")],
        ),
        ([("craynetwork:4,shard:16", 1, "idle")], []),
    ],
)
def test_kinds_of_nodes_are_read_from_their_generic_resources(
    lines: list[tuple[str, int, str]], expected: list[Kind]
) -> None:
    assert list(slurm.kinds_of(lines)) == expected


def test_a_job_for_a_kind_of_node_asks_for_one_of_its_gpus_and_for_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "PROGRAMS", ())
    one = slurm.Slurm(tmp_path, {"partition": "gpu", "gres": "gpu:8", "gpus-per-node": "8", "mem-per-cpu": "1G"})
    job = Job(id="a", cells=(), options="", plan="", version="", here=True, sources=0, cores=4, gib=16, command=())
    given = one.parameters(job, H100)
    assert given["additional_parameters"] == {"partition": "gpu", "mem_per_cpu": "1G", "gres": "gpu:h100:1"}
    assert "mem" not in given
    assert one.parameters(job)["additional_parameters"]["gres"] == "gpu:8"
