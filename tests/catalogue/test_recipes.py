"""Recipes and the data that belongs to them: what is in build/, and what the schema refuses."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from dca.catalogue import recipes, toolkits
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import GitSource, Loaded
from dca.compile import ops
from dca.compile.compiling import Build
from dca.foundation import data, documents
from dca.foundation.errors import DcaError
from dca.pipeline.wheel import Made
from tests.support import RunDca

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EVERY = recipes.load_all()
ALL = recipes.compiling(EVERY)
BUILD = data.data_root() / "build"
COMMIT = "0123456789" * 4
SHA = "0123456789abcdef" * 4

MINIMAL = f"""\
schema = "dca.recipe/1"
name = "small"
title = "a small one"
priority = 1
package = "thing"
base_version = "1.0"
lock_date = "2025-01-01"
python = ">=3.10"
requirements = "requirements.txt"
build_requirements = []

[source]
kind = "git"
urls = ["https://example.org/thing.git"]
commit = "{COMMIT}"

[torch]
version = "2.5.1"
cuda = "12.4"
cxx11_abi = false

[cuda]
official = ["12.4"]
supported = ["12.4"]

[lean]
groups = ["core"]
archs = ["8.0"]
default_archs = ["8.0"]
job_memory_gib = 4.0

[full]
archs = ["8.0"]
default_archs = ["8.0"]
job_memory_gib = 4.0
inputs = ["CMakeLists.txt"]
python = "THING_PYTHON"

[full.companions.other]
variable = "OTHER_DIR"

[full.modules._E]
path = "thing/_E.abi3.so"
tree = "other"
archs = ["8.0+PTX"]

[modules._C]
path = "thing/_C.abi3.so"

[groups.core]
module = "_C"
why = "all of it"
sources = ["csrc/a.cu"]
ops = ["_C::a"]

[companions.other]
stand_in = ["thing/_C.abi3.so"]

[companions.other.source]
kind = "git"
urls = ["https://example.org/other.git"]
commit = "{COMMIT}"

[companions.other.python]
from = "other"
to = "thing/other"

[official_wheel]
package = "thing"
version = "1.0"
file = "thing-1.0-cp38-abi3-linux_x86_64.whl"
sha256 = "{SHA}"
cuda = "12.4"

[official_wheel.members."thing/_C.abi3.so"]
sha256 = "{SHA}"
"""


def write(folder: Path, text: str, name: str = "small") -> Path:
    path = folder / f"{name}.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refuse(folder: Path, old: str, new: str) -> DcaError:
    assert old in MINIMAL
    with pytest.raises(DcaError) as refused:
        recipes.load(write(folder, MINIMAL.replace(old, new, 1)))
    assert refused.value.code == "DCA-202"
    return refused.value


def tables(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of a TOML file that is no table, with the keys on the way to it."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from tables(inner, (*path, key))
    elif isinstance(value, list) and value and isinstance(value[0], dict):
        for inner in value:
            yield from tables(inner, path)
    else:
        yield path, value


def data_files() -> list[Path]:
    return sorted(path for folder in ("recipes", "toolkits") for path in (BUILD / folder).glob("*.toml"))


# --- the recipes of the project ------------------------------------------------------------------------------


def test_both_source_lines_are_there_in_the_order_they_are_tried() -> None:
    assert len(ALL) >= 2
    assert [loaded.recipe.priority for loaded in EVERY] == sorted({loaded.recipe.priority for loaded in EVERY})
    assert {path.stem for path in data.recipes_folder().glob("*.toml")} == {loaded.recipe.name for loaded in EVERY}


def names_of_data() -> set[str]:
    names = {loaded.recipe.name for loaded in EVERY} | {loaded.recipe.base_version for loaded in ALL}
    # One companion's name is also the C++ namespace of its kernels, which stands in every module, whoever compiled it.
    names |= {name for loaded in ALL for name in loaded.recipe.companions} - {"cutlass"}
    names |= {source.name for source in toolkits.load_sources()}
    models = BUILD / "models"
    return names | ({path.stem for path in models.iterdir()} if models.is_dir() else set())


def families_of_models() -> set[str]:
    """The first word of every architecture that a recipe serves, and of some that none does."""
    words = [re.match("[A-Z][a-z]+", name) for loaded in ALL for name in loaded.recipe.lean.architectures]
    return {word[0] for word in words if word} | {"Llama", "Mistral", "DeepSeek"}


def named_in_program(texts: dict[str, str]) -> list[str]:
    """Lines of some files that name a recipe, a version of one, a companion, a toolkit or a model."""
    whole = "|".join(map(re.escape, sorted(names_of_data())))
    begun = "|".join(map(re.escape, sorted(families_of_models())))
    words = re.compile(rf"(?<![\w-])({whole})(?![\w-])|({begun})", re.IGNORECASE)
    return [
        f"{name}:{number}: {line.strip()}"
        for name, text in texts.items()
        for number, line in enumerate(text.splitlines(), 1)
        if words.search(line)
    ]


def test_no_name_of_a_recipe_toolkit_or_model_occurs_in_the_program() -> None:
    program = {
        path.relative_to(data.PACKAGE).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(data.PACKAGE.rglob("*"))
        if path.is_file() and path.suffix != ".pyc" and "_data" not in path.parts
    }
    assert {"catalogue/recipes.py", "in_wheel_env/workers/list_ops.py", "cli/plan.py"} <= set(program)
    assert named_in_program(program) == []


@pytest.mark.parametrize("name", sorted({loaded.recipe.name for loaded in EVERY} | {"Qwen3MoeForCausalLM"}))
def test_a_name_in_the_program_would_be_found(name: str) -> None:
    assert len(named_in_program({"a.py": f'if recipe.name == "{name}":', "b.py": f"# for {name.lower()} only"})) == 2


def test_every_archive_and_wheel_is_pinned_by_its_hash_and_every_repository_by_its_commit() -> None:
    seen = [
        (path.name, keys, value)
        for path in data_files()
        for keys, value in tables(tomllib.loads(path.read_text(encoding="utf-8")))
    ]
    hashes = [(name, keys, value) for name, keys, value in seen if keys[-1] == "sha256"]
    commits = [(name, keys, value) for name, keys, value in seen if keys[-1] == "commit"]
    assert len(hashes) > 10
    assert len(commits) > 3
    assert [entry for entry in hashes if not re.fullmatch(r"[0-9a-f]{64}", entry[2])] == []
    assert [entry for entry in commits if not re.fullmatch(r"[0-9a-f]{40}", entry[2])] == []
    # A hash that is that of nothing, or one that was only filled in.
    assert [entry for entry in hashes if len(set(entry[2])) < 8] == []


@pytest.mark.parametrize("loaded", ALL, ids=lambda loaded: loaded.recipe.name)
class TestEachRecipe:
    def test_every_group_is_compiled_into_a_module_that_is_described(self, loaded: Loaded) -> None:
        recipe = loaded.recipe
        assert {group.module for group in recipe.groups.values()} <= set(recipe.modules)
        assert {module.tree for module in recipe.modules.values()} <= {"source", *recipe.companions}
        assert set(recipe.lean.groups) <= set(recipe.groups)

    def test_every_op_is_in_a_namespace_of_its_groups_module(self, loaded: Loaded) -> None:
        wrong = [
            op
            for group in loaded.recipe.groups.values()
            for op in (*group.ops, *group.answers)
            if not re.fullmatch(rf"{re.escape(group.module)}\w*::\w+", op)
        ]
        assert wrong == []

    def test_no_group_names_a_source_or_an_op_twice(self, loaded: Loaded) -> None:
        for group in loaded.recipe.groups.values():
            assert len(set(group.sources)) == len(group.sources)
            assert len({*group.ops, *group.answers}) == len(group.ops) + len(group.answers)

    def test_it_supports_what_its_torch_and_its_project_were_built_with(self, loaded: Loaded) -> None:
        recipe = loaded.recipe
        known = {version.line: version for version in toolkits.load_versions().versions}
        assert set(recipe.cuda.official) | {recipe.torch.cuda} <= set(recipe.cuda.supported) <= set(known)
        # What an nvcc does not know, ptxas of the build environment compiles from its PTX, for the GPU's major version.
        ptxas = set(known[recipe.torch.ptxas].archs) if recipe.torch.ptxas else set()
        for line in recipe.cuda.supported:
            majors = {arch.split(".")[0] for arch in {*known[line].archs, *ptxas}}
            assert {arch.split(".")[0] for arch in recipe.lean.archs} <= majors
        assert set(recipe.lean.default_archs) | set(recipe.lean.untried) <= set(recipe.lean.archs)
        assert not set(recipe.lean.default_archs) & set(recipe.lean.untried)

    @pytest.mark.parametrize("kind", ["run", "build"])
    def test_every_package_of_its_locks_has_a_hash(self, loaded: Loaded, kind: str) -> None:
        lines = (data.locks_folder(loaded.recipe.name) / f"{kind}.txt").read_text(encoding="utf-8")
        entries = [entry for entry in re.split(r"\n(?=\S)", lines) if not entry.startswith("#")]
        assert len(entries) > 10
        pinned = re.compile(r"[A-Za-z0-9._-]+(\[[\w,-]+\])?==\S+( ;[^\\]+)?( \\\n    --hash=sha256:[0-9a-f]{64})+\n?")
        assert [entry.splitlines()[0] for entry in entries if not pinned.fullmatch(entry)] == []

    def test_its_locks_pin_the_torch_that_is_built_against(self, loaded: Loaded) -> None:
        build = recipes.locked_versions(data.locks_folder(loaded.recipe.name) / "build.txt")
        assert loaded.locked["torch"] == build["torch"] == (loaded.recipe.torch.version,)

    def test_its_lock_pins_a_transformers_that_works(self, loaded: Loaded) -> None:
        assert loaded.locked["transformers"]
        assert [version for version in loaded.locked["transformers"] if version not in SpecifierSet(">=4.37,<5")] == []

    def test_its_locks_keep_to_what_the_recipe_asks_for(self, loaded: Loaded) -> None:
        build = recipes.locked_versions(data.locks_folder(loaded.recipe.name) / "build.txt")
        for requirements, locked in ((loaded.recipe.build_requirements, build), (loaded.recipe.caps, loaded.locked)):
            for text in requirements:
                requirement = Requirement(text)
                versions = locked[canonicalize_name(requirement.name)]
                assert versions, text
                assert [version for version in versions if version not in requirement.specifier] == [], text

    def test_its_locks_are_of_the_recipes_date(self, loaded: Loaded) -> None:
        for kind in ("run", "build"):
            first = (data.locks_folder(loaded.recipe.name) / f"{kind}.txt").read_text(encoding="utf-8").splitlines()[0]
            assert loaded.recipe.lock_date in first

    def test_the_kernels_of_its_attention_module_are_told_apart_by_their_names(self, loaded: Loaded) -> None:
        described = [module.stubs for module in loaded.recipe.modules.values() if module.stubs]
        assert described
        # A module that is only ever compiled needs no names.
        for stubs in (stubs for stubs in described if loaded.recipe.official_wheel):
            name = "_ZN5flash16flash_fwd_kernelI23Flash_fwd_kernel_traitsILi{}ELi64ELb0EN7cutlass{}E4RestEEvv"
            assert stubs.kernel(name.format(64, "6half_t")) == (64, "float16")
            assert stubs.kernel(name.format(256, "10bfloat16_t")) == (256, "bfloat16")
            assert stubs.kernel(name.format(128, "12float_e4m3_t")) is None
            assert stubs.kernel("_ZN4vllm15rms_norm_kernelEv") is None

    def test_it_is_identified_by_its_file_and_its_locks(self, loaded: Loaded) -> None:
        for digest in (loaded.digest, loaded.lock_digest, loaded.build_lock_digest):
            assert re.fullmatch(r"[0-9a-f]{64}", digest)


# --- what is asked for and not there -------------------------------------------------------------------------


def test_a_recipe_is_found_by_its_name() -> None:
    assert recipes.find(ALL[-1].recipe.name, ALL) is ALL[-1]


def test_an_unknown_recipe_is_answered_with_the_nearest_one() -> None:
    name = ALL[0].recipe.name
    with pytest.raises(DcaError) as refused:
        recipes.find(name[:-1] + "q", ALL)
    assert refused.value.code == "DCA-203"
    assert f"--recipe {name}?" in refused.value.remedy
    assert all(loaded.recipe.name in refused.value.why for loaded in ALL)


def test_an_unknown_recipe_that_is_near_to_none_gets_no_guess() -> None:
    with pytest.raises(DcaError) as refused:
        recipes.find("zzz", ALL)
    assert refused.value.code == "DCA-203"
    assert "did you mean" not in refused.value.remedy


# --- what the schema refuses ---------------------------------------------------------------------------------


def test_the_smallest_recipe_is_read(tmp_path: Path) -> None:
    loaded = recipes.load(write(tmp_path, MINIMAL))
    assert isinstance(loaded.recipe.source, GitSource)
    assert loaded.recipe.source.pin == f"commit:{COMMIT}"
    assert (loaded.series_revision, loaded.lock_digest, loaded.locked) == (0, "", {})


@pytest.mark.parametrize("pattern", ["(", "no groups", "(?P<head_dim>.)", "(?P<head_dim>.)(?P<dtype>.)(?P<more>.)"])
def test_a_pattern_of_kernels_has_their_head_dimension_and_data_type(pattern: str, tmp_path: Path) -> None:
    stubs = "[modules._C.stubs]\nheaders = []\nfunctions = []\nhead_dims = [64]\n"
    stubs += f"kernels = '{pattern}'\ndtypes = {{ float16 = {{ type = 'half', sources = '*' }} }}\n"
    error = refuse(tmp_path, "[groups.core]", f"{stubs}\n[groups.core]")
    assert "kernels" in str(error)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        pytest.param('["https://example.org/thing.git"]', '["http://example.org/thing.git"]', id="http"),
        pytest.param('["https://example.org/thing.git"]', '["ext::sh -c id"]', id="a transport that runs programs"),
        pytest.param('["https://example.org/thing.git"]', '["--upload-pack=id"]', id="an option for a URL"),
        pytest.param('["https://example.org/thing.git"]', '["https://u:p@example.org/x"]', id="credentials in a URL"),
        pytest.param('["https://example.org/thing.git"]', '["https://example.org/x\\n"]', id="URL with a line break"),
        pytest.param('["https://example.org/thing.git"]', "[]", id="no URL"),
        pytest.param(f'commit = "{COMMIT}"', f'commit = "{COMMIT[:12]}"', id="a short commit"),
        pytest.param(f'commit = "{COMMIT}"', 'commit = "main"', id="a branch for a commit"),
        pytest.param('sources = ["csrc/a.cu"]', 'sources = ["../a.cu"]', id="a path that leaves its folder"),
        pytest.param('sources = ["csrc/a.cu"]', 'sources = ["csrc/../../a.cu"]', id="a path that leaves it later"),
        pytest.param('sources = ["csrc/a.cu"]', 'sources = ["/etc/passwd"]', id="an absolute path"),
        pytest.param('sources = ["csrc/a.cu"]', 'sources = ["csrc\\\\a.cu"]', id="a path with backslashes"),
        pytest.param('requirements = "requirements.txt"', 'requirements = ""', id="an empty path"),
        pytest.param('to = "thing/other"', 'to = "thing//other"', id="a path with an empty part"),
        pytest.param(f'sha256 = "{SHA}"', f'sha256 = "{SHA[:-1]}"', id="a short hash"),
        pytest.param(f'sha256 = "{SHA}"', f'sha256 = "{SHA.upper()}"', id="a hash in capitals"),
        pytest.param('file = "thing-1.0-', 'file = "../thing-1.0-', id="a folder in a file's name"),
        pytest.param('cuda = "12.4"', 'cuda = "12.4.1"', id="an exact version for a CUDA line"),
        pytest.param('archs = ["8.0"]', 'archs = ["sm_80"]', id="a GPU arch in another spelling"),
        pytest.param('python = ">=3.10"', 'python = "3.10"', id="a version for a range"),
        pytest.param('base_version = "1.0"', 'base_version = "1.0+local"', id="a local version"),
        pytest.param('base_version = "1.0"', 'base_version = "one"', id="no version"),
        pytest.param('lock_date = "2025-01-01"', 'lock_date = "January"', id="no date"),
        pytest.param('archs = ["8.0+PTX"]', 'archs = ["8.0+ptx"]', id="PTX in another spelling"),
        pytest.param('"OTHER_DIR"', '"OTHER DIR"', id="no name of a CMake variable"),
        pytest.param("priority = 1", 'priority = "first"', id="a text for a number"),
        pytest.param('title = "a small one"', 'titel = "a small one"', id="a wrong key"),
        pytest.param('why = "all of it"\n', "", id="a missing key of a table"),
    ],
)
def test_a_bad_value_is_refused_with_its_line(old: str, new: str, tmp_path: Path) -> None:
    error = refuse(tmp_path, old, new)
    line = int(re.findall(r", line (\d+): ", error.what)[0])
    expected = MINIMAL[: MINIMAL.index(old)].count("\n") + 1
    # A key that is missing stands nowhere: its table is named.
    assert line == (expected if new else MINIMAL.splitlines().index("[groups.core]") + 1)


@pytest.mark.parametrize(
    ("old", "new", "named"),
    [
        ('[groups.core]\nmodule = "_C"', '[groups.core]\nmodule = "_D"', "_D"),
        ('groups = ["core"]', 'groups = ["core", "moe"]', "moe"),
        ('path = "thing/_C.abi3.so"', 'path = "thing/_C.abi3.so"\ntree = "elsewhere"', "elsewhere"),
        ("[full.companions.other]", "[full.companions.another]", "another"),
        ('tree = "other"', 'tree = "another"', "another"),
        ('stand_in = ["thing/_C.abi3.so"]', 'stand_in = ["thing/missing.so"]', "thing/missing.so"),
        ('why = "all of it"', 'why = "all of it"\nhead_dims = [128]', "head dimension 128"),
        ('why = "all of it"', 'why = "all of it"\ndtypes = ["float16"]', "data type float16"),
    ],
)
def test_a_name_that_is_described_nowhere_is_refused(old: str, new: str, named: str, tmp_path: Path) -> None:
    why = refuse(tmp_path, old, new).why
    assert f"`{named}`" in why or f"the {named}," in why


def test_a_file_must_have_its_recipes_name(tmp_path: Path) -> None:
    with pytest.raises(DcaError) as refused:
        recipes.load(write(tmp_path, MINIMAL, name="tall"))
    assert refused.value.code == "DCA-202"
    assert "`small`" in refused.value.what


def test_recipes_of_a_folder_come_by_priority(tmp_path: Path) -> None:
    for name, priority in (("aaa", 3), ("bbb", 1), ("ccc", 2)):
        text = MINIMAL.replace('"small"', f'"{name}"').replace("priority = 1", f"priority = {priority}")
        write(tmp_path, text, name)
    assert [loaded.recipe.name for loaded in recipes.load_all(tmp_path)] == ["bbb", "ccc", "aaa"]


# --- series and locks ----------------------------------------------------------------------------------------


def test_the_revision_of_a_series_is_read(tmp_path: Path) -> None:
    (tmp_path / "series").write_text("# a series\n# revision: 12\n0001.patch\n")
    assert recipes.series_revision(tmp_path) == 12
    assert recipes.series_revision(tmp_path / "missing") == 0


def test_a_series_without_a_revision_is_refused(tmp_path: Path) -> None:
    (tmp_path / "series").write_text("0001.patch\n")
    with pytest.raises(DcaError) as refused:
        recipes.series_revision(tmp_path)
    assert refused.value.code == "DCA-202"


def test_all_versions_of_a_package_that_a_lock_pins_are_read(tmp_path: Path) -> None:
    (tmp_path / "run.txt").write_text(
        "# comment==1\nnumpy==2.10.0 ; python_version >= '3.11' \\\n    --hash=sha256:00\n"
        "numpy==2.9.1 ; python_version < '3.11' \\\n    --hash=sha256:01\nNVIDIA-x==1.0;x\ny==1+cu124 \\\n"
    )
    assert recipes.locked_versions(tmp_path / "run.txt") == {
        "numpy": ("2.9.1", "2.10.0"),
        "nvidia-x": ("1.0",),
        "y": ("1+cu124",),
    }


# --- every recipe can be planned, and built ------------------------------------------------------------------

ON_THE_INDEX = [loaded for loaded in ALL if loaded.recipe.source.kind == "sdist"]
QUICK = "index-only"
"""The group that every recipe has for a build of a few minutes."""


@pytest.mark.network
@pytest.mark.parametrize("loaded", ON_THE_INDEX, ids=lambda loaded: loaded.recipe.name)
@pytest.mark.parametrize("groups", [(), (QUICK,)], ids=["whole", QUICK])
def test_it_can_be_planned(loaded: Loaded, groups: tuple[str, ...], dca: RunDca) -> None:
    recipe = loaded.recipe
    done = dca("plan", "--recipe", recipe.name, "--json", *(word for name in groups for word in ("--with", name)))
    assert done.returncode == 0, done.stderr[-4000:]
    plan = Plan.model_validate_json(done.stdout)
    assert (plan.recipe, plan.groups) == (recipe.name, groups or recipe.lean.groups)
    assert plan.version.startswith(f"{recipe.base_version}+dca{loaded.series_revision}.")
    assert {module.name for module in plan.modules} == {recipe.groups[name].module for name in plan.groups}


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.parametrize("loaded", ON_THE_INDEX, ids=lambda loaded: loaded.recipe.name)
def test_it_can_be_built(loaded: Loaded, dca: RunDca, tmp_path: Path) -> None:
    recipe = loaded.recipe
    done = dca("wheel", "--recipe", recipe.name, "--with", QUICK, "--out", tmp_path, "--json", timeout=3000.0)
    assert done.returncode == 0, done.stderr[-4000:]
    wheel = Made.model_validate_json(done.stdout)
    (module,) = documents.read(Build, Path(wheel.run) / "build.json").modules
    assert Path(wheel.wheel).parent == tmp_path
    assert {ops.op_name(schema) for schema in module.schemas} == set(recipe.groups[QUICK].ops)
    if recipe.official_wheel is not None:
        digests = {ops.op_name(schema): ops.digest(schema) for schema in module.schemas}
        assert digests.items() <= recipe.official_wheel.schemas.items()
