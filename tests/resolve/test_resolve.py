"""The resolver: every choice and every refusal, without a file, a clock or a network."""

from __future__ import annotations

import dataclasses
import itertools
import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from packaging.version import Version

from dca.catalogue import compiler_caches, host_packages, toolkits, torch_releases
from dca.catalogue.compiler_caches import CacheOption, FoundCache
from dca.catalogue.host_packages import Installer
from dca.catalogue.machine import Compiler, Gpu, Machine, Python
from dca.catalogue.model_needs import Model, lacks
from dca.catalogue.plan import (
    Cannot,
    KeptKernels,
    LocalTree,
    Plan,
    PlannedModule,
    PlannedToolkit,
    Reach,
    Reachability,
    Reason,
    Request,
)
from dca.catalogue.recipes import Cuda, GitSource, Loaded, compiling, load_all
from dca.catalogue.toolkits import FoundToolkit
from dca.foundation import documents
from dca.resolve import World, resolve, revision
from dca.resolve.full import nearest
from dca.resolve.jobs import RESERVE_GIB, choose_jobs, sources
from tests.support import examples

RECIPES = compiling(load_all())
DRIVERS = toolkits.load_versions().drivers
NAMES = [loaded.recipe.name for loaded in RECIPES]
FORK, UPSTREAM = "qwen-fork", "vllm-0.10.2"
GCC12 = Compiler(path="/usr/bin/g++", major=12, version="12.2.0")
PYTHON = Python(version="3.11.7", path="/usr/bin/python3.11", headers=True)
# A user with sudo on a distribution whose own g++ is 12.
DEBIAN = Installer(commands=host_packages.load().distributions[0].commands, gcc=12, prefix="sudo")
TRIXIE = DEBIAN.model_copy(update={"gcc": 14})
CUDA13 = FoundToolkit(path="/usr/local/cuda-13.0", version="13.0.88", origin="nvcc on PATH")
URLS = sorted(
    {
        url
        for loaded in RECIPES
        for source in [loaded.recipe.source, *(companion.source for companion in loaded.recipe.companions.values())]
        if isinstance(source, GitSource)
        for url in source.urls
    }
    | {
        url
        for loaded in RECIPES
        for companion in loaded.recipe.companions.values()
        for submodule in companion.submodules
        for url in submodule.urls
    }
)


def machine(**changes: object) -> Machine:
    plain = Machine(
        system="Linux",
        processor="x86_64",
        cores=2,
        memory_gib=23.5,
        compilers=(GCC12,),
        python=PYTHON,
        gpus=(),
        toolkits=(CUDA13,),
    )
    return plain.model_copy(update=changes)


def reach(
    *,
    index: bool = True,
    git: bool = False,
    apt: bool = True,
    redist: bool = False,
    local: dict[str, LocalTree] | None = None,
) -> Reach:
    places = {"index": Reachability(ok=index, why="" if index else "no answer")}
    places |= {url: Reachability(ok=git, why="" if git else "no such host") for url in URLS}
    places |= {
        f"apt:{source.name}": Reachability(ok=apt, why="" if apt else "no mirror") for source in toolkits.load_sources()
    }
    places |= {
        f"redist:{source.name}": Reachability(ok=redist, why="" if redist else "no such host")
        for source in toolkits.load_sources()
    }
    return Reach(places=places, local=local or {})


def world(seen: Machine | None = None, reached: Reach | None = None, recipes: tuple[Loaded, ...] = RECIPES) -> World:
    return World(
        recipes=recipes,
        toolkits=toolkits.load_sources(),
        cuda=toolkits.load_versions(),
        caches=compiler_caches.load_all(),
        torch=torch_releases.load(),
        machine=seen or machine(),
        reach=reached or reach(),
    )


def planned(request: Request, seen: World | None = None) -> Plan:
    outcome = resolve(request, seen or world())
    assert isinstance(outcome, Plan), outcome
    return outcome


def toolkit_of(plan: Plan) -> PlannedToolkit:
    assert plan.toolkit is not None
    return plan.toolkit


def only_reason(request: Request, seen: World | None = None) -> Reason:
    """The reason against the one recipe of a request."""
    outcome = resolve(request, seen or world())
    assert isinstance(outcome, Cannot), outcome.version
    ((reason,),) = (over.reasons for over in outcome.passed_over)
    return reason


def refused(request: Request, seen: World | None = None) -> dict[str, list[str]]:
    outcome = resolve(request, seen or world())
    assert isinstance(outcome, Cannot), outcome.version
    return {over.name: [reason.code for reason in over.reasons] for over in outcome.passed_over}


def test_a_bare_machine_gets_upstream_with_a_toolkit_brought() -> None:
    plan = planned(Request())
    assert plan.recipe == UPSTREAM
    assert (toolkit_of(plan).name, plan.cuda, plan.archs) == ("debian-12.4", "12.4", ("8.0", "9.0"))
    assert plan.version == f"0.10.2+dca{plan.series_revision}.cu124.lean.sm80.sm90"
    assert {module.name: module.origin for module in plan.modules} == {"_C": "compiled", "_vllm_fa2_C": "copied"}


def test_every_recipe_passed_over_has_its_reason() -> None:
    plan = planned(Request())
    over = {passed.name: " ".join(reason.text for reason in passed.reasons) for passed in plan.passed_over}
    assert "no such host" in over[FORK]
    assert set(NAMES) <= {*over, plan.recipe}


def test_a_toolkit_of_another_major_version_is_passed_over_with_the_reason() -> None:
    over = {passed.name: passed.reasons[0].text for passed in planned(Request()).passed_over}
    (text,) = [text for name, text in over.items() if CUDA13.path in name]
    assert "CUDA 12.8" in text


def test_every_choice_has_a_reason() -> None:
    plan = planned(Request(cuda="12.1", archs=("9.0",)))
    assert all(choice.reason.endswith(".") for choice in plan.choices)
    subjects = {choice.subject for choice in plan.choices}
    assert subjects >= {"recipe", "source", "toolkit", "host compiler", "archs", "python", "groups", "version", "CUDA"}


def test_the_three_checks_of_versions_stand_in_the_plan() -> None:
    assert {check.subject for check in planned(Request()).checks} == {"CUDA", "Python", "transformers"}


def test_another_cuda_of_the_major_version_is_substituted_and_said() -> None:
    plan = planned(Request(cuda="12.1"))
    assert plan.substituted
    assert plan.cuda == "12.4"
    (choice,) = [choice for choice in plan.choices if choice.subject == "CUDA"]
    assert choice.value == "12.4 instead of 12.1"
    assert "525" in choice.reason


def test_the_exact_cuda_is_not_called_substituted() -> None:
    plan = planned(Request(recipe=UPSTREAM, cuda="12.4", archs=("8.0", "9.0+PTX")), world(reached=reach(git=True)))
    assert not plan.substituted
    assert plan.ptx == ("9.0",)
    assert plan.warnings == ()


@pytest.mark.parametrize("copied", [{"prebuilt": ("all",)}, {"prebuilt_whole": True}])
def test_a_plan_that_leaves_an_arch_out_is_that_of_the_others(copied: dict[str, Any]) -> None:
    """As a wheel is built again: its archs are named, and no driver is too old."""
    request = Request(cuda="12.1", **copied)
    plan = planned(request)
    assert (plan.archs, plan.drivers) == (("8.0",), {"8.0": "525"})
    assert plan.version.endswith(".sm80")
    again = planned(request.model_copy(update={"archs": plan.archs, "driver": "9999"}))
    assert (again.key, again.version) == (plan.key, plan.version)
    both = planned(request.model_copy(update={"driver": "9999"}))
    assert (both.archs, both.drivers) == (("8.0", "9.0"), {"8.0": "525", "9.0": "570"})
    assert both.key != plan.key


def test_a_driver_does_not_change_what_is_built() -> None:
    assert planned(Request(driver="550.54.15")).key == planned(Request()).key


def test_strict_cuda_refuses_a_substitute() -> None:
    assert refused(Request(recipe=UPSTREAM, cuda="12.1", strict_cuda=True)) == {UPSTREAM: ["DCA-302"]}
    assert planned(Request(recipe=UPSTREAM, cuda="12.4", strict_cuda=True)).cuda == "12.4"


@pytest.mark.parametrize("cuda", ["11.8", "13.0", "13.2"])
def test_a_cuda_that_no_recipe_supports_is_refused_by_each(cuda: str) -> None:
    codes = refused(Request(cuda=cuda))
    assert set(codes) == set(NAMES)
    assert all("DCA-303" in text for text in codes.values())


@pytest.mark.parametrize(
    ("cuda", "kits", "taken"),
    [
        # What nvidia-smi prints: no toolkit has that line, so the newest that is not newer compiles.
        ("12.7", ("12.4.131", "12.6.85", "12.8.93"), "12.6"),
        ("12.7", ("12.8.93", "12.4.131"), "12.4"),
        ("12.0", ("12.4.131", "12.6.85"), "12.4"),
        ("12.7", ("12.8.93", "12.9.86"), "12.8"),
        ("12.5", ("12.6.85", "12.4.131"), "12.4"),
        ("12.8", ("12.9.86", "12.4.131"), "12.4"),
    ],
)
def test_a_requested_cuda_that_is_no_toolkit_takes_the_newest_that_is_not_newer(
    cuda: str, kits: tuple[str, ...], taken: str
) -> None:
    found = tuple(FoundToolkit(path=f"/cuda-{kit}", version=kit, origin="/usr/local") for kit in kits)
    plan = planned(Request(recipe=UPSTREAM, cuda=cuda), world(machine(toolkits=found), reach(apt=False)))
    assert plan.cuda == taken
    (why,) = [choice.reason for choice in plan.choices if choice.subject == "CUDA"]
    assert ("nvidia-smi" in why) == (cuda in ("12.7", "12.0"))


@pytest.mark.parametrize(
    ("recipe", "version", "tried", "fine"),
    [
        (FORK, "12.2.140", False, True),
        (FORK, "12.5.82", False, False),
        (FORK, "12.5.82", True, True),
        (FORK, "12.0.140", True, True),
        (UPSTREAM, "12.7.1", False, False),  # Nothing is known of such an nvcc.
        (UPSTREAM, "12.7.1", True, True),
        (UPSTREAM, "12.2.140", False, False),
        (UPSTREAM, "12.2.140", True, True),
        (UPSTREAM, "13.1.48", True, False),
        (UPSTREAM, "11.8.89", True, False),
    ],
)
def test_an_untried_toolkit_inside_the_range_is_taken_with_a_warning_and_outside_only_on_request(
    recipe: str, version: str, tried: bool, fine: bool
) -> None:
    kit = FoundToolkit(path="/cuda", version=version, origin="--toolkit")
    request = Request(recipe=recipe, toolkit="/cuda", try_toolkit=tried)
    seen = world(machine(toolkits=(kit,)), reach(git=True))
    if not fine:
        assert only_reason(request, seen).code == "DCA-302"
        return
    plan = planned(request, seen)
    assert toolkit_of(plan).version == version
    assert f"CUDA {kit.line} has not been tried with {recipe}" in " ".join(plan.warnings)
    assert toolkit_of(planned(Request(cuda="12.4"), world(machine(toolkits=(kit,))))).version == "12.4.131"


def test_a_substitution_gives_the_reason_against_the_requested_toolkit() -> None:
    kit = FoundToolkit(path="/usr/local/cuda-12.1", version="12.1.105", origin="/usr/local/cuda-12.1")
    gcc13 = Compiler(path="/usr/bin/g++", major=13, version="13.2.0")
    plan = planned(Request(cuda="12.1"), world(machine(toolkits=(kit,), compilers=(gcc13,)), reach(git=True)))
    (choice,) = [choice for choice in plan.choices if choice.subject == "CUDA"]
    assert choice.value == "12.4 instead of 12.1"
    assert "CUDA 12.1.105 (/usr/local/cuda-12.1): it needs gcc 12 or older; installed g++: 13.2.0." in choice.reason


def test_a_found_toolkit_that_fits_is_taken_before_one_is_brought() -> None:
    kit = FoundToolkit(path="/opt/cuda", version="12.4.99", origin="CUDA_HOME")
    plan = planned(Request(cuda="12.4"), world(machine(toolkits=(CUDA13, kit))))
    assert toolkit_of(plan).path == "/opt/cuda"


def test_the_nearest_toolkit_wins() -> None:
    kit = FoundToolkit(path="/opt/cuda", version="12.8.1", origin="CUDA_HOME")
    seen = world(machine(toolkits=(kit,)))
    assert planned(Request(), seen).cuda == "12.8"
    assert planned(Request(cuda="12.1"), seen).cuda == "12.4"


def passed(plan: Plan) -> dict[str, str]:
    """Why each toolkit was passed over, by how the plan calls it."""
    return {passed.name: passed.reasons[0].text for passed in plan.passed_over if passed.name.startswith("toolkit ")}


def test_where_the_archives_of_a_release_can_be_had_they_come_before_other_packages() -> None:
    plan = planned(Request(cuda="12.4"), world(reached=reach(redist=True)))
    assert (toolkit_of(plan).name, toolkit_of(plan).path) == ("nvidia-12.4", "")
    (text,) = [text for name, text in passed(plan).items() if "Debian" in name]
    assert text == "lower precedence than NVIDIA's redistributable archives."
    (choice,) = [choice for choice in plan.choices if choice.subject == "toolkit"]
    assert "54 MB" in choice.reason


def test_the_release_that_is_asked_for_is_brought_where_it_can_be_had() -> None:
    seen = world(reached=reach(redist=True))
    assert planned(Request(), seen).cuda == "12.8"
    strict = planned(Request(recipe=UPSTREAM, cuda="12.8", strict_cuda=True), seen)
    assert (toolkit_of(strict).name, strict.substituted) == ("nvidia-12.8", False)


def test_of_two_that_are_as_near_the_older_is_taken_and_without_a_request_the_smaller_download() -> None:
    plan = planned(Request(cuda="12.6"), world(reached=reach(redist=True, apt=False)))
    assert toolkit_of(plan).name == "nvidia-12.4"
    assert "CUDA 12.8 is newer than 12.6." in passed(plan).values()
    between = tuple(
        loaded.model_copy(
            update={
                "recipe": loaded.recipe.model_copy(
                    update={"cuda": Cuda(official=("12.6",), supported=("12.4", "12.8"))}
                )
            }
        )
        for loaded in RECIPES
    )
    plan = planned(Request(recipe=UPSTREAM), world(reached=reach(redist=True, apt=False), recipes=between))
    assert toolkit_of(plan).name == "nvidia-12.4"
    assert "CUDA 12.4 is the smaller download." in passed(plan).values()


def test_a_toolkit_on_the_machine_comes_before_one_that_is_brought() -> None:
    kit = FoundToolkit(path="/opt/cuda", version="12.4.99", origin="CUDA_HOME")
    plan = planned(Request(cuda="12.4"), world(machine(toolkits=(kit,)), reach(redist=True)))
    assert toolkit_of(plan).path == "/opt/cuda"
    assert list(passed(plan).values()).count("/opt/cuda is already installed.") == 2


def test_only_the_places_that_a_toolkit_takes_parts_from_must_be_in_reach() -> None:
    plan = planned(Request(cuda="12.4"), world(reached=reach(redist=True, apt=False)))
    assert toolkit_of(plan).name == "nvidia-12.4"
    over = passed(planned(Request(cuda="12.4")))
    (text,) = [text for name, text in over.items() if "12.4.131 (NVIDIA" in name]
    assert text == "it cannot be downloaded: no such host."


def headers_choice(plan: Plan) -> str | None:
    return next(
        (f"{choice.value}: {choice.reason}" for choice in plan.choices if choice.subject == "CUDA headers"), None
    )


@pytest.mark.parametrize(
    ("glibc", "said"),
    [
        ("2.36", "no effect with this machine's glibc 2.36."),
        ("", "no effect with this machine's C library."),
        ("2.41", "glibc 2.41 declares sinpi, cospi, sinpif and cospif with noexcept, and this CUDA's header without"),
        ("2.42", "glibc 2.42 declares rsqrt and rsqrtf with noexcept, and this CUDA's header without"),
    ],
)
def test_the_headers_of_a_downloaded_toolkit_are_fixed_whatever_the_glibc(glibc: str, said: str) -> None:
    plan = planned(Request(), world(machine(glibc=glibc)))
    assert list(toolkit_of(plan).fixes) == ["sinpi", "rsqrt"]
    choice = headers_choice(plan)
    assert choice is not None
    assert choice.startswith("fixed for glibc 2.41 and later: ")
    assert said in choice
    assert plan.key == planned(Request()).key


def test_the_headers_of_a_toolkit_on_the_machine_are_fixed_only_where_its_glibc_needs_it() -> None:
    own = FoundToolkit(
        path="/opt/cuda", version="12.4.99", origin="CUDA_HOME", fixes={"sinpi": "needed", "rsqrt": "needed"}
    )
    already = own.model_copy(update={"fixes": {"sinpi": "not needed", "rsqrt": "needed"}})
    fixes = {}
    for name, kit, glibc in (
        ("old", own, "2.36"),
        ("new", own, "2.41"),
        ("newest", own, "2.43"),
        ("fixed by hand", already, "2.41"),
    ):
        plan = planned(Request(cuda="12.4"), world(machine(toolkits=(kit,), glibc=glibc)))
        assert toolkit_of(plan).path == "/opt/cuda"
        fixes[name] = list(toolkit_of(plan).fixes)
        assert (headers_choice(plan) is not None) == bool(toolkit_of(plan).fixes)
    assert fixes == {"old": [], "new": ["sinpi"], "newest": ["sinpi", "rsqrt"], "fixed by hand": []}
    plan = planned(Request(cuda="12.4"), world(machine(toolkits=(own,), glibc="2.41")))
    assert "/opt/cuda is not changed; a folder of links in the cache has the fixed header." in str(headers_choice(plan))


def test_a_toolkit_whose_headers_cannot_be_fixed_is_passed_over_where_its_glibc_needs_it() -> None:
    odd = FoundToolkit(path="/opt/cuda", version="12.4.99", origin="CUDA_HOME", fixes={"sinpi": "impossible"})
    fine = planned(Request(cuda="12.4"), world(machine(toolkits=(odd,), glibc="2.40")))
    assert toolkit_of(fine).path == "/opt/cuda"
    plan = planned(Request(cuda="12.4"), world(machine(toolkits=(odd,), glibc="2.41")))
    assert toolkit_of(plan).path == ""
    assert any("crt/math_functions.h is not as NVIDIA published it" in text for text in passed(plan).values())


def test_an_incomplete_toolkit_is_passed_over_by_what_it_lacks() -> None:
    kit = FoundToolkit(path="/opt/cuda", version="12.8.1", origin="CUDA_HOME", missing=("cicc",))
    plan = planned(Request(), world(machine(toolkits=(kit,))))
    assert plan.cuda == "12.4"
    assert any("no cicc" in passed.reasons[0].text for passed in plan.passed_over)


def test_the_newest_compiler_within_the_bound_is_taken() -> None:
    several = tuple(Compiler(path=f"/usr/bin/g++-{n}", major=n, version=f"{n}.1.0") for n in (15, 14, 13, 12))
    assert planned(Request(), world(machine(compilers=several))).host_compiler == "/usr/bin/g++-13"


def test_archs_are_those_of_the_gpus_found() -> None:
    seen = world(machine(gpus=(Gpu(name="A100", arch="8.0"), Gpu(name="A100", arch="8.0"))))
    assert planned(Request(), seen).archs == ("8.0",)


@pytest.mark.parametrize(
    ("shown", "hidden", "said"),
    [
        ((Gpu(name="A100", arch="8.0"),), 1, "the GPUs of this machine: A100. CUDA_VISIBLE_DEVICES hides 1 more."),
        ((), 2, "CUDA_VISIBLE_DEVICES hides all GPUs: the default archs for serving dual chunk attention."),
    ],
)
def test_hidden_gpus_are_not_built_for_and_the_plan_says_so(shown: tuple[Gpu, ...], hidden: int, said: str) -> None:
    plan = planned(Request(), world(machine(gpus=shown, hidden_gpus=hidden)))
    assert next(choice.reason for choice in plan.choices if choice.subject == "archs") == said


@pytest.mark.parametrize(
    ("versions", "fine"),
    [(("4.36.2",), False), (("5.0.0",), False), ((), False), (("4.37.0",), True), (("4.56.2", "4.57.0"), True)],
)
def test_transformers_of_the_lock_is_checked(versions: tuple[str, ...], fine: bool) -> None:
    changed = tuple(
        loaded.model_copy(update={"locked": {**loaded.locked, "transformers": versions}})
        for loaded in RECIPES
        if loaded.recipe.name == UPSTREAM
    )
    outcome = resolve(Request(), world(recipes=changed))
    assert isinstance(outcome, Plan) == fine
    if isinstance(outcome, Cannot):
        assert [reason.code for reason in outcome.passed_over[0].reasons] == ["DCA-307"]


def test_companions_are_compiled_when_git_can_be_reached() -> None:
    plan = planned(Request(recipe=UPSTREAM), world(reached=reach(git=True)))
    assert {module.origin for module in plan.modules} == {"compiled"}
    assert {source.name for source in plan.sources} == {"source", "flash-attention", "flash-attention/csrc/cutlass"}
    assert all(how == "native" for module in plan.modules for how in module.reached.values())


def test_companions_are_compiled_from_local_clones() -> None:
    local = {
        name: LocalTree(path=f"/src/{name}", kind="git") for name in ("flash-attention", "flash-attention/csrc/cutlass")
    }
    plan = planned(
        Request(recipe=UPSTREAM, companions={"flash-attention": "/src/fa"}), world(reached=reach(local=local))
    )
    assert [module.name for module in plan.compiled] == ["_C", "_vllm_fa2_C"]


def test_a_companion_that_no_group_needs_is_not_fetched() -> None:
    plan = planned(Request(recipe=UPSTREAM, groups=("index-only",)), world(reached=reach(git=True)))
    assert [source.name for source in plan.sources] == ["source"]


def test_prebuilt_all_needs_neither_a_compiler_nor_headers() -> None:
    bare = machine(compilers=(), python=PYTHON.model_copy(update={"headers": False}))
    plan = planned(Request(recipe=UPSTREAM, prebuilt=("all",)), world(bare))
    assert not plan.compiled
    assert plan.host_compiler == ""


def test_prebuilt_all_compiles_nothing() -> None:
    plan = planned(Request(recipe=UPSTREAM, prebuilt=("all",)))
    assert plan.toolkit is None
    assert not plan.compiled
    assert len(plan.copied) == 6
    assert plan.version.endswith(f"+dca{plan.series_revision}.cu128.prebuilt")


def test_prebuilt_of_one_module_copies_that_one() -> None:
    plan = planned(Request(recipe=UPSTREAM, prebuilt=("flash-attention",)), world(reached=reach(git=True)))
    assert [module.name for module in plan.copied] == ["_vllm_fa2_C"]


def test_the_plan_says_when_no_build_is_needed_and_what_building_adds() -> None:
    advice = " ".join(planned(Request()).advice)
    assert "--prebuilt all" in advice
    assert "A build adds" in advice


def test_a_later_revision_of_the_patches_is_a_newer_version() -> None:
    versions = [Version(f"0.10.2+{revision(number)}.cu124") for number in range(1, 1001)]
    assert versions == sorted(versions)
    assert len(set(versions)) == len(versions)
    assert [revision(number) for number in (9, 10, 100)] == ["dca9", "dcab10", "dcac100"]


def test_a_group_that_stands_alone_replaces_the_profile_and_marks_the_version() -> None:
    plan = planned(Request(recipe=UPSTREAM, groups=("index-only",), archs=("8.0",)))
    assert plan.groups == ("index-only",)
    assert lacks(DENSE, plan.serves)
    assert [module.name for module in plan.modules] == ["_C"]
    assert ".lean.indexonly.sm80" in plan.version


def test_a_folder_taken_as_it_is_marks_the_version() -> None:
    local = {"source": LocalTree(path="/src/vllm", kind="folder", tree="0" * 64)}
    plan = planned(Request(recipe=UPSTREAM, source="/src/vllm"), world(reached=reach(local=local)))
    assert plan.dirty
    assert plan.version.endswith(".dirty")


def test_the_fork_comes_first_where_its_sources_are() -> None:
    local = {
        name: LocalTree(path="/src", kind="git")
        for name in ("source", "flash-attention", "flash-attention/csrc/cutlass")
    }
    plan = planned(Request(cuda="12.1"), world(reached=reach(local=local)))
    assert plan.recipe == FORK
    assert plan.version.startswith("0.6.6.post2.dev0+dca")


def test_jobs_follow_cores_and_memory() -> None:
    def jobs(**seen: float) -> int:
        return planned(Request(recipe=UPSTREAM), world(machine(**seen))).jobs

    assert jobs(cores=64, memory_gib=33.0) == 11
    assert jobs(cores=2, memory_gib=64.0) == 2
    assert jobs(cores=8, memory_gib=1.0) == 1


def test_the_users_own_number_of_jobs_is_taken() -> None:
    plan = planned(Request(jobs=7), world(machine(cores=2, memory_gib=4.0)))
    assert (plan.jobs, plan.heavy_jobs, plan.jobs_asked) == (7, 7, True)
    assert "--jobs" in next(choice.reason for choice in plan.choices if choice.subject == "jobs")
    assert plan.key == planned(Request()).key


def test_heavy_sources_count_where_they_are_compiled() -> None:
    seen = machine(cores=64, memory_gib=33.0)
    copied = planned(Request(recipe=UPSTREAM), world(seen))
    compiled = planned(Request(recipe=UPSTREAM), world(seen, reach(git=True)))
    assert copied.heavy_jobs == copied.jobs == 11
    assert compiled.heavy_jobs == 1
    assert "1 of 4.3 GiB at a time" in next(choice.reason for choice in compiled.choices if choice.subject == "jobs")


sizes = st.floats(min_value=0.1, max_value=600.0)


@given(cores=st.integers(1, 512), memory=sizes, job=sizes, heavy=sizes)
@example(cores=7, memory=211.0, job=30.0, heavy=31.0)  # Seven don't fit beside a heavy one; six heavy ones do.
def test_as_many_jobs_as_fit_and_one_at_least(cores: int, memory: float, job: float, heavy: float) -> None:
    jobs = choose_jobs(cores, memory, job, heavy)
    assert 1 <= jobs.heavy <= jobs.count <= cores
    heavy = max(job, heavy)

    def need(count: int, of_these: int) -> float:
        return RESERVE_GIB + of_these * heavy + (count - of_these) * job

    assert need(jobs.count, jobs.heavy) <= memory + 1e-6 or jobs.count == 1
    if jobs.heavy < jobs.count:
        assert need(jobs.count, jobs.heavy + 1) > memory - 1e-6, "one more heavy one would have fitted"
    if jobs.count < cores:
        assert need(jobs.count + 1, jobs.heavy if jobs.heavy < jobs.count else 1) > memory - 1e-6, "one more would have"


def test_jobs_and_explanations_do_not_change_what_is_built() -> None:
    assert planned(Request(), world(machine(cores=2))).key == planned(Request(), world(machine(cores=1))).key
    assert planned(Request(cuda="12.1")).key == planned(Request()).key
    assert planned(Request(archs=("8.0",))).key != planned(Request()).key


requests = st.builds(
    Request,
    recipe=st.sampled_from([None, *NAMES]),
    cuda=st.sampled_from([None, "11.8", "12.1", "12.4", "12.8", "12.9", "13.0"]),
    archs=st.lists(st.sampled_from(["7.5", "8.0", "8.6", "9.0", "9.0+PTX", "10.0", "12.0"]), max_size=3).map(tuple),
    profile=st.sampled_from(["lean", "full"]),
    groups=st.lists(st.sampled_from(["index-only", "core", "nope"]), max_size=2).map(tuple),
    prebuilt=st.lists(st.sampled_from(["all", "_C", "flash-attention", "nope"]), max_size=2).map(tuple),
    strict_cuda=st.booleans(),
    driver=st.sampled_from([None, "450.80.02", "535.183.01", "550", "580.65.06"]),
)
worlds = st.builds(
    lambda cores, memory, gcc, gpus, driver, python, index, git, apt: world(
        machine(
            cores=cores,
            memory_gib=memory,
            compilers=tuple(Compiler(path=f"/g++-{n}", major=n, version=f"{n}.1.0") for n in gcc),
            gpus=tuple(Gpu(name=f"GPU {arch}", arch=arch) for arch in gpus),
            driver=driver and DRIVERS.driver(driver),
            python=python and PYTHON.model_copy(update={"version": python}),
        ),
        reach(index=index, git=git, apt=apt),
    ),
    st.integers(1, 128),
    st.floats(0.5, 512),
    st.lists(st.sampled_from([11, 12, 13, 14, 15]), max_size=3, unique=True),
    st.lists(st.sampled_from(["7.0", "8.0", "9.0", "12.0"]), max_size=2),
    st.sampled_from([None, "470.256.02", "550.54.15", "570.86.15"]),
    st.sampled_from([None, "3.8.18", "3.10.13", "3.12.1", "3.14.0"]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)


@pytest.mark.long
@pytest.mark.slow
@given(requests, worlds)
@settings(max_examples=examples(400), deadline=None)
def test_every_outcome_explains_itself_and_repeats_to_the_byte(request: Request, seen: World) -> None:
    outcome = resolve(request, seen)
    assert documents.dumps(outcome) == documents.dumps(resolve(request, seen))
    if isinstance(outcome, Cannot):
        assert outcome.passed_over
        assert all(over.reasons for over in outcome.passed_over)
        return
    assert request.recipe in (None, outcome.recipe)
    assert all(choice.value and choice.reason for choice in outcome.choices)
    if outcome.profile == "lean":
        assert all("not" not in module.reached.values() for module in outcome.compiled)
    # Whatever the profile, each module that is compiled serves at least one of the archs.
    assert all(set(module.reached.values()) != {"not"} for module in outcome.compiled)
    assert "cpu" not in outcome.version
    # What is planned runs with the driver that is named.
    if request.driver:
        branch = int(request.driver.split(".")[0])
        assert all(int(driver) <= branch for driver in outcome.drivers.values())
    assert outcome.cuda.split(".")[0] == outcome.torch_cuda.split(".")[0]
    assert Plan.model_validate(json.loads(documents.dumps(outcome))) == outcome


def test_the_order_of_recipes_and_probes_does_not_count() -> None:
    places = reach().places
    expected = documents.dumps(planned(Request()))
    for order in itertools.islice(itertools.permutations(places), 20):
        shuffled = Reach(places={name: places[name] for name in order})
        assert documents.dumps(planned(Request(), world(reached=shuffled, recipes=RECIPES[::-1]))) == expected


# --- models --------------------------------------------------------------------------------------------------

DENSE = Model(name="dense", architectures=("Qwen2ForCausalLM",), head_dim=128)


@pytest.mark.parametrize(
    ("changed", "groups"),
    [
        ({}, set()),
        ({"dual_chunk": True}, set()),
        ({"head_dim": 64}, {"hdim64"}),
        ({"dtype": "float16"}, {"fp16"}),
        # vLLM computes it in bfloat16 by itself.
        ({"dtype": "float32"}, set()),
        ({"head_dim": 64, "dtype": "float16"}, {"hdim64", "fp16"}),
        ({"experts": 128, "architectures": ("Qwen3MoeForCausalLM",)}, {"moe"}),
        ({"quantization": "fp8"}, {"fp8"}),
        ({"quantization": "fp8", "experts": 60, "architectures": ("Qwen2MoeForCausalLM",)}, {"fp8", "moe"}),
    ],
)
def test_a_model_chooses_its_groups(changed: dict[str, object], groups: set[str]) -> None:
    plan = planned(Request(model=DENSE.model_copy(update=changed)))
    default = planned(Request())
    assert set(plan.groups) - set(default.groups) == groups
    reason = next(choice.reason for choice in plan.choices if choice.subject == "groups")
    assert all(f"{name}" in reason for name in groups)
    assert all(f".{name}" in plan.version for name in groups)


def test_a_group_narrows_the_default_archs_and_says_so() -> None:
    plan = planned(Request(groups=("fp8",)))
    assert plan.archs == ("9.0",)
    assert "Without 8.0" in next(choice.reason for choice in plan.choices if choice.subject == "archs")


def test_an_arch_that_a_group_has_no_kernels_for_is_fine_in_a_copied_module() -> None:
    plan = planned(Request(recipe=UPSTREAM, groups=("fp8",), archs=("8.0", "9.0"), prebuilt=("_C",)))
    assert plan.archs == ("8.0", "9.0")


@pytest.mark.parametrize(
    ("changed", "lack"),
    [
        ({"quantization": "awq"}, "awq weights"),
        ({"quantization": "gptq"}, "gptq weights"),
        ({"architectures": ("LlamaForCausalLM",)}, "architecture LlamaForCausalLM"),
    ],
)
def test_what_lean_does_not_offer_a_model_is_refused_with_the_way(changed: dict[str, object], lack: str) -> None:
    model = DENSE.model_copy(update=changed)
    reason = only_reason(Request(recipe=UPSTREAM, model=model))
    assert reason.code == "DCA-312"
    assert lack in reason.text
    assert "--prebuilt all" in reason.remedy
    assert planned(Request(recipe=UPSTREAM, model=model, prebuilt=("all",))).serves.everything


def test_the_fork_computes_a_float32_model_in_float16() -> None:
    for dtype, more in (("float32", {"fp16"}), ("bfloat16", set())):
        model = DENSE.model_copy(update={"dtype": dtype})
        plan = planned(Request(recipe=FORK, model=model), world(reached=reach(git=True)))
        default = planned(Request(recipe=FORK), world(reached=reach(git=True)))
        assert set(plan.groups) - set(default.groups) == more


@pytest.mark.parametrize("git", [True, False], ids=["compiled", "copied"])
def test_compiled_or_copied_a_module_has_the_kernels_of_the_groups(git: bool) -> None:
    seen = world(reached=reach(git=git))
    serves = planned(Request(recipe=UPSTREAM), seen).serves
    assert (serves.head_dims, serves.dtypes) == ((128,), ("bfloat16",))
    serves = planned(Request(recipe=UPSTREAM, groups=("hdim64", "fp16")), seen).serves
    assert (serves.head_dims, serves.dtypes) == ((64, 128), ("bfloat16", "float16"))
    odd = DENSE.model_copy(update={"head_dim": 96})
    assert refused(Request(recipe=UPSTREAM, model=odd), seen) == {UPSTREAM: ["DCA-312"]}


@pytest.mark.parametrize(
    ("recipe", "git", "odd"),
    [
        (UPSTREAM, False, "--prebuilt-whole"),
        (UPSTREAM, True, "--profile full"),
        (FORK, True, "--profile full"),
        ("vllm-0.9.2", True, "--prebuilt all"),
    ],
)
def test_what_is_left_out_comes_with_the_build_that_adds_it(recipe: str, git: bool, odd: str) -> None:
    request = Request(recipe=recipe, cuda="12.4", archs=("8.0", "9.0+PTX"), groups=("fp16",))
    seen = world(reached=reach(git=git))
    bare = planned(request.model_copy(update={"groups": ()}), seen)
    command = f"dca wheel --recipe {recipe} --arch 8.0,9.0+PTX"
    assert bare.left_out.dtypes == {"float16": "--with fp16"}
    assert bare.left_out.head_dims[96] == odd
    half = DENSE.model_copy(update={"dtype": "float16"})
    assert bare.left_out.build(DENSE) == ""
    assert bare.left_out.build(half) == f"{command} --with fp16"
    # The build of everything takes no groups.
    assert bare.left_out.build(half.model_copy(update={"head_dim": 96})) == f"{command} {odd}"
    with_it = planned(request, seen)
    assert with_it.left_out.build(half) == ""
    assert with_it.left_out.command == f"{command} --with fp16"
    assert "fp16" in with_it.version
    assert with_it.key != bare.key


def test_bare_kernels_have_no_build_of_everything() -> None:
    plan = planned(Request(recipe=UPSTREAM, profile="kernels", archs=("9.0",)), world(reached=reach(git=True)))
    assert plan.left_out.head_dims == {64: "--with hdim64"}
    assert plan.left_out.dtypes == {"float16": "--with fp16"}
    assert plan.left_out.command == "dca wheel --recipe vllm-0.10.2 --profile kernels --arch 9.0"


def test_nothing_is_left_out_of_a_build_of_everything() -> None:
    for request in (
        Request(recipe=UPSTREAM, prebuilt=("all",)),
        Request(recipe=UPSTREAM, prebuilt_whole=True),
        Request(recipe=UPSTREAM, groups=("index-only",)),
    ):
        left_out = planned(request).left_out
        assert (left_out.head_dims, left_out.dtypes) == ({}, {})


def test_a_module_that_is_copied_whole_has_the_kernels_of_no_group_too() -> None:
    odd = DENSE.model_copy(update={"head_dim": 96, "dtype": "float16"})
    request = Request(recipe=UPSTREAM, model=odd, prebuilt_whole=True)
    serves = planned(request).serves
    assert (serves.head_dims, serves.dtypes, serves.everything) == ((), (), False)
    # Compiled, there is nothing to keep.
    assert refused(request, world(reached=reach(git=True))) == {UPSTREAM: ["DCA-312"]}


@pytest.mark.parametrize("name", NAMES)
def test_sources_of_a_data_type_are_compiled_for_its_group_only(name: str) -> None:
    for groups, dtypes in ((), {"bf16"}), (("fp16",), {"bf16", "fp16"}):
        request = Request(recipe=name, groups=groups)
        plan = planned(request, world(reached=reach(git=True, redist=True)))
        recipe = next(loaded.recipe for loaded in RECIPES if loaded.recipe.name == name)
        compiled = {source for module in plan.compiled for source in sources(recipe, module)}
        kernels = {source for source in compiled if "flash_fwd" in source}
        assert {dtype for source in kernels for dtype in ("bf16", "fp16") if dtype in source} == dtypes
        assert len(kernels) == 6 * len(dtypes)


def test_the_plan_says_which_ops_each_module_is_to_register() -> None:
    plan = planned(Request(groups=("moe",)))
    by_name = {module.name: module for module in plan.modules}
    assert "_C::apply_repetition_penalties_" in by_name["_C"].ops
    assert "_moe_C::topk_softmax" in by_name["_moe_C"].ops
    assert all(op.split("::")[0].startswith(module.name) for module in plan.modules for op in module.ops)


# --- the full profile ----------------------------------------------------------------------------------------

FULL = Request(recipe=UPSTREAM, profile="full")


def test_full_compiles_every_module_of_upstreams_cmake() -> None:
    plan = planned(FULL, world(reached=reach(git=True)))
    recipe = next(loaded.recipe for loaded in RECIPES if loaded.recipe.name == UPSTREAM)
    assert recipe.full is not None
    assert recipe.official_wheel is not None
    modules = {path for path in recipe.official_wheel.members if path.endswith(".so")}
    assert {module.path for module in plan.compiled} == modules
    assert {source.name.partition("/")[0] for source in plan.sources} == {"source", *recipe.full.companions}
    assert plan.version.endswith(".full.sm80.sm90")
    assert (plan.groups, plan.ptx) == ((), ())
    by_name = {module.name: module for module in plan.modules}
    assert set(by_name["_C"].ops) == {
        op for group in recipe.groups.values() if group.module == "_C" for op in (*group.ops, *group.answers)
    }
    # Upstream intersects per source: what is planned is the least that a module holds.
    assert by_name["_C"].at_least
    assert (by_name["_vllm_fa2_C"].sass, by_name["_vllm_fa2_C"].ptx) == (("8.0",), ("8.0",))
    assert by_name["_vllm_fa2_C"].reached == {"8.0": "native", "9.0": "JIT from PTX 8.0"}
    assert by_name["_flashmla_C"].sass == ("9.0",)
    assert by_name["cumem_allocator"].reached == {}


def test_full_copies_the_modules_whose_companion_cannot_be_had_and_says_why() -> None:
    request = FULL.model_copy(update={"companions": {"cutlass": "/src/cutlass"}})
    local = {"cutlass": LocalTree(path="/src/cutlass", kind="git")}
    plan = planned(request, world(reached=reach(local=local)))
    assert {module.name for module in plan.compiled} == {"_C", "_moe_C", "cumem_allocator"}
    assert {module.name for module in plan.copied} == {"_vllm_fa2_C", "_vllm_fa3_C", "_flashmla_C"}
    assert all("cannot be reached" in module.reason and module.sha256 for module in plan.copied)
    assert {source.name for source in plan.sources} == {"source", "cutlass", "official wheel"}


def test_full_does_not_fetch_a_companion_whose_modules_are_copied() -> None:
    request = FULL.model_copy(update={"prebuilt": ("_vllm_fa2_C", "_vllm_fa3_C", "flashmla")})
    plan = planned(request, world(reached=reach(git=True)))
    assert {source.name for source in plan.sources} == {"source", "cutlass", "official wheel"}


def test_full_leaves_out_what_has_no_kernels_for_the_archs_and_warns_below_the_sparse_kernels() -> None:
    with_git = world(reached=reach(git=True))
    plan = planned(FULL.model_copy(update={"archs": ("8.6",)}), with_git)
    assert "_flashmla_C" not in {module.name for module in plan.modules}
    assert any(choice.subject == "left out" and "_flashmla_C" in choice.value for choice in plan.choices)
    assert not plan.warnings
    old = planned(FULL.model_copy(update={"archs": ("7.5",)}), with_git)
    assert {module.name for module in old.modules} == {"_C", "_moe_C", "cumem_allocator"}
    assert any("without dual chunk attention" in warning for warning in old.warnings)


def test_full_of_another_cuda_line_leaves_out_what_its_driver_reaches_only_by_ptx() -> None:
    older = FULL.model_copy(update={"cuda": "12.1"})
    plan = planned(older, world(reached=reach(git=True)))
    assert (plan.substituted, plan.archs) == (True, ("8.0",))
    assert any("Without 9.0: _vllm_fa2_C has only PTX of CUDA 12.4" in warning for warning in plan.warnings)
    named = only_reason(older.model_copy(update={"archs": ("9.0",)}), world(reached=reach(git=True)))
    assert named.code == "DCA-313"


def test_jobs_follow_the_memory_that_the_profiles_jobs_take() -> None:
    seen = machine(cores=64, memory_gib=25.0)
    lean_gib = next(loaded.recipe.lean.job_memory_gib for loaded in RECIPES if loaded.recipe.name == UPSTREAM)
    lean, full = planned(Request(recipe=UPSTREAM), world(seen)), planned(FULL, world(seen, reach(git=True)))
    assert (lean.jobs, full.jobs) == (int(24 / lean_gib), 4)


@pytest.mark.parametrize(
    ("known", "asked", "sass", "ptx"),
    [
        (("8.0+PTX",), ("9.0",), ("8.0",), ("8.0",)),
        (("8.0",), ("9.0",), (), ()),
        (("9.0a",), ("9.0",), ("9.0",), ()),
        (("9.0a",), ("10.0",), (), ()),
        (("8.0", "8.6"), ("8.9", "8.0"), ("8.0", "8.6"), ()),
        (("7.5", "8.0", "8.6", "9.0", "9.0a"), ("8.0", "8.9", "9.0"), ("8.0", "8.6", "9.0"), ()),
    ],
)
def test_upstream_takes_the_nearest_arch_that_it_knows(
    known: tuple[str, ...], asked: tuple[str, ...], sass: tuple[str, ...], ptx: tuple[str, ...]
) -> None:
    assert nearest(known, asked) == (sass, ptx)


# --- what cannot be built ------------------------------------------------------------------------------------

CLONE = {"flash-attention": LocalTree(path="/src/fa", kind="git")}
NAMED = CUDA13.model_copy(update={"origin": "--toolkit"})
GIT = world(reached=reach(git=True))


def with_python(**changes: object) -> World:
    return world(machine(python=PYTHON.model_copy(update=changes)))


@pytest.mark.parametrize(
    ("changes", "seen", "codes"),
    [
        ({"toolkit": NAMED.path}, world(machine(toolkits=(NAMED,))), ["DCA-302"]),
        ({"archs": ("7.0",)}, world(), ["DCA-305"]),
        ({}, with_python(version="3.8.18"), ["DCA-306"]),
        ({}, with_python(version="3.14.0"), ["DCA-306"]),
        ({}, with_python(headers=False), ["DCA-306"]),
        ({"python": "3.12"}, world(machine(python=None)), ["DCA-306"]),
        ({"python": "3.99"}, world(machine(python=None)), ["DCA-306"]),
        ({"groups": ("nope",)}, world(), ["DCA-309"]),
        ({"profile": "fat"}, world(), ["DCA-309"]),
        ({"prebuilt": ("nope",)}, world(), ["DCA-309"]),
        ({"companions": {"nope": "/x"}}, world(), ["DCA-309"]),
        # A group that stands alone serves no model.
        ({"model": DENSE, "groups": ("index-only",)}, world(), ["DCA-309"]),
        ({}, world(machine(system="Darwin")), ["DCA-310"]),
        # Every reason is given at once.
        ({}, world(reached=reach(index=False)), ["DCA-301", "DCA-302"]),
        ({"profile": "full", "groups": ("core",)}, GIT, ["DCA-309"]),
        ({"profile": "full", "archs": ("9.0+PTX",)}, GIT, ["DCA-309"]),
        ({"profile": "full", "archs": ("10.0",)}, GIT, ["DCA-304"]),
        ({"profile": "full", "archs": ("6.0",)}, GIT, ["DCA-305"]),
        ({"profile": "full", "prebuilt": ("cutlass",)}, GIT, ["DCA-309"]),
    ],
)
def test_what_cannot_be_built_is_refused_with_its_codes(changes: dict[str, Any], seen: World, codes: list[str]) -> None:
    assert refused(Request(recipe=UPSTREAM, **changes), seen) == {UPSTREAM: codes}


@pytest.mark.parametrize(
    ("changes", "seen", "code", "text", "remedies"),
    [
        (
            {},
            world(machine(compilers=(Compiler(path="/usr/bin/g++", major=14, version="14.1.0"),), installer=TRIXIE)),
            "DCA-308",
            "gcc 13 or older; installed g++: 14.1.0",
            ("sudo apt install g++-13\n",),
        ),
        # The distribution's own g++ would be too new as well.
        (
            {},
            world(machine(compilers=(), installer=TRIXIE)),
            "DCA-308",
            "installed g++: none",
            ("sudo apt install g++-13",),
        ),
        ({}, world(machine(compilers=(), installer=DEBIAN)), "DCA-308", "none", ("sudo apt install g++",)),
        ({}, world(machine(git=False, installer=DEBIAN)), "DCA-310", "git is not installed", ("sudo apt install git",)),
        (
            {"prebuilt": ("all",)},
            world(machine(git=False, installer=DEBIAN)),
            "DCA-310",
            "git is not installed",
            ("sudo apt install git",),
        ),
        (
            {},
            world(machine(python=PYTHON.model_copy(update={"headers": False}), installer=DEBIAN)),
            "DCA-306",
            "Python.h",
            ("sudo apt install python3.11-dev",),
        ),
        ({}, world(reached=reach(apt=False)), "DCA-302", "no mirror", ("doctor --only network", "--toolkit DIR")),
        # No download would help.
        ({"toolkit": NAMED.path}, world(machine(toolkits=(NAMED,))), "DCA-302", "another major", ("install one of",)),
        ({"archs": ("7.5",)}, world(), "DCA-305", "7.5", ("--prebuilt all", "--profile full --arch 7.5")),
        ({"groups": ("fp8",), "archs": ("8.0", "9.0")}, world(), "DCA-305", "`fp8`", ("--prebuilt all",)),
        (
            {"companions": {"flash-attention": "/src/fa"}},
            world(reached=reach(local=CLONE)),
            "DCA-301",
            "flash-attention/csrc/cutlass",
            ("--companion flash-attention/csrc/cutlass=DIR",),
        ),
        # Upstream's CMake cannot be configured without the companion that every module needs.
        ({"profile": "full"}, world(), "DCA-301", "cutlass", ("--companion cutlass=DIR",)),
    ],
)
def test_a_refusal_says_why_and_what_works_instead(
    changes: dict[str, Any], seen: World, code: str, text: str, remedies: tuple[str, ...]
) -> None:
    reason = only_reason(Request(recipe=UPSTREAM, **changes), seen)
    assert reason.code == code
    assert text in reason.text
    assert all(remedy in reason.remedy for remedy in remedies)
    assert ("doctor" in reason.remedy) == any("doctor" in remedy for remedy in remedies)


def caches(shared: str = "", ccache: str = "", scheduler: str = "") -> tuple[FoundCache, ...]:
    return (
        FoundCache(name="sccache", version="0.16.0", shared=shared, scheduler=scheduler),
        FoundCache(name="ccache", version=ccache, path="/usr/bin/ccache" if ccache else ""),
    )


@pytest.mark.parametrize(
    ("asked", "found", "chosen", "said"),
    [
        ("auto", caches(), None, "no variable configures a shared one"),
        ("auto", caches("Redis"), "sccache", "a variable configures Redis."),
        ("off", caches("Redis"), None, "requested with --compiler-cache off."),
        ("sccache", caches(), "sccache", "requested with --compiler-cache sccache."),
        ("ccache", caches("Redis", ccache="4.7.5"), "ccache", "requested with --compiler-cache ccache."),
        ("ccache", caches(), None, "ccache is not on PATH."),
        ("ccache", (), None, "ccache is not on PATH."),
        ("auto", caches(scheduler="CONF"), None, "CONF names a scheduler: --compiler-cache sccache uses its builders."),
        ("auto", caches("S3", scheduler="CONF"), "sccache", "Builders of the scheduler that CONF names compile too."),
        ("sccache", caches(scheduler="CONF"), "sccache", "Builders of the scheduler that CONF names compile too."),
    ],
)
def test_the_compiler_cache_is_the_one_asked_for_or_a_shared_one(
    asked: CacheOption, found: tuple[FoundCache, ...], chosen: str | None, said: str
) -> None:
    plan = planned(Request(compiler_cache=asked), world(machine(caches=found)))
    assert (plan.compiler_cache.name if plan.compiler_cache else None) == chosen
    assert said in next(choice.reason for choice in plan.choices if choice.subject == "compiler cache")
    assert any("not on PATH" in warning for warning in plan.warnings) == ("PATH" in said)
    # The wheel is the same, so the plan is.
    assert plan.key == planned(Request(compiler_cache="off")).key


@pytest.mark.parametrize(
    ("asked", "found", "chosen", "said"),
    [
        ("auto", caches("Redis"), None, "--offline forbids asking Redis, which a variable configures."),
        ("sccache", caches("Redis"), None, "--offline forbids asking Redis, which a variable configures."),
        ("sccache", caches(scheduler="CONF"), None, "--offline forbids asking the scheduler that CONF names."),
        ("auto", caches(scheduler="CONF"), None, "also keeps those of other patches and options."),
        ("sccache", caches(), "sccache", "requested with --compiler-cache sccache."),
    ],
)
def test_a_build_without_a_network_uses_no_compiler_cache_that_needs_one(
    asked: CacheOption, found: tuple[FoundCache, ...], chosen: str | None, said: str
) -> None:
    seen = world(machine(caches=found))
    plan = planned(Request(compiler_cache=asked), dataclasses.replace(seen, offline=True))
    assert (plan.compiler_cache.name if plan.compiler_cache else None) == chosen
    reason = next(choice.reason for choice in plan.choices if choice.subject == "compiler cache")
    assert reason.endswith(said)
    # Who asked for a cache is warned.
    assert any(said in warning for warning in plan.warnings) == (asked != "auto" and chosen is None)


def test_a_compiler_cache_that_breaks_on_the_toolkit_is_not_used() -> None:
    """No recipe compiles with such a CUDA yet: the data say that this one breaks."""
    (sccache, *rest) = compiler_caches.load_all()
    breaks = tuple(one.model_copy(update={"cuda": ">=12"}) for one in sccache.breaks)
    seen = dataclasses.replace(
        world(machine(caches=caches("Redis"))), caches=(sccache.model_copy(update={"breaks": breaks}), *rest)
    )
    plan = planned(Request(), seen)
    assert plan.compiler_cache is None
    assert any("does not work with CUDA" in warning for warning in plan.warnings)


def test_a_plan_that_compiles_nothing_has_no_compiler_cache() -> None:
    plan = planned(Request(recipe="vllm-0.10.2", prebuilt=("all",)), world(machine(caches=caches("Redis"))))
    assert plan.compiler_cache is None
    assert not any(choice.subject == "compiler cache" for choice in plan.choices)


FLASH = "_vllm_fa2_C"


def copied(plan: Plan) -> PlannedModule:
    (module,) = [module for module in plan.copied if module.name == FLASH]
    return module


def choices(plan: Plan, subject: str) -> str:
    return " ".join(f"{choice.value}: {choice.reason}" for choice in plan.choices if choice.subject == subject)


@pytest.mark.parametrize(
    ("request_", "head_dims", "dtypes", "sass", "ptx"),
    [
        (Request(), (128,), ("bfloat16",), ("8.0", "9.0"), ()),
        (Request(groups=("hdim64", "fp16")), (64, 128), ("bfloat16", "float16"), ("8.0", "9.0"), ()),
        # Its PTX is for 8.0, and becomes cubins of every arch.
        (Request(archs=("8.6", "9.0+PTX")), (128,), ("bfloat16",), ("8.6", "9.0"), ("8.0",)),
    ],
)
def test_a_copied_module_keeps_what_the_groups_promise_for_each_arch(
    request_: Request,
    head_dims: tuple[int, ...],
    dtypes: tuple[str, ...],
    sass: tuple[str, ...],
    ptx: tuple[str, ...],
) -> None:
    plan = planned(request_.model_copy(update={"recipe": UPSTREAM}))
    module = copied(plan)
    assert module.keeps == KeptKernels(head_dims=head_dims, dtypes=dtypes)
    assert (module.sass, module.ptx) == (sass, ptx)
    assert set(module.reached.values()) == {"native"}
    assert (plan.serves.head_dims, plan.serves.dtypes) == (head_dims, dtypes)
    assert f"{FLASH}: {module.keeps.text}: What the groups promise" in choices(plan, "copied kernels")


@pytest.mark.parametrize(
    ("request_", "reached_", "why"),
    [
        (Request(prebuilt_whole=True), world(), "Requested with --prebuilt-whole."),
        (Request(prebuilt=("all",)), world(), "there is no toolkit"),
        (FULL.model_copy(update={"prebuilt": (FLASH, "_vllm_fa3_C", "flashmla")}), GIT, "leaves nothing out"),
        (Request(prebuilt=("_C",)), world(), "does not say what the kernels of _C are compiled for"),
    ],
)
def test_a_copied_module_keeps_everything_with_the_reason(request_: Request, reached_: World, why: str) -> None:
    plan = planned(request_.model_copy(update={"recipe": UPSTREAM}), reached_)
    name = "_C" if request_.prebuilt == ("_C",) else FLASH
    (module,) = [module for module in plan.copied if module.name == name]
    assert module.keeps is None
    assert why in choices(plan, "copied kernels")


def test_a_wheel_with_every_kernel_of_a_copied_module_has_a_version_of_its_own() -> None:
    plan, whole = planned(Request()), planned(Request(prebuilt_whole=True))
    assert whole.version == plan.version.replace(".lean.", ".lean.whole.")
    assert whole.key != plan.key
    assert (whole.serves.head_dims, whole.serves.dtypes) == ((), ())
    # Where nothing is copied it makes no difference.
    assert planned(Request(recipe=UPSTREAM, prebuilt_whole=True), GIT).key == planned(Request(recipe=UPSTREAM), GIT).key


def test_a_copied_module_of_a_recipe_without_the_names_of_its_kernels_keeps_everything() -> None:
    def without(loaded: Loaded) -> Loaded:
        module = loaded.recipe.modules[FLASH]
        stubs = module.stubs.model_copy(update={"kernels": None}) if module.stubs else None
        modules = {**loaded.recipe.modules, FLASH: module.model_copy(update={"stubs": stubs})}
        return loaded.model_copy(update={"recipe": loaded.recipe.model_copy(update={"modules": modules})})

    recipes = tuple(without(loaded) for loaded in RECIPES if loaded.recipe.name == UPSTREAM)
    plan = planned(Request(), world(recipes=recipes))
    assert copied(plan).keeps is None
    assert plan.serves.head_dims == ()


def test_a_variant_shares_its_version_and_says_which_machines_it_is_for() -> None:
    request = Request(recipe="vllm-0.10.2", archs=("9.0",), cuda="12.4")
    plain, variant = planned(request), planned(request.model_copy(update={"variants": True}))
    assert (plain.variant, "variant" in plain.model_dump()) == (None, False)
    assert variant.variant is not None
    assert variant.variant.label == "cu124_sm90"
    assert variant.variant.properties == {
        "nvidia": {"cuda_version_lower_bound": ("12.0", "12.4"), "sm_arch": ("90_real",)}
    }
    assert variant.version == plain.version.partition(".cu124")[0]
    other = planned(request.model_copy(update={"variants": True, "archs": ("8.0",)}))
    assert (other.version, other.variant and other.variant.label) == (variant.version, "cu124_sm80")
    assert len({plain.key, variant.key, other.key}) == 3


def test_a_variant_that_other_gpus_would_get_is_refused() -> None:
    """Installers give code for 8.7 to 8.9 too, but that of a Jetson runs on no other GPU."""
    request = Request(recipe="vllm-0.10.2", archs=("8.7",), cuda="12.4", variants=True)
    assert planned(request.model_copy(update={"variants": False})).archs == ("8.7",)
    reason = only_reason(request)
    assert (reason.code, "8.9" in reason.text) == ("DCA-314", True)


def on(processor: str, release: str, own: Loaded) -> World:
    """A machine of a processor, where a made-up recipe has a torch that has CUDA there."""
    torch = own.recipe.torch.model_copy(update={"version": release})
    loaded = own.model_copy(update={"recipe": own.recipe.model_copy(update={"torch": torch})})
    return world(machine(processor=processor), reach(git=False, apt=False, redist=True), (loaded,))


def test_nothing_is_copied_from_a_wheel_of_another_processor() -> None:
    # Companions cannot be reached, so that their modules are copied where that is possible.
    own = next(loaded for loaded in RECIPES if loaded.recipe.name == UPSTREAM)
    assert planned(Request(recipe=UPSTREAM), on("x86_64", "2.11.0", own)).copied
    assert refused(Request(recipe=UPSTREAM), on("aarch64", "2.11.0", own))[UPSTREAM][0] == "DCA-301"
    everything = refused(Request(recipe=UPSTREAM, prebuilt=("all",)), on("aarch64", "2.11.0", own))
    assert everything[UPSTREAM][0] == "DCA-309"


def test_the_processor_is_part_of_what_is_built_and_not_written_for_the_first_one() -> None:
    request, kit = Request(recipe=UPSTREAM, profile="kernels"), machine(toolkits=(CUDA13,))
    here = planned(request, world(kit, reach(git=True)))
    there = planned(request, world(kit.model_copy(update={"processor": "aarch64"}), reach(git=True)))
    assert here.toolkit == there.toolkit
    assert here.key != there.key
    assert "processor" not in here.model_dump(mode="json")
    assert there.model_dump(mode="json")["processor"] == "aarch64"
