"""A matrix of the toy recipe as jobs of a real Ray cluster."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca.foundation import documents, store
from dca.smoke import Smoke
from tests.matrix.test_running import PLUGINS, Matrix
from tests.support import link_cache
from tests.support.drivers import TWO, Driver, Site, check_eight, drivers, kill_at_random, run_own, states
from tests.support.ray_cluster import RayCluster, ray_cluster, ray_python
from tests.support.toy import Toy


@pytest.fixture(scope="module")
def python(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ray_python(tmp_path_factory.mktemp("venv") / "ray", cache)


@pytest.fixture(scope="module")
def ray(python: Path, toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    with ray_cluster(tmp_path_factory.mktemp("ray"), python, toy.env) as one:
        yield one


@pytest.fixture
def large(python: Path, toy: Toy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayCluster]:
    """A cluster whose nodes have room for a real wheel's job."""
    with ray_cluster(tmp_path_factory.mktemp("ray"), python, toy.env, gib=20) as one:
        yield one


@pytest.fixture
def fresh(toy: Toy, ray: RayCluster, cache: store.Store, tmp_path: Path) -> Callable[[], Driver]:
    """Drivers with a cache each, in which nobody has compiled anything."""
    return drivers(toy, cache, site(ray), tmp_path)


def site(ray: RayCluster) -> Site:
    return Site("ray", ray.within, str(ray.python))


@pytest.mark.whole
@pytest.mark.network
def test_each_wheel_is_a_job_and_has_the_bytes_of_one_built_alone(
    toy: Toy, ray: RayCluster, alone: dict[str, str], tmp_path: Path
) -> None:
    driver = Driver(toy, site(ray), tmp_path / "out")
    code, done, err = driver.run(toy.write('with = ["", "more", "broken"]'))
    assert (code, states(done)) == (6, ["built", "built", "failed"]), err
    assert driver.wheels == alone
    assert sorted(driver.published) == sorted(alone.items())
    (trouble,) = [cell.trouble for cell in done.failed]
    assert trouble is not None
    assert (trouble.code, [known.id for known in trouble.known]) == ("DCA-603", ["gcc-too-new"])
    assert all(cell.node and cell.job for cell in done.cells)
    # What is there needs no job.
    code, again, err = driver.run(toy.write(TWO))
    assert (code, states(again), {cell.job for cell in again.cells}) == (0, ["unchanged", "unchanged"], {""}), err


@pytest.mark.whole
@pytest.mark.network
def test_eight_cells_are_built_once_per_plan(
    large: RayCluster, eight: str, eight_alone: dict[str, str], cache: store.Store, tmp_path: Path
) -> None:
    (tmp_path / "cache").mkdir()
    place, out = link_cache(tmp_path / "cache", cache), tmp_path / "out"
    code, done, err = run_own(site(large), out, place, eight)
    assert code == 0, err
    assert check_eight(done, out) == eight_alone
    assert len({cell.job for cell in done.cells if cell.job}) == 4


@pytest.mark.whole
@pytest.mark.network
def test_wheels_are_proven_on_each_kind_of_node(ray: RayCluster, tmp_path: Path) -> None:
    plugins = f"recipe = {json.dumps(PLUGINS)}"
    code, done, err = run_own(site(ray), tmp_path / "out", tmp_path / "cache", plugins, "--smoke", "nodes")
    assert (code, states(done), len(done.added)) == (0, ["built", "built"], 2), err
    assert [(one.kind, one.state) for one in done.nodes] == [("gpu:A100", "passed"), ("gpu:H100", "passed")] * 2
    assert all(documents.read(Smoke, Path(one.report)).node == one.kind for one in done.nodes)
    assert len({one.job for one in done.nodes}) == 4


@pytest.mark.whole
@pytest.mark.network
def test_what_no_node_has_room_for_and_a_head_that_does_not_answer_are_one_message(
    toy: Toy, ray: RayCluster, cache: store.Store, fresh: Callable[[], Driver]
) -> None:
    driver = fresh()
    recipe = toy.folder / "tool/build/recipes/toy.toml"
    text = recipe.read_text()
    recipe.write_text(text.replace("job_memory_gib = 0.5", "job_memory_gib = 40"))
    try:
        code, done, err = driver.run(toy.write('arch = ["8.0", "9.0"]'))
    finally:
        recipe.write_text(text)
    assert (code, states(done)) == (1, ["failed", "failed"]), err
    (trouble,) = {cell.trouble for cell in done.failed}
    assert trouble is not None
    assert (trouble.code, trouble.what) == ("DCA-171", "no node of the Ray cluster has room for the job.")
    assert "the nodes have 4 cores and 6 GiB." in trouble.why
    process = driver.start(toy.write(TWO), RAY_ADDRESS="http://127.0.0.1:9")
    _, err = process.communicate()
    assert process.returncode == 1
    assert "DCA-171: Ray rejected the request, or does not answer." in err
    assert "Traceback" not in err


@pytest.mark.long
@pytest.mark.network
@pytest.mark.proof
def test_workers_and_drivers_killed_at_random_leave_every_wheel_once_as_built_alone(
    fresh: Callable[[], Driver], alone: dict[str, str], scale: Callable[[int], int], chance: random.Random
) -> None:
    kill_at_random(fresh, (scale(20), scale(10)), chance, alone)


def test_a_machine_without_ray_says_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = Matrix(tmp_path, capsys).run("--executor", "ray")
    assert code == 1
    assert "DCA-103: Ray is not installed, which --executor ray requires." in err
    assert "'ray[default]>=2.40'" in err
