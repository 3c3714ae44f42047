"""A matrix of this project's plugins, for which nothing is downloaded or compiled: built, proven, published, again."""

from __future__ import annotations

import errno
import io
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dca import cli, publish, smoke
from dca.catalogue import machine, recipes
from dca.catalogue.plan import Request
from dca.cli import options
from dca.cli.matrix import Board
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.matrix import formats, running
from dca.matrix.formats import FORMATS, Format
from dca.matrix.values import CellResult, Outcome
from dca.pipeline import gather, probing
from dca.pipeline import wheel as building
from dca.publish.check import check
from dca.publish.folder import Folder
from dca.publish.records import read_records
from dca.sources import git, index
from dca.toolchain import apt, redist
from tests.support.kills import killed_command, leftovers

PLUGINS = sorted(loaded.recipe.name for loaded in recipes.load_all() if loaded.recipe.is_plugin)[:2]
HEAD = 'schema = "dca.matrix/1"\n'
BOTH = f"{HEAD}[[include]]\nrecipe = {json.dumps(PLUGINS)}\n"
COMPILING = DcaError(
    "DCA-603",
    "compiling a.cu failed.",
    remedy="see it.",
    output=("nvcc fatal   : Unsupported gpu architecture 'compute_130'",),
)


class Matrix:
    """A matrix with a cache and an output folder of its own."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], text: str = BOTH) -> None:
        self.folder, self.capsys, self.file = folder, capsys, folder / "m.toml"
        self.file.write_text(text)

    def words(self, *more: str | Path) -> list[str]:
        places = ["--out", self.folder / "out", "--cache-dir", self.folder / "cache", "--offline"]
        return list(map(str, ["matrix", self.file, *places, *more]))

    def run(self, *more: str | Path) -> tuple[int, str, str]:
        """Exit code, standard output and standard error."""
        code = cli.run(self.words(*more))
        said = self.capsys.readouterr()
        return code, said.out, said.err

    def report(self, *more: str | Path) -> tuple[int, Outcome]:
        """Exit code and report."""
        code, out, _ = self.run("--json", *more)
        return code, Outcome.model_validate(json.loads(out))

    @property
    def wheels(self) -> dict[str, str]:
        """The hashes of what lies in the output folder, by name."""
        return {path.name: store.sha256_file(path) for path in sorted((self.folder / "out").glob("*.whl"))}


@pytest.fixture
def matrix(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Matrix:
    return Matrix(tmp_path, capsys)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, BaseException], None]:
    """Lets the build of a recipe end with an error."""

    def fail(recipe: str, error: BaseException) -> None:
        make = building.make

        def stand_in(planned: Any, *rest: Any) -> Any:
            if planned.plan.recipe == recipe:
                raise error
            return make(planned, *rest)

        monkeypatch.setattr(building, "make", stand_in)

    return fail


def states(done: Outcome) -> list[str]:
    return [cell.state for cell in done.cells]


@pytest.mark.slow
def test_wheels_are_built_proven_and_published_once(matrix: Matrix) -> None:
    index = matrix.folder / "index"
    code, first = matrix.report("--smoke", "static", "--index", index)
    assert (code, states(first), len(first.added)) == (0, ["built", "built"], 2)
    assert all(cell.proven and cell.proven.passed and not cell.proven.failed for cell in first.cells)
    built = matrix.wheels
    assert {Path(wheel.file).name: wheel.sha256 for wheel in first.wheels} == built
    listed = {path.name for path in index.rglob("*.whl")}
    assert listed == set(built)

    code, again = matrix.report("--smoke", "static", "--index", index)
    assert (code, states(again), again.added) == (0, ["unchanged", "unchanged"], ())
    assert [cell.proven.seconds for cell in again.cells if cell.proven] == [0.0, 0.0]
    assert matrix.wheels == built
    (kept,) = (matrix.folder / "cache/run").glob(f"matrix-*/{running.REPORT}")
    assert Outcome.model_validate(json.loads(kept.read_text())) == again
    assert set(matrix.run("--quiet")[1].split()) == {wheel.file for wheel in first.wheels}
    assert states(Outcome.model_validate(json.loads(kept.read_text()))) == ["unchanged", "unchanged"]


@pytest.mark.slow
def test_a_wheel_on_the_disk_is_not_believed_without_its_hash(matrix: Matrix) -> None:
    assert matrix.report()[0] == 0
    built = matrix.wheels
    damaged = matrix.folder / "out" / next(iter(built))
    content = damaged.read_bytes()
    damaged.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, done = matrix.report()
    assert (code, sorted(states(done))) == (0, ["built", "unchanged"])
    assert matrix.wheels == built


@pytest.mark.slow
def test_one_cell_alone_is_built_by_its_id(matrix: Matrix) -> None:
    _, planned = matrix.report("--dry-run")
    assert states(planned) == ["planned", "planned"]
    assert matrix.wheels == {}
    chosen = planned.cells[1]
    code, done = matrix.report("--cell", chosen.id)
    assert (code, [cell.id for cell in done.cells], len(matrix.wheels)) == (0, [chosen.id], 1)
    code, _, err = matrix.run("--cell", "ffffffff")
    assert code == 2
    assert "DCA-223: --cell ffffffff" in err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "code", "said"),
    [(COMPILING, 6, "DCA-603"), (OSError(errno.ENOSPC, "No space left on device", "/there"), 1, "DCA-101")],
)
def test_a_failure_of_one_cell_leaves_the_others_going(
    error: BaseException, code: int, said: str, matrix: Matrix, failing: Callable[[str, BaseException], None]
) -> None:
    failing(PLUGINS[0], error)
    index = matrix.folder / "index"
    status, out, err = matrix.run("--index", index)
    assert status == code
    assert err.strip().splitlines()[-3].startswith(f"{said}: 1 of 2 cells of ")
    assert "Failed\n" in out
    assert said in out
    assert len(matrix.wheels) == 1
    assert {path.name for path in index.rglob("*.whl")} == set(matrix.wheels)
    _, done = matrix.report()
    assert sorted(states(done)) == ["failed", "unchanged"]
    (trouble,) = [cell.trouble for cell in done.failed]
    assert trouble is not None
    assert trouble.code == said
    assert bool(trouble.known) == (said == "DCA-603")


@pytest.mark.slow
def test_failures_of_several_kinds_end_with_a_code_of_their_own(
    matrix: Matrix, failing: Callable[[str, BaseException], None]
) -> None:
    failing(PLUGINS[0], DcaError("DCA-603", "one.", remedy="one."))
    failing(PLUGINS[1], DcaError("DCA-401", "two.", remedy="two."))
    status, out, err = matrix.run()
    assert status == 1
    assert "DCA-169: 2 of 2 cells" in err
    assert "DCA-603: one." in out
    assert "DCA-401: two." in out


@pytest.mark.slow
def test_a_wheel_that_fails_its_proof_is_not_published(matrix: Matrix, monkeypatch: pytest.MonkeyPatch) -> None:
    prove, wrong = smoke.smoke, PLUGINS[0]

    def stand_in(*given: Any) -> Any:
        report = prove(*given)
        bad = [case.model_copy(update={"passed": False, "detail": "wrong."}) for case in report.cases]
        return report.model_copy(update={"cases": tuple(bad)}) if report.recipe == wrong else report

    monkeypatch.setattr(running, "smoke", stand_in)
    index = matrix.folder / "index"
    code, done = matrix.report("--smoke", "static", "--index", index)
    assert code == 8
    assert sorted(states(done)) == ["built", "failed"]
    assert len(matrix.wheels) == 2
    assert len(list(index.rglob("*.whl"))) == 1
    # What failed is tried again, what passed is not.
    monkeypatch.setattr(running, "smoke", prove)
    code, done = matrix.report("--smoke", "static", "--index", index)
    assert (code, len(done.added)) == (0, 1)
    assert sorted(bool(cell.proven and cell.proven.seconds) for cell in done.cells) == [False, True]


@pytest.mark.slow
def test_an_index_that_cannot_be_written_fails_after_the_wheels_are_built(
    matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stand_in(*_: Any) -> Any:
        raise DcaError("DCA-904", "the index is broken.", remedy="mend it.")

    monkeypatch.setattr(publish, "publish", stand_in)
    code, done = matrix.report("--index", matrix.folder / "index")
    assert (code, states(done), len(matrix.wheels)) == (9, ["built", "built"], 2)
    assert done.unpublished is not None
    assert done.unpublished.code == "DCA-904"


# --- what is wrong before anything is built ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "code", "said"),
    [
        ('recipe = "no-such"', 2, "DCA-203: cell `--recipe no-such`: there is no recipe `no-such`."),
        ('cuda = "twelve"', 2, "DCA-201: cell `--cuda twelve`"),
        ('arch = "x"', 2, "DCA-201: cell `--arch x`"),
        ('source = "/nowhere"', 2, "DCA-204: cell `--source /nowhere`"),
        ("dirty = true", 2, "DCA-201: cell `--dirty`"),
        (f'recipe = "{PLUGINS[0]}"\ncuda = "12.4"', 3, "DCA-309: no cell of "),
    ],
)
def test_a_matrix_that_cannot_be_built_is_one_error(
    table: str, code: int, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrix = Matrix(tmp_path, capsys, f"{HEAD}[[include]]\n{table}\n")
    for more in ((), ("--dry-run",), ("--format", "slurm"), ("--executor", "slurm"), ("--executor", "ray")):
        status, _, err = matrix.run(*more)
        assert status == code
        assert said in err
        assert "  Next: " in err
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--format", "json", "--dry-run"], "--format builds nothing"),
        (["--format", "json", "--report", "r"], "--format builds nothing"),
        (["--format", "gitlab", "--action", f"a/b@{'0' * 40}"], "--action needs --format github"),
        (["--format", "github", "--action", "a/b@v1"], "is not OWNER/NAME@COMMIT"),
        (["--index", "i", "--s3", "s3://b/p"], "exclude each other"),
        (["--dry-run", "--s3", "s3://b/p"], "--dry-run builds nothing"),
        (["--dry-run", "--smoke", "cpu"], "--dry-run builds nothing"),
        (["--cores", "4"], "--cores needs --format"),
    ],
)
def test_options_without_an_effect_are_rejected(words: list[str], said: str, matrix: Matrix) -> None:
    status, _, err = matrix.run(*words)
    assert status == 2
    assert said in err


@pytest.mark.parametrize(
    ("kind", "words", "said"),
    [
        ("github", ["/srv/m.toml"], "MATRIX.toml: /srv/m.toml does not lie in the repository"),
        ("buildkite", ["../m.toml"], "MATRIX.toml: ../m.toml does not lie in the repository"),
        ("gitlab", ["m.toml", "--out", "/srv/dist"], "--out: /srv/dist does not lie in the repository"),
        ("github", ["m.toml", "--index", "/srv/index"], "--index: /srv/index does not lie in the repository"),
        ("github", ["m.toml", "--index", "a/../../b"], "--index: a/../../b does not lie in the repository"),
        ("github", ["m.toml", "--out", "${{ github.token }}"], "--out: ${{ github.token }} would be read as a pattern"),
        ("gitlab", ["m.toml", "--out", "$HOME"], "--out: $HOME would be read as a pattern"),
        ("buildkite", ["m.toml", "--out", " dist"], "--out:  dist would be read as a pattern"),
        ("slurm", ["m\n#SBATCH --uid=0.toml"], "MATRIX.toml: 'm\\n#SBATCH --uid=0.toml' has a character"),
        ("json", ["m.toml", "--index", "a\u202eb"], "--index: 'a\\u202eb' has a character"),
        ("github", ["m.toml", "--s3", "https://b/p"], "--s3 https://b/p is not a bucket's URL"),
        ("slurm", ["m.toml", "--s3", "s3://b", "--s3-endpoint", "https://u:secret@h"], "is not the URL of a store"),
    ],
)
def test_paths_that_jobs_would_not_find_or_read_otherwise_are_rejected(
    kind: str, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    status = cli.run(["matrix", *words, "--format", kind])
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert said in err
    assert "  Next: " in err
    assert "secret" not in err


@pytest.mark.parametrize("kind", ["slurm", "gitlab", "buildkite"])
def test_an_index_that_all_machines_have_may_lie_anywhere(kind: Format) -> None:
    formats.check(kind, Path("m.toml"), Path("dist"), Path("/srv/index"))


@pytest.mark.parametrize("kind", FORMATS)
def test_a_matrix_without_a_job_leaves_standard_output_empty(
    kind: Format, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is usually a file of the engine, which would then be a table."""
    monkeypatch.chdir(tmp_path)
    Path("m.toml").write_text(f'{HEAD}[[include]]\nrecipe = "{PLUGINS[0]}"\narch = ["8.0", "9.0"]\n')
    status = cli.run(["matrix", "m.toml", "--format", kind, "--cache-dir", "cache", "--offline"])
    out, err = capsys.readouterr()
    assert (status, out) == (3, "")
    assert "DCA-309: no cell of m.toml can be built on this machine." in err
    assert "--arch 9.0" in err


def test_jobs_name_the_cells_and_what_is_impossible_goes_to_standard_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = f'{BOTH}[[include]]\nrecipe = "{PLUGINS[0]}"\narch = "8.0"\n'
    status, out, err = Matrix(tmp_path, capsys, text).run("--format", "json", "--smoke", "static")
    assert status == 0
    jobs = json.loads(out)
    assert len(jobs["jobs"]) == 2
    assert {(job["cores"], job["gib"], job["sources"]) for job in jobs["jobs"]} == {(1, 1, 0)}
    assert "--smoke" in jobs["jobs"][0]["command"]
    assert len(jobs["impossible"]) == 1
    assert "DCA-309" in err


def answer(monkeypatch: pytest.MonkeyPatch, why: str) -> None:
    """Every place answers the same; nothing is asked."""
    monkeypatch.setattr(index, "probe", lambda: why)
    for module, name in ((index, "probe_file"), (git, "probe"), (apt, "probe"), (redist, "probe")):
        monkeypatch.setattr(module, name, lambda _: why)


def test_a_cell_has_the_plan_that_a_build_of_its_own_would_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer(monkeypatch, "")
    request = Request(recipe="vllm-0.10.2", archs=("9.0",), cuda="12.8")
    kept = store.Store(tmp_path / "cache")
    foreseen = gather.foresee(request, kept, gather.share([request], kept))
    alone = gather.make_plan(request, kept).plan
    assert foreseen.refusal is None
    assert foreseen.planned is not None
    assert foreseen.planned.plan == alone


def test_places_are_probed_once_for_all_cells(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: Counter[str] = Counter()

    def counting(module: Any, name: str) -> None:
        called = getattr(module, name)

        def stand_in(*given: Any, **named: Any) -> Any:
            counted[name] += 1
            return called(*given, **named)

        monkeypatch.setattr(module, name, stand_in)

    for module, name in ((machine, "look"), (probing, "probe"), (gather, "world")):
        counting(module, name)
    answer(monkeypatch, "no")
    text = f'{HEAD}[[include]]\nrecipe = "vllm-0.10.2"\narch = ["8.0", "9.0"]\ncuda = ["12.4", "12.8"]\n'
    one = Matrix(tmp_path, capsys, text)
    code = cli.run([word for word in one.words("--dry-run", "--json") if word != "--offline"])
    done = Outcome.model_validate(json.loads(capsys.readouterr().out))
    assert (code, set(states(done))) == (0, {"elsewhere"})
    assert counted == {"look": 1, "probe": 1, "world": 4}
    # Nothing of it is remembered as what another run may rely on.
    assert not (tmp_path / "cache/lock").exists()


# --- what is shown -----------------------------------------------------------------------------------------------


def cells(*found: str) -> Outcome:
    results = tuple(
        CellResult(id=f"{number:08x}", options=f"--recipe r{number}", state=state, version=f"1.{number}")  # type: ignore[arg-type]
        for number, state in enumerate(found)
    )
    return Outcome(matrix="m.toml", sha256="", started="", cells=results)


def test_on_a_terminal_a_table_shows_every_cell_and_what_is_done_now(monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.console import Console

    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    with Board(options.Output(as_json=False, quiet=False)) as board:
        board.show(cells("planned", "planned", "impossible"))
        board.show(cells("built", "building", "impossible"))
        board.stage("compile", "_C for 8.0")
        shown = Console(file=io.StringIO(), width=120)
        shown.print(board._view())
    text = shown.file.getvalue()  # type: ignore[attr-defined]
    lines = text.splitlines()
    assert [line.split()[:3] for line in lines[1:4]] == [
        ["1/3", "00000000", "built"],
        ["2/3", "00000001", "building"],
        ["3/3", "00000002", "impossible"],
    ]
    assert "compile  _C for 8.0" in lines[-1]


def test_a_table_of_many_cells_shows_those_around_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", stream)
    with Board(options.Output(as_json=False, quiet=False)) as board:
        board.show(cells(*["built"] * 300, "building", *["planned"] * 300))
        table = board._table()
        assert board._live is not None
        assert table.row_count < board._live.console.height
        numbers = [str(cell) for cell in table.columns[0].cells]
    assert "301/601" in " ".join(numbers)


def test_without_a_terminal_each_change_of_a_cell_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with Board(options.Output(as_json=False, quiet=False)) as board:
        board.show(cells("planned", "planned"))
        board.show(cells("building", "planned"))
        board.show(cells("built", "planned"))
    assert capsys.readouterr().err.splitlines() == [
        "    building  1 of 2, 00000000 1.0",
        "       built  1 of 2, 00000000 1.0",
    ]


# --- kills -------------------------------------------------------------------------------------------------------


@pytest.mark.proof
def test_a_driver_killed_at_any_moment_goes_on_and_publishes_each_wheel_once(
    matrix: Matrix,
    scale: Callable[[int], int],
    chance: random.Random,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    alone = tmp_path / "alone"
    alone.mkdir()
    whole = Matrix(alone, capsys)
    began = time.monotonic()
    assert whole.report("--smoke", "static", "--index", alone / "index")[0] == 0
    took = time.monotonic() - began
    words = [sys.executable, "-m", "dca", *matrix.words("--smoke", "static", "--index", tmp_path / "index")]
    # A command of its own takes a second more, to start.
    killed = [killed_command(words, chance.uniform(0.3, took + 0.7)) for _ in range(scale(100))]
    code, done = matrix.report("--smoke", "static", "--index", tmp_path / "index")
    assert (code, len(done.wheels)) == (0, 2)
    assert set(states(done)) <= {"built", "unchanged"}
    assert matrix.wheels == whole.wheels
    assert {path.name: store.sha256_file(path) for path in (tmp_path / "index").rglob("*.whl")} == whole.wheels
    assert leftovers(tmp_path / "out") == []
    assert any(killed) or len(killed) < 10


@pytest.mark.long
@pytest.mark.slow
def test_jobs_on_many_machines_publish_each_wheel_once_to_one_index(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The commands of `--format json`, each three times and all at once, with caches of their own as other machines."""
    index = tmp_path / "index"
    matrix = Matrix(tmp_path, capsys)
    status, out, _ = matrix.run("--format", "json", "--smoke", "static", "--index", index)
    assert status == 0
    jobs = json.loads(out)["jobs"]
    assert len(jobs) == len(PLUGINS)
    machines = []
    for number, job in enumerate(jobs * 3):
        folder = tmp_path / f"machine-{number}"
        folder.mkdir()
        words = [*job["command"][1:], "--cache-dir", str(folder / "cache"), "--offline"]
        words[words.index("--out") + 1] = str(folder / "out")
        machines.append(subprocess.Popen([sys.executable, "-m", "dca", *words], cwd=folder, stdout=subprocess.DEVNULL))
    assert [machine.wait() for machine in machines] == [0] * len(machines)
    # Reports of the same wheel that another machine has replaced stay until `dca index gc`.
    assert check(index).wrong == ()
    records = read_records(Folder(index)).records()
    assert sorted(record.recipe for record in records) == PLUGINS
    for record in records:
        assert {"inspection", "provenance", "run-lock", "sbom", "smoke"} <= {proof.kind for proof in record.evidence}
