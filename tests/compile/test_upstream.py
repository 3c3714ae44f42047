"""The full profile's compiling: a small upstream with a companion, and the rule of the real one's CMake."""

from __future__ import annotations

import itertools
import os
import re
import shlex
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from dca.catalogue.plan import Plan, PlannedModule
from dca.catalogue.recipes import Full, FullCompanion, FullModule, Loaded, Recipe
from dca.compile import cmake, upstream
from dca.compile.compiling import Listing
from dca.compile.job import BuildEnvironment, Job
from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.resolve.full import nearest
from dca.sources.fetch import Tree
from dca.toolchain import environments
from dca.toolchain.environments import TorchFacts
from tests.support import RunDca, quiet_run

# As upstream does it: the companion is downloaded unless a variable names its folder, a script writes sources beside
# the others, and each module is installed as a component of its own.
CMAKELISTS = """\
cmake_minimum_required(VERSION 3.26)
project(thing LANGUAGES CXX)
find_program(PYTHON_THERE NAMES ${THING_PYTHON} REQUIRED)
file(WRITE ${CMAKE_SOURCE_DIR}/csrc/generated.cpp "int archs() { return sizeof(\\"$ENV{TORCH_CUDA_ARCH_LIST}\\"); }\\n")
file(GLOB GENERATED csrc/generated*.cpp)
add_library(_A MODULE csrc/a.cpp csrc/b.cpp ${GENERATED})
set_target_properties(_A PROPERTIES PREFIX "" SUFFIX ".abi3.so")
target_link_libraries(_A PRIVATE ${CUDA_cuda_driver_LIBRARY})
install(TARGETS _A LIBRARY DESTINATION thing COMPONENT _A)
include(cmake/other.cmake)
"""
OTHER = """\
include(FetchContent)
if(OTHER_DIR)
  FetchContent_Declare(other SOURCE_DIR ${OTHER_DIR})
else()
  FetchContent_Declare(other GIT_REPOSITORY https://example.invalid/other.git GIT_TAG main)
endif()
FetchContent_MakeAvailable(other)
add_library(_B MODULE ${other_SOURCE_DIR}/b.cpp)
set_target_properties(_B PROPERTIES PREFIX "" SUFFIX ".abi3.so")
install(TARGETS _B LIBRARY DESTINATION thing/other COMPONENT _B)
"""
FULL = Full(
    archs=("8.0", "9.0"),
    default_archs=("8.0",),
    job_memory_gib=1.0,
    inputs=("CMakeLists.txt", "cmake", "csrc"),
    python="THING_PYTHON",
    companions={"other": FullCompanion(variable="OTHER_DIR", file="cmake/other.cmake")},
    modules={"_A": FullModule(path="thing/_A.abi3.so"), "_B": FullModule(path="thing/other/_B.abi3.so", tree="other")},
)


@pytest.fixture(scope="module")
def recipe(all_recipes: tuple[Loaded, ...]) -> Recipe:
    """A real recipe that offers the profile."""
    return next(loaded.recipe for loaded in all_recipes if loaded.recipe.full and loaded.recipe.official_wheel)


@pytest.fixture(scope="module")
def planned(dca: RunDca, recipe: Recipe) -> Plan:
    """A real plan of it, of which only machine and environment count here."""
    done = dca("plan", "--recipe", recipe.name, "--json")
    assert done.returncode == 0, done.stderr
    return Plan.model_validate_json(done.stdout)


@pytest.fixture(scope="module")
def python(planned: Plan, cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the build environment, which has CMake and ninja."""
    return environments.build_environment(planned, Run(cache, Silent(), tmp_path_factory.mktemp("env") / "log"))


@dataclass(frozen=True)
class Small:
    """A small upstream on the disk, and the way from it to modules."""

    job: Job
    folder: Path

    @property
    def plan(self) -> Plan:
        return self.job.plan

    def prepare(self) -> cmake.BuildFolder:
        return upstream.prepare(self.job, self.folder, quiet_run(self.folder))

    def build(self) -> int:
        names = [module.name for module in self.plan.compiled]
        return cmake.build(self.prepare(), names, 1, quiet_run(self.folder)).compiled

    @property
    def log(self) -> Path:
        return self.folder / "log"


@pytest.fixture
def small(planned: Plan, recipe: Recipe, python: Path, tmp_path: Path) -> Small:
    root = tmp_path / "Quellen für alles"
    for name, text in {
        "source/CMakeLists.txt": CMAKELISTS,
        "source/cmake/other.cmake": OTHER,
        "source/csrc/a.cpp": 'extern "C" { int cuMemCreate(); int a() { return cuMemCreate(); } }\n',
        "source/csrc/b.cpp": 'extern "C" const char* where() { return __FILE__; }\n',
        "source/thing/__init__.py": "",
        "other/b.cpp": "int b() { return 2; }\n",
        "toolkit/include/cuda.h": "#define cuMemFree cuMemFree_v2\nint cuMemCreate(int);\n",
        "toolkit/bin/nvcc": "",
    }.items():
        store.write_bytes(root / name, text.encode())
    modules = tuple(
        PlannedModule(
            name=name, path=module.path, origin="compiled", groups=(), sass=(), ptx=(), reached={}, reason="a test"
        )
        for name, module in FULL.modules.items()
    )
    facts = TorchFacts(
        version="", cuda="", cxx11_abi=True, includes=(), libraries="/no/site/torch/lib", python_include=""
    )
    job = Job(
        plan=planned.model_copy(update={"profile": "full", "modules": modules, "archs": ("8.0", "9.0")}),
        recipe=recipe.model_copy(update={"full": FULL}),
        tree=Tree(folder=str(root), sources=(), members={}),
        toolkit=root / "toolkit",
        environment=BuildEnvironment(python, facts),
    )
    return Small(job, tmp_path / "Bau mit Zwischenraum")


def needed(module: Path) -> list[str]:
    done = subprocess.run(["readelf", "-d", module], text=True, capture_output=True, check=True)
    return [line for line in done.stdout.splitlines() if "NEEDED" in line or "RUNPATH" in line or "RPATH" in line]


def test_upstreams_cmake_compiles_with_the_given_companion_and_installs_where_the_recipe_says(small: Small) -> None:
    assert small.build() == 4
    names = [module.name for module in small.plan.compiled]
    folder = small.prepare()
    files = [upstream.install(module, folder, small.log) for module in small.plan.compiled]
    assert [file.name for file in files] == ["_A.abi3.so", "_B.abi3.so"]
    # The driver's library is named by the module that calls it, and no folder of this machine by any.
    assert any("libcuda.so.1" in line for line in needed(files[0]))
    assert not any("PATH" in line or "libcuda" in line for line in needed(files[1]))
    sources = [cmake.sources(small.folder / "ninja", name) for name in names]
    assert sources == [("source/csrc/a.cpp", "source/csrc/b.cpp", "source/csrc/generated.cpp"), ("other/b.cpp",)]
    assert [compiled.source for compiled in cmake.objects(small.folder / "ninja", "_A")] == list(sources[0])
    listed = cmake.commands(folder, names)
    assert len(listed) == 4 + 2
    # The archs that were asked for reached CMake, and not those that somebody once exported.
    assert '"8.0;9.0"' in (small.folder / "src/source/csrc/generated.cpp").read_text()


def test_the_same_plan_gives_the_same_bytes_in_another_folder(small: Small, tmp_path: Path) -> None:
    contents = []
    for name in ("one", "another"):
        copy = replace(small, folder=tmp_path / name)
        copy.build()
        contents.append((copy.folder / "ninja/_A.abi3.so").read_bytes())
    assert contents[0] == contents[1]
    assert b"src/source/csrc/b.cpp" in contents[0]


def test_a_changed_source_compiles_itself_alone_and_nothing_changed_configures_nothing(small: Small) -> None:
    assert small.build() == 4
    configured = (small.folder / "configured").stat().st_mtime_ns
    assert small.build() == 0
    assert (small.folder / "configured").stat().st_mtime_ns == configured
    (small.job.tree.path("other") / "b.cpp").write_text("int b() { return 3; }\n")
    assert small.build() >= 1
    (compiled,) = cmake.objects(small.folder / "ninja", "_B")
    assert compiled.sha256 == store.sha256_bytes(b"int b() { return 3; }\n")


def test_a_companion_that_cannot_be_had_is_left_out_of_the_configuration(small: Small) -> None:
    (module,) = (module for module in small.plan.modules if module.name == "_A")
    (small.job.tree.path("other") / "b.cpp").unlink()
    alone = replace(small, job=replace(small.job, plan=small.plan.model_copy(update={"modules": (module,)})))
    assert alone.build() == 3
    assert (small.folder / "src/source/cmake/other.cmake").read_bytes() == b""


def test_nothing_is_downloaded(small: Small) -> None:
    undescribed = FullCompanion(variable="ANOTHER_NAME", file="cmake/other.cmake")
    full = FULL.model_copy(update={"companions": {"other": undescribed}})
    with pytest.raises(DcaError) as refused:
        replace(small, job=replace(small.job, recipe=small.job.recipe.model_copy(update={"full": full}))).prepare()
    assert refused.value.code == "DCA-602"
    assert "git clone" not in small.log.read_text().lower()
    assert "Cloning into" not in small.log.read_text()


def test_a_module_that_is_not_installed_where_the_recipe_says_is_refused(small: Small) -> None:
    small.build()
    wrong = small.plan.modules[0].model_copy(update={"path": "thing/elsewhere.so"})
    with pytest.raises(DcaError) as refused:
        upstream.install(wrong, small.prepare(), small.log)
    assert refused.value.code == "DCA-605"
    assert "thing/elsewhere.so" in refused.value.what


def test_a_source_without_what_cmake_reads_is_refused(small: Small) -> None:
    full = FULL.model_copy(update={"inputs": ("CMakeLists.txt", "kernels")})
    with pytest.raises(DcaError) as refused:
        replace(small, job=replace(small.job, recipe=small.job.recipe.model_copy(update={"full": full}))).prepare()
    assert (refused.value.code, refused.value.what) == ("DCA-604", "the source has no kernels.")


# --- the real upstream ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(dca: RunDca, recipe: Recipe) -> Path:
    """The patched source of the recipe."""
    done = dca("fetch", "--recipe", recipe.name, "--json")
    assert done.returncode == 0, done.stderr
    return Tree.model_validate_json(done.stdout).path("source")


@pytest.mark.network
def test_the_recipe_names_what_upstreams_cmake_reads(source: Path, recipe: Recipe) -> None:
    full = recipe.full
    assert full is not None
    text = "".join(path.read_text() for path in [source / "CMakeLists.txt", *source.glob("cmake/**/*.cmake")])
    assert full.python in text
    for name, companion in full.companions.items():
        assert f"if({companion.variable})" in text, name
        if companion.file:
            # The file that is left empty is the one that pins it.
            assert recipe.companions[name].source.commit in (source / companion.file).read_text()
    for name, module in full.modules.items():
        if module.tree == "source":
            assert re.search(rf"define_gpu_extension_target\(\s+{name}\s", text), name


def test_archs_are_chosen_as_upstreams_own_function_chooses_them(
    source: Path, python: Path, recipe: Recipe, tmp_path: Path
) -> None:
    assert recipe.full is not None
    offered = recipe.full.archs
    requests = [archs for size in (1, 2, 3) for archs in itertools.combinations(offered, size)]
    known = {module.archs for module in recipe.full.modules.values() if module.archs}
    cases = [(archs_known, archs) for archs_known in sorted(known) for archs in requests]
    script = tmp_path / "archs.cmake"
    lines = [
        f'cuda_archs_loose_intersection(FOUND "{";".join(archs_known)}" "{";".join(archs)}")\nmessage("=${{FOUND}}")'
        for archs_known, archs in cases
    ]
    utilities = source / "cmake/utils.cmake"
    head = ["cmake_minimum_required(VERSION 3.26)", f'include("{utilities}")']
    script.write_text("\n".join([*head, *lines]) + "\n")
    done = runner.run([python.parent / "cmake", "-P", script], supervision=runner.Supervision(keep_lines=10_000))
    assert done.ok, done.text
    answers = [line[1:].split(";") for line in done.tail if line.startswith("=")]
    assert len(answers) == len(cases) > 100
    for (archs_known, archs), theirs in zip(cases, answers, strict=True):
        sass = {arch.removesuffix("+PTX").rstrip("a") for arch in theirs if arch}
        ptx = {arch.removesuffix("+PTX") for arch in theirs if arch.endswith("+PTX")}
        assert tuple(map(set, nearest(archs_known, archs))) == (sass, ptx), (archs_known, archs)


@pytest.fixture(scope="module")
def clones() -> list[str]:
    """--companion NAME=PATH for local clones: DCA_TEST_COMPANIONS names them; from the network where it is not set."""
    return [word for pair in shlex.split(os.environ.get("DCA_TEST_COMPANIONS", "")) for word in ("--companion", pair)]


@pytest.mark.network
def test_what_compiles_nothing_has_nothing_to_list(dca: RunDca, recipe: Recipe) -> None:
    done = dca("wheel", "--recipe", recipe.name, "--prebuilt", "all", "--list")
    assert done.returncode == 2
    assert "DCA-201: --list: no module is compiled" in done.stderr


@pytest.mark.git
def test_upstreams_own_cmake_is_configured_and_lists_every_module(
    dca: RunDca, clones: list[str], recipe: Recipe, tmp_path: Path
) -> None:
    assert recipe.full is not None
    words = ["wheel", "--recipe", recipe.name, "--profile", "full", *clones, "--arch", "8.0,9.0"]
    done = dca(*words, "--list", "--json", cwd=tmp_path, timeout=900.0)
    assert done.returncode == 0, done.stderr
    listing = Listing.model_validate_json(done.stdout)
    assert {module.name for module in listing.modules} == set(recipe.full.modules)
    objects = sum(len(module.sources) for module in listing.modules)
    # Each object is compiled and each module linked, and nothing else is done.
    assert len(listing.commands) == objects + len(listing.modules)
    # Both archs reach the kernels; upstream sets none for a few sources, which hold no kernel of their own.
    for arch in ("sm_80", "sm_90a"):
        assert sum(f"code={arch}" in command for command in listing.commands) > 300
    assert not (tmp_path / "dist").exists()
