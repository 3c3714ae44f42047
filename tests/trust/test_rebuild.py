"""`dca verify --rebuild`: the same bytes again, and the differences of other wheels."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path

import pytest

from dca.catalogue import kept_ptx, toolkits
from dca.catalogue.plan import Plan
from dca.foundation.errors import DcaError
from dca.foundation.store import Store
from dca.pipeline import gather
from dca.pipeline.wheel import Made
from dca.trust import evidence, rebuild
from dca.wheelfile import provenance
from tests.support import RunDca, make_small


def packed(folder: Path, name: str, files: dict[str, bytes], level: int = 6) -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=level) as archive:
        for member, content in files.items():
            archive.writestr(zipfile.ZipInfo(member, (2026, 1, 1, 0, 0, 0)), content, zipfile.ZIP_DEFLATED, level)
    return path


def library(folder: Path, text: str) -> bytes:
    (folder / "a.c").write_text(text)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", folder / "a.c", "-o", folder / "a.so", "-Wl,-s,--build-id=none"], check=True
    )
    return (folder / "a.so").read_bytes()


def test_a_difference_is_named_with_its_file_and_its_place(tmp_path: Path) -> None:
    one = {"a.txt": b"same\nold\n", "b.so": library(tmp_path, 'const char *f(void) { return "old"; }\n'), "c": b""}
    two = {"a.txt": b"same\nnew\n", "b.so": library(tmp_path, 'const char *f(void) { return "new"; }\n'), "d": b""}
    told = rebuild.differing(packed(tmp_path, "1.whl", one), packed(tmp_path, "2.whl", two))
    assert told[:3] == ["only the first has c", "only the second has d", "a.txt: line 2 is 'old' and 'new'"]
    assert told[3].startswith("b.so: sections .rodata (")
    shorter = packed(tmp_path, "3.whl", {**one, "a.txt": b"same\n"})
    assert rebuild.differing(packed(tmp_path, "1.whl", one), shorter) == ["a.txt: line 2 is 'old' and nothing"]
    cut = packed(tmp_path, "4.whl", {**one, "b.so": one["b.so"][:500]})
    assert "not a complete module" in rebuild.differing(packed(tmp_path, "1.whl", one), cut)[0]


def test_other_packing_of_the_same_files_is_said_to_be_that(tmp_path: Path) -> None:
    files = {"a.txt": b"some text " * 1000}
    one, two = packed(tmp_path, "1.whl", files, 1), packed(tmp_path, "2.whl", files, 9)
    assert one.read_bytes() != two.read_bytes()
    (told,) = rebuild.differing(one, two)
    assert "packed differently" in told


def test_the_request_is_the_one_that_was_made(made: Made, cache: Store) -> None:
    asked = rebuild.request((Path(made.run) / evidence.PROVENANCE).read_bytes())
    plan = json.loads((Path(made.run) / "plan.json").read_bytes())
    assert (asked.recipe, asked.profile, list(asked.archs)) == (plan["recipe"], plan["profile"], plan["archs"])
    assert asked.groups == ()
    assert (asked.prebuilt, asked.prebuilt_whole) == ((), False)
    assert gather.make_plan(asked, cache).plan.key == Plan.model_validate(plan).key


def test_nothing_is_taken_from_a_compiler_cache_when_a_wheel_is_built_again() -> None:
    """What others have stored there proves nothing."""
    asked = {"recipe": "r", "profile": "lean", "groups": [], "archs": ["8.0"], "cuda": "12.4", "prebuilt": []}
    definition = {"buildType": provenance.BUILD_TYPE, "externalParameters": asked}
    content = json.dumps({"predicate": {"buildDefinition": definition}}).encode()
    assert rebuild.request(content).compiler_cache == "off"


def test_a_wheel_is_built_again_whatever_this_machines_driver() -> None:
    asked = {"recipe": "r", "profile": "lean", "groups": [], "archs": ["9.0"], "cuda": "12.1", "prebuilt": ["all"]}
    definition = {"buildType": provenance.BUILD_TYPE, "externalParameters": asked}
    request = rebuild.request(json.dumps({"predicate": {"buildDefinition": definition}}).encode())
    drivers = toolkits.load_versions().drivers
    assert request.driver
    assert all(drivers.driver(request.driver).runs(release) for release in drivers.releases)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"predicate": {"buildDefinition": {"buildType": "other"}}}'])
def test_a_provenance_that_says_nothing_is_told(content: bytes) -> None:
    with pytest.raises(DcaError) as refused:
        rebuild.request(content)
    assert refused.value.code == "DCA-111"


def test_a_plan_that_is_another_today_is_no_proof_either_way(
    dca: RunDca, wheel: Path, made: Made, tmp_path: Path
) -> None:
    told = json.loads((Path(made.run) / evidence.PROVENANCE).read_bytes())
    definition = told["predicate"]["buildDefinition"]
    definition["internalParameters"]["plan"] = "0" * 16
    definition["internalParameters"]["choices"]["torch"] = "1.0"
    for part in definition["resolvedDependencies"]:
        if part["name"] == "recipe":
            part["digest"]["sha256"] = "0" * 64
    (tmp_path / evidence.PROVENANCE).write_text(json.dumps(told))
    done = dca("verify", wheel, "--evidence", tmp_path, "--rebuild")
    assert "not proven: it cannot be built again in the same way: the recipe has changed; torch was 1.0" in done.stdout


def test_without_provenance_nothing_can_be_built_again(dca: RunDca, wheel: Path, tmp_path: Path) -> None:
    done = dca("verify", wheel, "--evidence", tmp_path, "--rebuild")
    assert done.returncode == 1
    assert "there is no provenance" in done.stderr


@pytest.mark.whole
def test_a_small_wheel_built_again_has_the_same_bytes(dca: RunDca, small_cache: Path, tmp_path: Path) -> None:
    made = make_small(dca, small_cache, tmp_path)
    kept = kept_ptx.beside(Path(made.wheel))
    before = kept.read_bytes()
    kept.unlink()
    done = dca("verify", made.wheel, "--rebuild", "--json", "--cache-dir", small_cache, timeout=3000.0)
    assert done.returncode == 0, done.stderr
    found = {one["check"]: one["status"] for one in json.loads(done.stdout)["findings"]}
    assert found["rebuild"] == "proven"
    assert kept.read_bytes() == before
    assert not list(Store(small_cache).root.glob("rebuild/*"))


@pytest.mark.slow
def test_the_ptx_of_a_rebuild_is_written_beside_a_wheel_without_it(tmp_path: Path) -> None:
    built, wheel = tmp_path / "rebuilt/a-1-py3-none-any.whl", tmp_path / "a-1-py3-none-any.whl"
    assert rebuild.keep_ptx(built, wheel) == ""
    built.parent.mkdir()
    kept_ptx.beside(built).write_bytes(b"texts")
    assert rebuild.keep_ptx(built, wheel) == " Its PTX is in a-1-py3-none-any.ptx.zip now."
    assert kept_ptx.beside(wheel).read_bytes() == b"texts"
    assert rebuild.keep_ptx(built, wheel) == ""
    kept_ptx.beside(wheel).write_bytes(b"spoilt")
    assert rebuild.keep_ptx(built, wheel) != ""
    assert "could not be written" in rebuild.keep_ptx(built, tmp_path / "a-1-py3-none-any.ptx.zip" / "b.whl")
