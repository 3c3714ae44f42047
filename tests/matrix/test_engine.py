"""How a matrix follows the jobs of an engine; the engine is a stand-in, and a real one is in test_slurm."""

from __future__ import annotations

import json
import shlex
import stat
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from dca import cli
from dca.foundation.errors import DcaError
from dca.foundation.store import Store
from dca.matrix import engine, slurm
from dca.matrix.engine import Kind, Seen
from dca.matrix.running import Settings, report_file
from dca.matrix.values import Job, Outcome, WheelResult
from tests.matrix.test_running import Matrix, states

GONE = Seen("ended", node="n7", why="Slurm says FAILED.")
REFUSED = DcaError("DCA-171", "Slurm rejected the job.", why="no such partition", remedy="name another one.")


class StandIn:
    """An engine whose jobs end as a test says.

    Args:
        answer: what becomes of a cell's job, by the job and how often it was submitted.
        left: jobs of an earlier driver.
        kinds: of GPU nodes.
    """

    name = "Slurm"
    without_gpus = "it has none."

    def __init__(
        self, answer: Callable[[Job, int], Seen], left: Mapping[str, str] | None = None, kinds: Sequence[Kind] = ()
    ) -> None:
        self.answer, self.earlier, self.has = answer, dict(left or {}), tuple(kinds)
        self.submitted = Counter[str]()
        self.jobs: dict[str, Job] = {}
        self.forgotten: list[str] = []

    def left(self) -> dict[str, str]:
        return self.earlier

    def kinds(self) -> tuple[Kind, ...]:
        return self.has

    def submit(self, job: Job, kind: Kind | None = None) -> str:
        assert (kind and kind.name) == (job.command[-1] if "--node" in job.command else None)
        self.submitted[job.id] += 1
        identity = f"{job.id}-{self.submitted[job.id]}"
        self.jobs[identity] = job
        return identity

    def look(self, identities: Sequence[str]) -> dict[str, Seen]:
        found = {}
        for identity in identities:
            job = self.jobs[identity]
            found[identity] = self.answer(job, self.submitted[job.id])
        return found

    def forget(self, identity: str) -> None:
        # It shares its files with the next one of its cell, so that one must not be there yet.
        cell = self.jobs[identity].id
        assert [one for one, job in self.jobs.items() if job.id == cell][-1] == identity
        self.forgotten.append(identity)

    def how_to_end(self) -> str:
        return "scancel"


@pytest.fixture
def matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Matrix:
    return Matrix(tmp_path, capsys)


@pytest.fixture
def planned(matrix: Matrix) -> Outcome:
    return matrix.report("--dry-run")[1]


def node_report(planned: Outcome, job: Job, state: str = "built", **more: object) -> str:
    """What a node says of a cell that it calls built."""
    cells = [cell.model_copy(update={"state": state}) for cell in planned.cells if cell.id == job.id]
    return planned.model_copy(update={"cells": tuple(cells), **more}).model_dump_json()


def test_a_cell_that_a_stand_in_rejects_leaves_the_others_going(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (cell.id for cell in planned.cells)
    one = StandIn(lambda job, _: Seen("ended", node="n7", report=node_report(planned, job)))
    submit = one.submit

    def rejecting(job: Job, kind: Kind | None = None) -> str:
        if job.id == first:
            raise REFUSED
        return submit(job, kind)

    monkeypatch.setattr(one, "submit", rejecting)
    use(one)
    code, done = matrix.report("--executor", "slurm")
    assert (code, states(done), done.cells[1].node, done.cells[1].job) == (1, ["failed", "built"], "n7", f"{second}-1")
    (trouble,) = [cell.trouble for cell in done.failed]
    assert trouble is not None
    assert (trouble.code, trouble.why) == ("DCA-171", "no such partition")


def test_a_job_of_a_stand_in_that_dies_is_submitted_again_a_few_times(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None]
) -> None:
    first, second = (cell.id for cell in planned.cells)

    def answer(job: Job, number: int) -> Seen:
        if job.id == first or number < 3:
            # What is no report counts as none.
            return GONE if number == 1 else Seen("ended", node="n7", report="{}", why="Slurm says FAILED.")
        return Seen("ended", node="n8", report=node_report(planned, job))

    one = StandIn(answer)
    use(one)
    code, done = matrix.report("--executor", "slurm")
    assert (code, states(done)) == (1, ["failed", "built"])
    assert one.submitted == {first: engine.TRIES, second: 3}
    assert len(one.forgotten) == engine.TRIES + 3
    trouble = done.cells[0].trouble
    assert trouble is not None
    assert (trouble.code, trouble.what) == ("DCA-170", f"job {first}-4 of Slurm ended on n7 without a report.")
    assert trouble.why == "Slurm says FAILED. 4 jobs of this cell died in this run; this was the last."


def test_a_job_of_a_stand_in_that_cannot_go_better_is_not_tried_again(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None]
) -> None:
    one = StandIn(lambda *_: Seen("ended", why="Slurm says OUT_OF_MEMORY.", hopeless=True, remedy="give it more."))
    use(one)
    code, done = matrix.report("--executor", "slurm")
    assert (code, set(one.submitted.values())) == (1, {1})
    assert {cell.trouble.remedy for cell in done.failed if cell.trouble} == {"give it more."}


def test_the_result_of_a_job_of_an_earlier_driver_is_taken(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None]
) -> None:
    first, second = (cell.id for cell in planned.cells)
    one = StandIn(lambda job, _: Seen("ended", report=node_report(planned, job)), left={second: "77"})
    one.jobs["77"] = _job(second)
    use(one)
    code, done = matrix.report("--executor", "slurm")
    assert (code, states(done), dict(one.submitted)) == (0, ["built", "built"], {first: 1})
    assert [cell.job for cell in done.cells] == [f"{first}-1", "77"]


def test_why_a_job_of_a_stand_in_waits_is_said_once(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None]
) -> None:
    looks = Counter[str]()

    def answer(job: Job, _: int) -> Seen:
        looks[job.id] += 1
        if looks[job.id] < 4:
            return Seen("queued", why="PartitionDown")
        if looks[job.id] < 6:
            return Seen("running", node="n7")
        return Seen("ended", node="n7", report=node_report(planned, job))

    use(StandIn(answer))
    code, _, err = matrix.run("--executor", "slurm")
    assert code == 0
    first = planned.cells[0].id
    assert err.count(f"{first}: job {first}-1 waits: PartitionDown.") == 1
    lines = [line.split()[0] for line in err.splitlines() if line.rstrip().endswith(planned.cells[0].version)]
    assert [line for line in lines if line != "plan"] == ["queued", "building", "built"]


def test_a_stand_in_that_does_not_answer_for_a_while_is_waited_for(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, asked = StandIn(lambda job, _: Seen("ended", report=node_report(planned, job))), Counter[str]()
    look = one.look

    def silent(identities: Sequence[str]) -> dict[str, Seen]:
        asked["look"] += 1
        if asked["look"] < 5:
            raise DcaError("DCA-171", "Slurm does not answer.", why="connect failure", remedy="try `squeue`.")
        return look(identities)

    monkeypatch.setattr(one, "look", silent)
    use(one)
    code, _, err = matrix.run("--executor", "slurm")
    assert (code, err.count("Slurm does not answer. Waiting. connect failure")) == (0, 1)
    assert set(one.submitted.values()) == {1}


def test_an_engine_that_lets_no_job_wait_for_long_is_asked_as_often_as_needed(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None]
) -> None:
    enough = 3 * engine.TRIES

    def answer(job: Job, number: int) -> Seen:
        waited = number < enough
        report = "" if waited else node_report(planned, job)
        return Seen("ended", report=report, why="it waited too long.", waited=waited)

    one = StandIn(answer)
    use(one)
    code, done = matrix.report("--executor", "slurm")
    assert (code, states(done), set(one.submitted.values())) == (0, ["built", "built"], {enough})


def _job(cell: str) -> Job:
    return Job(
        id=cell, cells=(cell,), options="", plan="", version="", here=True, sources=0, cores=1, gib=1, command=()
    )


def test_an_error_in_place_of_a_report_is_that_of_the_cell(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None], capsys: pytest.CaptureFixture[str]
) -> None:
    # As a node prints it.
    assert cli.run(matrix.words("--cell", "ffffffff", "--json")) == 2
    printed = capsys.readouterr().out
    assert engine.document(["a note", *printed.splitlines(), "DCA-223: and so on"]) == printed.strip()
    use(StandIn(lambda *_: Seen("ended", node="n7", report=printed)))
    code, done = matrix.report("--executor", "slurm")
    assert code == 2
    assert {(cell.state, cell.trouble and cell.trouble.code, cell.node) for cell in done.cells} == {
        ("failed", "DCA-223", "n7")
    }


def test_a_wheel_that_is_not_here_is_not_believed(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None], tmp_path: Path
) -> None:
    def answer(job: Job, _: int) -> Seen:
        built = WheelResult(
            plan=job.plan,
            file=str(tmp_path / "elsewhere.whl"),
            sha256="0" * 64,
            bytes=1,
            run="",
            cells=(job.id,),
            unchanged=False,
            objects=0,
            objects_compiled_now=0,
            compile_seconds=0.0,
            seconds=1.0,
        )
        return Seen("ended", node="n7", report=node_report(planned, job, wheels=(built,)))

    use(StandIn(answer))
    code, done = matrix.report("--executor", "slurm")
    assert (code, states(done), done.wheels) == (1, ["failed", "failed"], ())
    assert {cell.trouble.code for cell in done.failed if cell.trouble} == {"DCA-172"}


def test_a_node_that_plans_otherwise_fails_the_cell(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None]
) -> None:
    first = planned.cells[0].id
    (known,) = [cell for cell in planned.cells if cell.id == first]
    missing = json.loads(node_report(planned, _job(first), "elsewhere"))
    missing["cells"][0]["trouble"] = {"code": "DCA-402", "what": "no toolkit.", "why": "no mirror."}
    nothing = planned.model_copy(update={"cells": ()}).model_dump_json()
    use(StandIn(lambda job, _: Seen("ended", node="n7", report=json.dumps(missing) if job.id == first else nothing)))
    code, done = matrix.report("--executor", "slurm")
    assert (code, states(done)) == (1, ["failed", "failed"])
    assert [cell.trouble.code for cell in done.failed if cell.trouble] == ["DCA-402", "DCA-170"]
    assert done.cells[0].version == known.version


def test_a_node_that_does_not_reach_what_this_machine_does_is_asked_again_a_few_times(
    matrix: Matrix, planned: Outcome, use: Callable[[StandIn], None]
) -> None:
    first, second = (cell.id for cell in planned.cells)

    def answer(job: Job, number: int) -> Seen:
        if job.id == second and number == 2:
            return Seen("ended", node="n8", report=node_report(planned, job))
        missing = json.loads(node_report(planned, job, "elsewhere"))
        missing["cells"][0]["trouble"] = {"code": "DCA-302", "what": "no plan.", "why": "the index: timed out."}
        return Seen("ended", node="n7", report=json.dumps(missing))

    one = StandIn(answer)
    use(one)
    code, done = matrix.report("--executor", "slurm")
    assert (code, states(done)) == (3, ["failed", "built"])
    assert one.submitted == {first: engine.TRIES, second: 2}
    assert [(cell.trouble.code, cell.trouble.why) for cell in done.failed if cell.trouble] == [
        ("DCA-302", "the index: timed out.")
    ]


# --- options -----------------------------------------------------------------------------------------------------


def test_options_of_sbatch_are_read_as_they_are_written() -> None:
    words = ("partition=gpu", "gres=gpu:h100:1", "comment=a=b c", "exclusive")
    read = slurm.options(words)
    assert read == {"partition": "gpu", "gres": "gpu:h100:1", "comment": "a=b c", "exclusive": True}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("=x",), "it is not KEY=VALUE"),
        (("--partition=x",), "it is not KEY=VALUE"),
        (("partition=",), "it is not KEY=VALUE"),
        (("comment=a\n#SBATCH --uid=0",), "it is not KEY=VALUE"),
        (("array=0-9",), "dca sets this option itself"),
        (("mem=1G", "mem=2G"), "mem is there twice"),
    ],
)
def test_options_of_sbatch_that_would_break_a_job_are_rejected(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(DcaError, match=said) as caught:
        slurm.options(words)
    assert caught.value.code == "DCA-201"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), {"cpus-per-task": "1", "mem": "1G"}),
        (("mem=7G", "cpus-per-task=3"), {"cpus-per-task": "3", "mem": "7G"}),
        (("mem-per-cpu=2G", "exclusive"), {"cpus-per-task": "1", "mem-per-cpu": "2G", "exclusive": ""}),
        (("time=90", "comment=a 'b'"), {"cpus-per-task": "1", "mem": "1G", "time": "90", "comment": "a 'b'"}),
    ],
)
def test_a_script_for_sbatch_has_each_option_once(
    words: tuple[str, ...], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import submitit

    monkeypatch.setattr(slurm, "PROGRAMS", ())
    one = slurm.Slurm(tmp_path / "slurm", slurm.options(words))
    monkeypatch.setattr(submitit.SlurmExecutor, "affinity", lambda *_: 1)
    executor = submitit.SlurmExecutor(tmp_path)
    executor.update_parameters(**one.parameters(_job("01234567")))
    text = executor._make_submission_file_text("true", "0")
    lines = [shlex.split(line)[1].removeprefix("--") for line in text.splitlines() if line.startswith("#SBATCH")]
    found = {line.partition("=")[0]: line.partition("=")[2] for line in lines}
    assert len(found) == len(lines)
    own = {"job-name", "nodes", "open-mode", "output", "signal"}
    assert {name: value for name, value in found.items() if name not in own} == expected


def test_the_folder_of_slurms_jobs_is_ours_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The driver and the nodes unpickle what lies there."""
    monkeypatch.setattr(slurm, "PROGRAMS", ())
    folder = tmp_path / "run" / "slurm"
    slurm.Slurm(folder, {})
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    folder.chmod(0o770)
    with pytest.raises(DcaError, match="others may write to") as caught:
        slurm.Slurm(folder, {})
    assert caught.value.code == "DCA-207"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--slurm", "mem=1G"), "--slurm needs --executor slurm"),
        (("--executor", "slurm", "--dry-run"), "--dry-run builds nothing"),
        (("--executor", "slurm", "--format", "json"), "--format builds nothing"),
        (("--executor", "slurm", "--slurm", "nodes=2"), "--slurm nodes=2: dca sets"),
    ],
)
def test_options_without_an_effect_are_rejected(words: tuple[str, ...], said: str, matrix: Matrix) -> None:
    code, _, err = matrix.run(*words)
    assert code == 2
    assert said in err


def test_a_machine_without_slurm_or_submitit_says_what_is_missing(
    matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(slurm, "PROGRAMS", ("sbatch-of-nobody",))
    code, _, err = matrix.run("--executor", "slurm")
    assert code == 1
    assert "DCA-103: --executor slurm needs Slurm's programs; PATH has no sbatch-of-nobody." in err
    monkeypatch.setattr(slurm, "PROGRAMS", ())
    monkeypatch.setitem(sys.modules, "submitit", None)
    code, _, err = matrix.run("--executor", "slurm")
    assert code == 1
    assert "DCA-103: submitit is not installed" in err
    assert "submitit<1.6,>=1.5.4" in err


def test_a_cell_alone_has_a_report_of_its_own_so_that_several_can_run_at_a_time(matrix: Matrix, tmp_path: Path) -> None:
    cache, out = Store(tmp_path / "cache"), tmp_path / "out"
    places = {report_file(Settings(matrix.file, out, only=only), cache) for only in ((), ("a",), ("b",), ("a", "b"))}
    assert len(places) == 4
    one, other = (report_file(Settings(matrix.file, out, only=only), cache) for only in (("a", "b"), ("b", "a")))
    assert one == other
