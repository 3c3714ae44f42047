"""Which cells share a wheel, in which order wheels are built, and which two cannot stand beside each other."""

from __future__ import annotations

import random

import pytest

from dca.catalogue.machine import Python
from dca.catalogue.plan import LocalTree, Request
from dca.foundation.errors import DcaError
from dca.matrix import jobs
from dca.matrix.cells import Cell
from dca.matrix.expansion import Expansion, Foretold, expand
from dca.pipeline.planned import Planned
from dca.resolve import World
from dca.resolve.jobs import choose_jobs, heaviest
from tests.resolve.test_resolve import RECIPES, machine, planned, reach, world

UPSTREAM = "vllm-0.10.2"
OTHER = Python(version="3.13.1", path="/usr/bin/python3.13", headers=True)
CUDA_REASON = DcaError("DCA-302", "no such toolkit.", why="it cannot be downloaded.", remedy="elsewhere.")


def told(name: str, request: Request, seen: World | None = None, refusal: DcaError | None = None) -> Foretold:
    plan = planned(request, seen)
    recipe = next(loaded.recipe for loaded in RECIPES if loaded.recipe.name == plan.recipe)
    made = Planned(plan, recipe.of_profile(plan.profile), (), reach(), request)
    return Foretold(Cell(options={"recipe": plan.recipe, "source": name}), made, refusal)


def upstream(*archs: str, groups: tuple[str, ...] = ()) -> Request:
    return Request(recipe=UPSTREAM, archs=archs, groups=groups)


def names(expansion: Expansion) -> list[list[str]]:
    return [[str(member.cell.options["source"]) for member in wheel.members] for wheel in expansion.wheels]


def test_cells_that_differ_in_python_alone_share_a_wheel() -> None:
    expansion = expand(
        [
            told("old", upstream("8.0")),
            told("other arch", upstream("9.0")),
            told("new", upstream("8.0"), world(machine(python=OTHER))),
        ]
    )
    assert names(expansion) == [["old", "new"], ["other arch"]]
    first = expansion.wheels[0]
    assert first.planned.plan.python == "3.11.7"
    assert first.has(first.members[1].cell.id)


def test_upstreams_own_cmake_gives_other_bytes_with_another_python() -> None:
    full = Request(recipe=UPSTREAM, archs=("8.0",), profile="full")
    seen, other = world(reached=reach(git=True)), world(machine(python=OTHER), reach(git=True))
    assert planned(full, seen).key != planned(full, other).key
    lean = Request(recipe=UPSTREAM, archs=("8.0",))
    assert planned(lean, seen).key == planned(lean, other).key


def test_a_wheel_is_built_by_a_cell_that_can_be_built_here() -> None:
    (wheel,) = expand([told("far", upstream("8.0"), refusal=CUDA_REASON), told("near", upstream("8.0"))]).wheels
    assert wheel.here
    assert names(Expansion((wheel,), ())) == [["near", "far"]]


def test_a_wheel_whose_cells_all_need_what_is_out_of_reach_is_not_built_here() -> None:
    (wheel,) = expand([told("far", upstream("8.0"), refusal=CUDA_REASON)]).wheels
    assert not wheel.here


def test_a_cell_without_a_plan_is_kept_with_its_reason() -> None:
    none = Foretold(Cell(options={"cuda": "13.0"}), None, CUDA_REASON)
    expansion = expand([none, told("one", upstream("8.0"))])
    assert expansion.impossible == (none,)
    assert names(expansion) == [["one"]]


def test_wheels_that_share_objects_stand_together_in_the_order_of_the_file() -> None:
    cells = [
        told("a", upstream("8.0")),
        told("b", upstream("9.0")),
        told("c", Request(recipe="vllm-0.9.2", archs=("8.0",))),
        # In a's build folder, and with its sources.
        told("d", upstream("8.0", groups=("index-only",))),
        told("e", Request(recipe="vllm-0.9.2", archs=("9.0",))),
        told("f", upstream("9.0", groups=("index-only",))),
    ]
    assert names(expand(cells)) == [["a"], ["d"], ["b"], ["f"], ["c"], ["e"]]


def test_the_same_matrix_gives_the_same_wheels_in_any_order_of_its_cells() -> None:
    cells = [told(str(number), upstream(arch)) for number, arch in enumerate(("8.0", "9.0", "8.0", "8.9", "9.0"))]
    found = {frozenset(members) for members in names(expand(cells))}
    assert found == {frozenset("02"), frozenset("14"), frozenset("3")}
    chance = random.Random(0)
    for _ in range(5):
        chance.shuffle(cells)
        assert {frozenset(members) for members in names(expand(cells))} == found


def test_two_wheels_of_one_file_name_are_an_error() -> None:
    dirty = Request(recipe=UPSTREAM, archs=("8.0",), source="/a", dirty=True)
    seen = [
        world(reached=reach(local={"source": LocalTree(path=path, kind="folder", tree=digest * 64)}))
        for path, digest in (("/a", "1"), ("/b", "2"))
    ]
    with pytest.raises(DcaError) as wrong:
        expand([told("one", dirty, seen[0]), told("two", dirty.model_copy(update={"source": "/b"}), seen[1])])
    assert wrong.value.code == "DCA-224"
    assert ".dirty-*.whl" in wrong.value.what
    assert "--source one" in wrong.value.why
    assert "--source two" in wrong.value.why
    assert "differ in sources" in wrong.value.why


@pytest.mark.parametrize("recipe", ["vllm-0.10.2", "vllm-0.9.2"])
@pytest.mark.parametrize("cores", [1, 2, 4, 7, 16, 64])
def test_a_jobs_memory_is_the_least_with_which_a_plan_uses_its_cores(recipe: str, cores: int) -> None:
    request = Request(recipe=recipe, archs=("8.0",))
    plan = planned(request)
    own = next(loaded.recipe for loaded in RECIPES if loaded.recipe.name == recipe)
    gib, job = jobs.memory(plan, own, cores), own.lean.job_memory_gib
    heavy = heaviest(own, "lean", plan.modules)
    assert choose_jobs(cores, gib, job, heavy).count == cores
    if cores > 1:
        assert choose_jobs(cores, gib - 1, job, heavy).count < cores
