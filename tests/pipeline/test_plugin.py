"""A plugin's wheel: planned with empty stages, built of Python alone, and evidenced like every other wheel."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from dca import inspection, publish
from dca.binaries.elf_writer import shared_library
from dca.catalogue import recipes, toolkits
from dca.catalogue.plan import Cannot, Plan, Request
from dca.catalogue.recipes import KERNELS, PLUGINS_GROUP, Loaded
from dca.catalogue.variants import PLAIN
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.inspection import Inspection
from dca.pipeline import gather, wheel
from dca.pipeline.wheel import Made
from dca.publish.check import check
from dca.publish.folder import Folder
from dca.resolve import resolve
from dca.smoke import Request as Proof
from dca.smoke import smoke
from dca.trust import evidence, rebuild
from dca.trust.verify import verify
from tests.support import plugins
from tests.support.plugins import NAME, Data

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WHEEL = "thing_dca-1.2+vllm0.33.0-py3-none-any.whl"
INFO = "thing_dca-1.2+vllm0.33.0.dist-info"
PLUGINS = [loaded for loaded in recipes.load_all() if loaded.recipe.is_plugin]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Data:
    return Data(tmp_path / "data", monkeypatch)


@pytest.fixture
def kept(tmp_path: Path) -> store.Store:
    return store.Store(tmp_path / "cache", offline=True)


def build(kept: store.Store, out: Path) -> Made:
    return wheel.make(gather.make_plan(Request(recipe=NAME), kept), kept, out, Silent())


def changed(made: Path, folder: Path, change: Callable[[str, bytes], bytes | None], **more: bytes) -> Path:
    """A copy of a wheel with other files and a RECORD that fits them."""
    rows: list[tuple[str, str, int]] = []
    folder.mkdir()
    with zipfile.ZipFile(made) as old, zipfile.ZipFile(folder / made.name, "w") as new:
        files = {name: change(name, old.read(name)) for name in old.namelist() if not name.endswith("/RECORD")}
        for name, content in {**files, **more}.items():
            if content is not None:
                new.writestr(name, content)
                digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                rows.append((name, f"sha256={digest}", len(content)))
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([*rows, (f"{INFO}/RECORD", "", "")])
        new.writestr(f"{INFO}/RECORD", text.getvalue())
    return folder / made.name


def replacing(old: bytes, new: bytes) -> Callable[[str, bytes], bytes]:
    return lambda _, content: content.replace(old, new)


# --- the plan ------------------------------------------------------------------------------------------------


def test_its_plan_compiles_and_asks_nothing(small: Data, tmp_path: Path) -> None:
    planned = gather.make_plan(Request(recipe=NAME), store.Store(tmp_path / "online"))
    plan = planned.plan
    assert (plan.version, plan.engine, plan.profile) == ("1.2+vllm0.33.0", "vllm==0.33.0", "plugin")
    assert not any((plan.modules, plan.toolkit, plan.host_compiler, plan.torch, plan.cuda, plan.archs, plan.drivers))
    assert planned.reach.places == {}, "no place is asked"
    said = {choice.subject: f"{choice.value} {choice.reason}" for choice in plan.choices}
    assert "vllm==0.33.0" in said["GPUs, driver"]
    assert "its own wheel decides, with torch 2.14.0 for CUDA 13.0" in said["GPUs, driver"]


def test_its_plans_key_is_of_its_source_and_not_of_the_machine(small: Data, kept: store.Store) -> None:
    plan = gather.make_plan(Request(recipe=NAME), kept).plan
    assert (plan.python, plan.python_path) == ("", "")
    (source,) = plan.sources
    assert (source.origin, source.places) == ("tool", ("small",))
    (small.source / "thing_dca/__pycache__/more.pyc").write_text("a")
    assert gather.make_plan(Request(recipe=NAME), kept).plan.key == plan.key
    (small.source / "thing_dca/inner/__init__.py").write_text("X = 2\n")
    assert gather.make_plan(Request(recipe=NAME), kept).plan.key != plan.key


def test_it_is_never_chosen_by_itself_and_the_plan_says_so(small: Data, tmp_path: Path) -> None:
    cache = store.Store(tmp_path / "cache", offline=True)
    own = gather.world(Request(), cache)
    first = min(own.recipes, key=lambda loaded: loaded.recipe.priority)
    assert first.recipe.is_plugin, "it would be the first"
    outcome = resolve(Request(recipe=None), own)
    if isinstance(outcome, Plan):
        passed = {over.name: over.reasons[0].text for over in outcome.passed_over}
        assert f"--recipe {NAME}" in passed[NAME]
        assert outcome.recipe != NAME
    else:
        assert NAME not in {over.name for over in outcome.passed_over}


def test_it_is_no_way_out_of_a_request_that_nothing_can_be_built_for(small: Data, tmp_path: Path) -> None:
    own = gather.world(Request(), store.Store(tmp_path / "cache", offline=True))
    outcome = resolve(Request(groups=("no-such-group",), strict_cuda=True, cuda="11.0"), own)
    assert isinstance(outcome, Cannot)
    assert NAME not in {outcome.nearest, *(over.name for over in outcome.passed_over)}
    assert not any(NAME in way for way in outcome.ways)


@pytest.mark.parametrize(
    ("asked", "options"),
    [
        ({"cuda": "12.4", "archs": ("9.0",)}, "--cuda, --arch"),
        ({"profile": "full"}, "--profile"),
        ({"profile": KERNELS}, "--profile"),
        ({"prebuilt": ("all",)}, "--prebuilt"),
        ({"groups": ("moe",)}, "--with"),
        ({"python": sys.executable}, "--python"),
    ],
)
def test_options_that_would_change_nothing_are_rejected(
    small: Data, kept: store.Store, asked: dict[str, object], options: str
) -> None:
    with pytest.raises(DcaError) as refused:
        gather.make_plan(Request.model_validate({"recipe": NAME, **asked}), kept)
    assert refused.value.code == "DCA-309"
    assert f"{options} would change nothing" in refused.value.why
    assert refused.value.remedy == f"leave {options.replace(', ', ' and ')} out."


def test_a_local_source_is_rejected_too(small: Data, kept: store.Store, tmp_path: Path) -> None:
    with pytest.raises(DcaError, match="cannot be built") as refused:
        gather.make_plan(Request(recipe=NAME, source=str(tmp_path)), kept)
    assert "--source would change nothing" in refused.value.why


# --- the wheel -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_its_wheel_has_the_package_and_requires_exactly_its_engine(
    small: Data, kept: store.Store, tmp_path: Path
) -> None:
    made = build(kept, tmp_path / "dist")
    assert Path(made.wheel).name == WHEEL
    with zipfile.ZipFile(made.wheel) as archive:
        assert archive.namelist() == [
            "thing_dca/__init__.py",
            "thing_dca/inner/__init__.py",
            "thing_dca/kernel.ptx",
            "thing_dca/py.typed",
            f"{INFO}/METADATA",
            f"{INFO}/WHEEL",
            f"{INFO}/dca.json",
            f"{INFO}/entry_points.txt",
            f"{INFO}/sboms/dca.cdx.json",
            f"{INFO}/RECORD",
        ]
        assert b"\nRequires-Dist: vllm==0.33.0\n" in archive.read(f"{INFO}/METADATA")
        assert b"Root-Is-Purelib: true\n" in archive.read(f"{INFO}/WHEEL")
        own = archive.read(f"{INFO}/dca.json") + archive.read(f"{INFO}/sboms/dca.cdx.json")
    assert b"pkg:pypi/vllm@0.33.0" in own
    assert str(tmp_path).encode() not in own, "no path of the machine"
    assert str(tmp_path) not in (Path(made.run) / "provenance.json").read_text(encoding="utf-8")
    inspected = documents.read(Inspection, Path(made.run) / "inspection.json")
    assert (inspected.problems, inspected.differences) == ((), ())
    assert (inspected.engine, inspected.plugins) == ("vllm==0.33.0", {"thing": "thing_dca:register"})


@pytest.mark.slow
def test_two_machines_build_the_same_bytes(small: Data, tmp_path: Path) -> None:
    one = build(store.Store(tmp_path / "a", offline=True), tmp_path / "dist")
    shutil.copytree(small.source, tmp_path / "copy")
    two = build(store.Store(tmp_path / "b", offline=True), tmp_path / "elsewhere/dist")
    assert one.sha256 == two.sha256
    assert not one.unchanged
    again = build(store.Store(tmp_path / "a", offline=True), tmp_path / "dist")
    assert (again.unchanged, again.sha256) == (True, one.sha256)


def test_a_source_without_the_package_is_rejected(small: Data, kept: store.Store, tmp_path: Path) -> None:
    (small.source / "thing_dca/__init__.py").unlink()
    with pytest.raises(DcaError) as refused:
        build(kept, tmp_path / "dist")
    assert refused.value.code == "DCA-703"
    assert not list((tmp_path / "dist").glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_for_another_engine_differs_from_its_plan(small: Data, kept: store.Store, tmp_path: Path) -> None:
    made = build(kept, tmp_path / "dist")
    plan = documents.read(Plan, Path(made.run) / "plan.json")
    other = changed(Path(made.wheel), tmp_path / "other", replacing(b"vllm==0.33.0", b"vllm>=0.33.0"))
    assert inspection.compare(inspection.inspect(Path(made.wheel)), plan) == []
    assert inspection.compare(inspection.inspect(other), plan) == [
        "METADATA requires `vllm>=0.33.0`, but vllm==0.33.0 was planned."
    ]


def test_there_is_nothing_to_list_and_nothing_to_pack(small: Data, kept: store.Store, tmp_path: Path) -> None:
    planned = gather.make_plan(Request(recipe=NAME), kept)
    with pytest.raises(DcaError, match="nothing of small-plugin is compiled"):
        wheel.list_commands(planned, kept, Silent())
    with pytest.raises(DcaError, match="downloads nothing") as refused:
        wheel.pack(planned, Request(recipe=NAME), kept, tmp_path / "bundle", Silent())
    assert f"--recipe {NAME} --offline" in refused.value.remedy


# --- its evidence --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_its_static_level_passes_and_says_what_no_level_proves(small: Data, kept: store.Store, tmp_path: Path) -> None:
    made = build(kept, tmp_path / "dist")
    proven = smoke(Proof(wheel=Path(made.wheel), level=None), recipes.load_all(), kept, Silent())
    assert proven.passed
    assert (proven.level, proven.recipe) == ("static", NAME)
    assert [case.name for case in proven.cases] == [
        "static/files",
        "static/pure",
        "static/engine",
        "static/entry-point",
    ]
    assert "no level runs a plugin in an engine yet" in proven.not_proven[0]
    for level in ("cpu", "kernels", "gpu"):
        with pytest.raises(DcaError) as refused:
            smoke(Proof(wheel=Path(made.wheel), level=level), recipes.load_all(), kept, Silent())
        assert refused.value.code == "DCA-802"
        assert "its level is static" in refused.value.what


@pytest.mark.slow
@pytest.mark.parametrize(
    ("old", "new", "case"),
    [
        (b"Requires-Dist: vllm==0.33.0", b"Requires-Dist: vllm==0.33.1", "static/engine"),
        (b"Requires-Dist: vllm==0.33.0\n", b"", "static/engine"),
        (b"thing_dca:register", b"thing_dca:other", "static/entry-point"),
        (b"[vllm.general_plugins]", b"[vllm.other_plugins]", "static/entry-point"),
        (b"Name: thing-dca", b"Name: other", "static/files"),
    ],
)
def test_each_static_case_can_fail(
    small: Data, kept: store.Store, tmp_path: Path, old: bytes, new: bytes, case: str
) -> None:
    made = build(kept, tmp_path / "dist")
    other = changed(Path(made.wheel), tmp_path / "other", replacing(old, new))
    proven = smoke(Proof(wheel=other, level="static"), recipes.load_all(), kept, Silent())
    assert [failed.name for failed in proven.failed] == [case]


def test_compiled_code_in_it_fails(small: Data, kept: store.Store, tmp_path: Path) -> None:
    made = build(kept, tmp_path / "dist")
    library = shared_library("x.so", {}, b"")
    other = changed(Path(made.wheel), tmp_path / "other", lambda _, content: content, **{"thing_dca/x.so": library})
    proven = smoke(Proof(wheel=other, level="static"), recipes.load_all(), kept, Silent())
    assert "static/pure" in {failed.name for failed in proven.failed}


@pytest.mark.slow
def test_its_evidence_is_verified_and_published(small: Data, kept: store.Store, tmp_path: Path) -> None:
    made = build(kept, tmp_path / "dist")
    smoke(Proof(wheel=Path(made.wheel), level="static"), recipes.load_all(), kept, Silent())
    files = evidence.collect(Path(made.wheel), made.sha256, kept)
    found = verify(Path(made.wheel), files)
    assert found.wrong == ()
    assert found.level == "static"
    assert {finding.check for finding in found.findings if finding.status == "not proven"} <= {"signature"}
    done = publish.publish([Path(made.wheel)], Folder(tmp_path / "index"), kept, Silent())
    (record,) = done.added
    assert check(tmp_path / "index").fine
    assert (record.project, record.cuda, record.archs, record.torch, record.recipe) == ("thing-dca", "", (), "", NAME)
    assert {proof.kind for proof in record.evidence} >= {"inspection", "provenance", "sbom", "smoke"}


@pytest.mark.slow
def test_it_is_rebuilt_from_its_provenance_with_the_same_bytes(small: Data, kept: store.Store, tmp_path: Path) -> None:
    made = build(kept, tmp_path / "dist")
    files = evidence.collect(Path(made.wheel), made.sha256, kept)
    found = rebuild.rebuild(Path(made.wheel), made.sha256, files, kept, Silent())
    assert found.status == "proven", found.says


@pytest.mark.slow
def test_as_a_variant_it_is_the_one_for_machines_without_another(
    small: Data, kept: store.Store, tmp_path: Path
) -> None:
    request = Request(recipe=NAME, variants=True)
    made = wheel.make(gather.make_plan(request, kept), kept, tmp_path / "dist", Silent())
    path = Path(made.wheel)
    assert path.name == f"{WHEEL.removesuffix('.whl')}-null.whl"
    assert inspection.inspect(path).variant == PLAIN
    assert smoke(Proof(wheel=path, level="static"), recipes.load_all(), kept, Silent()).passed
    place = Folder(tmp_path / "index")
    publish.publish([path], place, kept, Silent(), publish.Additions(variants=True))
    assert check(place.root).fine
    project = WHEEL.split("-")[0].replace("_", "-")
    assert json.loads(place.read(f"variants/{project}/{WHEEL.split('-py3')[0]}-variants.json"))["variants"] == {
        "null": {}
    }
    sha256 = store.sha256_file(path)
    found = rebuild.rebuild(path, sha256, evidence.collect(path, sha256, kept), kept, Silent())
    assert found.status == "proven", found.says


# --- what the schema refuses ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "plugin"\n', "", "is missing"),
        ("[engine]", "[other]", "other"),
        ('[source]\nkind = "folder"\npath = "small"', '[source]\nkind = "folder"\npath = "../small"', "relative path"),
        ("supported = []", 'supported = ["13.0"]', "no CUDA lines in `supported`"),
        ('python = ">=3.11', 'caps = ["numpy<3"]\npython = ">=3.11', "it has no `caps`"),
        ('[patches.entry_points."vllm.general_plugins"]', "[patches.entry_points.other]", "an entry point in"),
        ('path = "small"', 'path = "absent"', "does not exist"),
    ],
)
def test_a_recipe_that_is_neither_kind_is_rejected(small: Data, old: str, new: str, said: str) -> None:
    assert old in plugins.RECIPE
    small.file.write_text(plugins.RECIPE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(DcaError) as refused:
        small.load()
    assert refused.value.code == "DCA-202"
    assert said in f"{refused.value.what} {refused.value.why}"


# --- the project's own plugins -------------------------------------------------------------------------------


@pytest.mark.parametrize("loaded", PLUGINS, ids=lambda loaded: loaded.recipe.name)
class TestEachPlugin:
    def test_its_lock_pins_its_engine_and_the_torch_that_the_recipe_names(self, loaded: Loaded) -> None:
        engine = loaded.recipe.engine
        assert engine is not None
        assert loaded.locked[engine.package] == (engine.version,)
        assert loaded.locked["torch"] == (loaded.recipe.torch.version,)
        lock = data.run_lock(loaded.recipe.name, "plugin").read_text(encoding="utf-8")
        assert loaded.recipe.lock_date in lock.splitlines()[0]
        assert lock.count("--hash=sha256:") > 1000

    def test_its_torch_is_for_a_known_cuda(self, loaded: Loaded) -> None:
        assert loaded.recipe.torch.cuda in loaded.recipe.cuda.official
        assert loaded.recipe.torch.cuda in {version.line for version in toolkits.load_versions().versions}

    def test_it_says_what_its_own_project_file_says(self, loaded: Loaded) -> None:
        recipe = loaded.recipe
        assert recipe.source.kind == "folder"
        text = (data.source_folder(recipe.source.path) / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text)["project"]
        assert (project["name"], project["version"]) == (recipe.package, recipe.base_version)
        assert project["entry-points"][PLUGINS_GROUP] == recipe.patches.entry_points[PLUGINS_GROUP]
