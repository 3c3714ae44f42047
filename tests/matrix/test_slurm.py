"""A matrix of the toy recipe as jobs of a real Slurm: what is built, what a cluster rejects, and what dies."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca.foundation import documents, store
from dca.pipeline.wheel import Made
from dca.smoke import Smoke
from tests.matrix.test_running import PLUGINS
from tests.support import link_cache, wait_for
from tests.support.drivers import TWO, Driver, Site, check_eight, drivers, kill_at_random, run_own, states
from tests.support.slurm import WATCHED, Cluster, cluster, lines, workers
from tests.support.toy import Toy

pytestmark = pytest.mark.network


def site(slurm: Cluster) -> Site:
    return Site("slurm", slurm.within)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as one:
        yield one


@pytest.fixture
def fresh(toy: Toy, slurm: Cluster, cache: store.Store, tmp_path: Path) -> Callable[[], Driver]:
    """Drivers with a cache each, in which nobody has compiled anything."""
    return drivers(toy, cache, site(slurm), tmp_path)


@pytest.mark.whole
def test_each_wheel_is_a_job_and_has_the_bytes_of_one_built_alone(
    toy: Toy, slurm: Cluster, alone: dict[str, str], tmp_path: Path
) -> None:
    driver, before = Driver(toy, site(slurm), tmp_path / "out"), len(slurm.jobs())
    code, done, err = driver.run(toy.write('with = ["", "more", "broken"]'), "--slurm", "partition=all")
    assert (code, states(done)) == (6, ["built", "built", "failed"]), err
    assert driver.wheels == alone
    assert sorted(driver.published) == sorted(alone.items())
    # The third one's report came from its node too.
    (trouble,) = [cell.trouble for cell in done.failed]
    assert trouble is not None
    assert (trouble.code, [known.id for known in trouble.known]) == ("DCA-603", ["gcc-too-new"])
    assert {cell.node for cell in done.cells} == {"n1", "n2"}
    assert len({cell.job for cell in done.cells if cell.job.isdigit()}) == 3
    assert len(slurm.jobs()) == before + 3
    # What is there needs no job.
    code, again, err = driver.run(toy.write(TWO))
    assert (code, states(again), len(slurm.jobs())) == (0, ["unchanged", "unchanged"], before + 3), err
    assert driver.wheels == alone


@pytest.mark.whole
def test_eight_cells_are_built_once_per_plan(
    slurm: Cluster, eight: str, eight_alone: dict[str, str], cache: store.Store, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    place, out = link_cache(tmp_path / "cache", cache), tmp_path / "out"
    # The nodes have less than such a job asks for.
    code, done, err = run_own(site(slurm), out, place, eight, "--slurm", "mem=5G")
    assert code == 0, err
    assert check_eight(done, out) == eight_alone
    assert len({cell.job for cell in done.cells if cell.job}) == 4


@pytest.mark.whole
def test_wheels_are_proven_on_each_kind_of_node(slurm: Cluster, tmp_path: Path) -> None:
    before = len(slurm.jobs())
    words = (site(slurm), tmp_path / "out", tmp_path / "cache", f"recipe = {json.dumps(PLUGINS)}")
    code, done, err = run_own(*words, "--smoke", "nodes", "--smoke-slurm", "mem=2G")
    assert (code, states(done), len(done.added)) == (0, ["built", "built"], 2), err
    # The kind says where it runs.
    assert [(one.kind, one.state, one.node) for one in done.nodes] == [
        ("gpu:a100", "passed", "n1"),
        ("gpu:h100", "passed", "n2"),
    ] * 2
    assert all(documents.read(Smoke, Path(one.report)).node == one.kind for one in done.nodes)
    assert len(slurm.jobs()) == before + 2 + 4
    # What is built and has passed needs no job.
    code, done, err = run_own(*words, "--smoke", "nodes")
    assert (code, states(done), {one.state for one in done.nodes}) == (0, ["unchanged", "unchanged"], {"passed"}), err
    assert len(slurm.jobs()) == before + 6


@pytest.mark.whole
@pytest.mark.wheel
def test_the_level_on_a_node_is_what_a_stand_in_driver_of_it_allows(
    slurm: Cluster, made: Made, cache: store.Store, tmp_path: Path
) -> None:
    program = tmp_path / "bin/nvidia-smi"
    program.parent.mkdir()
    # Programs do not get the variables of the job; the node n1 is the one where this folder is a disk.
    program.write_text(f'#!/bin/sh\ngrep -q " {slurm.small} " /proc/self/mounts || exit 9\necho "Tesla T4, 7.5"\n')
    program.chmod(0o755)
    out = tmp_path / "out"
    out.symlink_to(Path(made.wheel).parent)
    table = f'recipe = "{json.loads((Path(made.run) / "plan.json").read_text())["recipe"]}"'
    path = f"{slurm.path}:{program.parent}:{os.environ['PATH']}"
    words = ("--smoke", "nodes", "--smoke-slurm", "mem=5G")
    code, done, err = run_own(site(slurm), out, cache.root, table, *words, PATH=path)
    assert (code, states(done)) == (0, ["unchanged"]), err
    old, none = done.nodes
    assert (old.kind, old.state, old.node) == ("gpu:a100", "not run", "n1")
    assert old.trouble is not None
    assert old.trouble.code == "DCA-841"
    assert "has no code for Tesla T4 (7.5)." in old.trouble.what
    assert (none.kind, none.state, none.node) == ("gpu:h100", "passed", "n2")
    assert none.proven is not None
    assert none.proven.level == "cpu"


@pytest.mark.whole
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--slurm", "partition=nope"), "invalid partition specified: nope"),
        (("--slurm", "mem=99G"), "Memory specification can not be satisfied"),
        (("--slurm", "account=a", "--slurm", "no-such-option=1"), "unrecognized option '--no-such-option=1'"),
    ],
)
def test_what_a_cluster_rejects_is_one_message(
    words: tuple[str, ...], said: str, toy: Toy, slurm: Cluster, tmp_path: Path
) -> None:
    driver = Driver(toy, site(slurm), tmp_path / "out")
    process = driver.start(toy.write('arch = ["8.0", "9.0"]'), *words)
    code, done, err = driver.end(process)
    assert (code, states(done)) == (1, ["failed", "failed"])
    troubles = {cell.trouble for cell in done.failed}
    assert len(troubles) == 1
    (trouble,) = troubles
    assert trouble is not None
    assert trouble.code == "DCA-171"
    assert said in trouble.why
    assert "Traceback" not in err
    # Nothing is left that a next run would wait for.
    assert list(toy.cache.glob("run/matrix-*/slurm/*/*")) == [] or not list(
        toy.cache.glob("run/matrix-*/slurm/*/*.pkl")
    )


@pytest.mark.whole
def test_a_disk_that_fills_on_one_node_fails_the_cells_there_alone(
    toy: Toy, slurm: Cluster, alone: dict[str, str], fresh: Callable[[], Driver]
) -> None:
    driver = fresh()
    code, done, err = driver.run(toy.write(TWO), TMPDIR=str(slurm.small))
    assert (code, sorted(states(done))) == (1, ["built", "failed"]), err
    (failed,) = done.failed
    assert failed.trouble is not None
    assert (failed.node, failed.trouble.code) == ("n1", "DCA-101"), failed.trouble
    assert driver.wheels.items() < alone.items()
    # On a node with room it goes on.
    code, done, err = driver.run(toy.write(TWO), "--slurm", "nodelist=n2", TMPDIR=str(slurm.small))
    assert (code, sorted(states(done))) == (0, ["built", "unchanged"]), err
    assert driver.wheels == alone


@pytest.mark.whole
def test_a_cell_that_dies_each_time_is_given_up_and_a_cancelled_one_at_once(
    toy: Toy, slurm: Cluster, tmp_path: Path
) -> None:
    driver, before = Driver(toy, site(slurm), tmp_path / "out"), len(slurm.jobs())
    process = driver.start(toy.write('arch = ["9.0"]'))
    killed = set[int]()
    while process.poll() is None:
        for worker in set(workers(driver.out)) - killed:
            os.kill(worker, signal.SIGKILL)
            killed.add(worker)
        time.sleep(0.1)
    code, done, err = driver.end(process)
    (trouble,) = [cell.trouble for cell in done.failed]
    assert trouble is not None
    assert (code, trouble.code, len(slurm.jobs()) - before) == (1, "DCA-170", 4), err
    assert "4 jobs of this cell died" in trouble.why

    process = driver.start(toy.write('arch = ["9.0"]'))
    assert wait_for(lambda: bool(workers(driver.out)) or process.poll() is not None, 60.0)
    slurm.run("scancel", f"--user={os.getuid()}")
    code, done, err = driver.end(process)
    (trouble,) = [cell.trouble for cell in done.failed]
    assert trouble is not None
    assert (code, trouble.code, len(slurm.jobs()) - before) == (1, "DCA-170", 5), err
    assert "CANCELLED" in trouble.why
    # Neither left anything half done: the same command builds it.
    code, done, err = driver.run(toy.write('arch = ["9.0"]'))
    assert (code, states(done)) == (0, ["built"]), err


@pytest.mark.whole
def test_a_cell_whose_time_runs_out_says_how_to_give_it_more_and_the_others_go_on(
    slurm: Cluster, alone: dict[str, str], fresh: Callable[[], Driver]
) -> None:
    driver, before = fresh(), len(slurm.jobs())
    process = driver.start(driver.toy.write(TWO), "--slurm", "time=1")
    while process.poll() is None:
        # A compiler that gets no further; dca itself can answer the signal that a job gets at its end.
        for one, line in lines():
            if "csrc/more.cu" in line and str(driver.toy.cache) in line:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(one, signal.SIGSTOP)
        time.sleep(0.1)
    code, done, err = driver.end(process)
    assert (code, sorted(states(done))) == (1, ["built", "failed"]), err
    (trouble,) = [cell.trouble for cell in done.failed]
    assert trouble is not None
    assert trouble.code == "DCA-170"
    assert "Slurm says TIMEOUT" in trouble.why
    assert "`--slurm time=MINUTES`" in trouble.remedy
    assert slurm.jobs()[before:].count("TIMEOUT") >= 4
    assert driver.wheels.items() < alone.items()
    code, done, err = driver.run(driver.toy.write(TWO), "--slurm", "time=30")
    assert (code, sorted(states(done))) == (0, ["built", "unchanged"]), err
    assert driver.wheels == alone


@pytest.mark.whole
def test_a_cell_that_takes_too_much_memory_is_given_up_at_once_and_the_others_go_on(
    alone: dict[str, str], fresh: Callable[[], Driver], tmp_path_factory: pytest.TempPathFactory
) -> None:
    with cluster(tmp_path_factory.mktemp("slurm"), WATCHED) as slurm:
        driver = fresh()
        driver = Driver(driver.toy, site(slurm), driver.out)
        code, done, err = driver.run(driver.toy.write('with = ["hungry", "more"]'), "--slurm", "mem=1500M")
        assert (code, sorted(states(done))) == (1, ["built", "failed"]), err
        (trouble,) = [cell.trouble for cell in done.failed]
        assert trouble is not None
        assert trouble.code == "DCA-170"
        assert "took more memory than it asked for" in trouble.why
        assert "`--slurm mem=" in trouble.remedy
        # The same would happen again.
        assert len(slurm.jobs()) == 2
        assert driver.wheels.items() < alone.items()


@pytest.mark.whole
def test_a_driver_that_is_stopped_says_how_to_end_its_jobs(toy: Toy, slurm: Cluster, tmp_path: Path) -> None:
    driver = Driver(toy, site(slurm), tmp_path / "out")
    process = driver.start(toy.write('arch = ["9.0"]'))
    assert wait_for(lambda: bool(workers(driver.out)), 60.0)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate()
    assert process.returncode == 130
    (command,) = [line.split("`")[1] for line in err.splitlines() if "scancel" in line]
    slurm.run(*command.split())
    assert wait_for(slurm.idle, 30.0), slurm.run("squeue")


@pytest.mark.long
@pytest.mark.proof
def test_workers_and_drivers_killed_at_random_leave_every_wheel_once_as_built_alone(
    fresh: Callable[[], Driver],
    slurm: Cluster,
    alone: dict[str, str],
    scale: Callable[[int], int],
    chance: random.Random,
) -> None:
    kill_at_random(fresh, (scale(20), scale(10)), chance, alone)
    assert slurm.idle() or wait_for(slurm.idle, 30.0), slurm.run("squeue")


@pytest.mark.whole
def test_a_node_that_fails_hands_its_cell_to_the_other_one(
    toy: Toy, alone: dict[str, str], cache: store.Store, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    (tmp_path / "cache").mkdir()
    one = toy.with_cache(link_cache(tmp_path / "cache", cache))
    with cluster(tmp_path_factory.mktemp("slurm")) as slurm:
        driver = Driver(one, site(slurm), tmp_path / "out")
        process = driver.start(toy.write(TWO))
        assert wait_for(lambda: len(workers(driver.out)) >= 4, 120.0)
        slurm.stop("n1")
        code, done, err = driver.end(process)
        assert (code, states(done)) == (0, ["built", "built"]), err
        assert {cell.node for cell in done.cells} == {"n2"}
        assert driver.wheels == alone
