"""Bundles: packing all that a build takes into one file, and reading such a file as if it had been made to do harm."""

from __future__ import annotations

import functools
import io
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from dca.catalogue import machine, toolkits
from dca.catalogue.plan import Plan, PlannedSource, Reach, Request
from dca.catalogue.recipes import Companion, GitSource, Loaded, Recipe, SdistSource
from dca.catalogue.toolkits import FoundToolkit
from dca.cli import options
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.pipeline import bundle, gather
from dca.pipeline.bundle import Bundle, Manifest, Part
from dca.pipeline.planned import Planned
from dca.sources import fetch, git, gitpack
from dca.toolchain import environments, lockfile
from tests.support import INDEX_ONLY, ROOT, RunDca, link_cache, make_small, quiet_run
from tests.support.kills import killed_runs, leftovers, whole_run
from tests.support.repositories import Repository
from tests.support.web import Place, sha

SDIST = "thing-1.0.tar.gz"
WHEEL = "tiny-1.0-py3-none-any.whl"


@dataclass
class Small:
    """A stand-in build of one sdist, one git tree and one wheel."""

    plan: Plan
    recipe: Recipe
    cache: store.Store
    folder: Path
    lock: Path

    def pack(self, name: str = "one.dca", cache: store.Store | None = None) -> bundle.Packed:
        run = quiet_run(self.folder, cache or self.cache)
        tree = fetch.fetch(self.plan, self.recipe, run)
        contents = Planned(self.plan, self.recipe, (), Reach(places={}))
        return bundle.pack(contents, tree, Request(), run, self.folder / name)

    def there(self) -> Plan:
        """The plan of a machine that has nothing of it: every source comes from where the recipe says."""
        kit = self.plan.sources[1].model_copy(
            update={"origin": "git", "places": self.recipe.companions["kit"].source.urls}
        )
        return self.plan.model_copy(update={"sources": (self.plan.sources[0], kit)})

    def unpack(self, path: Path, cache: store.Store) -> None:
        contents = Planned(self.there(), self.recipe, (), Reach(places={}))
        bundle.unpack(bundle.read(path), contents, quiet_run(self.folder, cache))


def tiny_wheel() -> bytes:
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as archive:
        info = "tiny-1.0.dist-info"
        for name, text in {
            "tiny.py": "VALUE = 1\n",
            f"{info}/METADATA": "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        }.items():
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), text)
        record = f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        archive.writestr(zipfile.ZipInfo(f"{info}/RECORD", (1980, 1, 1, 0, 0, 0)), record)
    return body.getvalue()


@functools.cache
def sdist_bytes() -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:gz") as archive:
        info = tarfile.TarInfo("thing-1.0/setup.py")
        info.size = 2
        archive.addfile(info, io.BytesIO(b"x\n"))
    return body.getvalue()


@pytest.fixture
def small(
    planned: Plan, all_recipes: tuple[Loaded, ...], place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Small:
    sdist, wheel = sdist_bytes(), tiny_wheel()
    place.offer(SDIST, sdist)
    place.pages["/simple/tiny/"] = ("text/html", f'<a href="/files/{WHEEL}#sha256={sha(wheel)}">{WHEEL}</a>'.encode())
    place.pages[f"/files/{WHEEL}"] = ("application/octet-stream", wheel)
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{place.url}/simple/")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    lock = tmp_path / "build.txt"
    lock.write_text(f"# made by hand\ntiny==1.0 ; python_full_version >= '3.9' \\\n    --hash=sha256:{sha(wheel)}\n")
    monkeypatch.setattr(data, "build_lock", lambda *_: lock)
    repository = Repository(tmp_path / "clone")
    repository.write("csrc/kernel.cu", b"// kernel\n")
    repository.write("csrc/deep/er/run.sh", b"#!/bin/sh\n", 0o755)
    repository.write("docs/long.txt", b"not needed\n" * 1000)
    commit = repository.commit()
    real = next(loaded.recipe for loaded in all_recipes if loaded.recipe.name == planned.recipe)
    source = SdistSource(kind="sdist", package="thing", version="1.0", file=SDIST, sha256=sha(sdist))
    kit = Companion(
        source=GitSource(kind="git", urls=("https://nowhere.invalid/kit.git",), commit=commit), only=("csrc",)
    )
    plan = planned.model_copy(
        update={
            "sources": (
                PlannedSource(name="source", origin="index", places=(SDIST,), pin=source.pin),
                PlannedSource(name="kit", origin="local", places=(str(repository.path),), pin=kit.source.pin),
            ),
            "modules": (),
            "toolkit": None,
        }
    )
    recipe = real.model_copy(update={"source": source, "companions": {"kit": kit}, "official_wheel": None})
    return Small(plan, recipe, store.Store(tmp_path / "cache"), tmp_path, lock)


def kept(cache: store.Store) -> list[str]:
    return sorted(path.name for path in cache.root.rglob("*") if path.is_file() and path.name != "CACHEDIR.TAG")


# --- packs of git objects ------------------------------------------------------------------------------------


def test_git_reads_a_pack_and_finds_every_object_in_it(small: Small, tmp_path: Path, chance: random.Random) -> None:
    commit = small.recipe.companions["kit"].source.commit
    objects = git.objects(tmp_path / "clone", commit)
    for size in (0, 1, 15, 16, 65534, 65535, 65536, 200_000):
        content = chance.randbytes(size)
        hashed = subprocess.run(["git", "hash-object", "--stdin"], input=content, capture_output=True, check=True)
        objects[hashed.stdout.decode().strip()] = ("blob", content)
    gitpack.write(objects, tmp_path / "one.pack")
    gitpack.read(tmp_path / "one.pack", tmp_path / "bare", tmp_path / "log")
    for name, (kind, content) in objects.items():
        for word, output in (("-t", kind.encode() + b"\n"), (kind, content)):
            answer = subprocess.run(
                ["git", "-C", tmp_path / "bare", "cat-file", word, name], capture_output=True, check=True
            )
            assert answer.stdout == output
    git.export(tmp_path / "bare", commit, tmp_path / "out")
    git.export(tmp_path / "clone", commit, tmp_path / "wanted")
    assert store.tree_hash(tmp_path / "out") == store.tree_hash(tmp_path / "wanted")


def test_a_pack_holds_only_what_is_wanted(small: Small, tmp_path: Path) -> None:
    commit = small.recipe.companions["kit"].source.commit
    objects = git.objects(tmp_path / "clone", commit, ("csrc/deep",))
    contents = [content for kind, content in objects.values() if kind == "blob"]
    assert contents == [b"#!/bin/sh\n"]
    gitpack.write(objects, tmp_path / "one.pack")
    gitpack.read(tmp_path / "one.pack", tmp_path / "bare", tmp_path / "log")
    git.export(tmp_path / "bare", commit, tmp_path / "out", ("csrc/deep",))
    assert [name for name, _ in store.walk(tmp_path / "out")] == ["csrc/deep/er/run.sh"]
    with pytest.raises(DcaError, match="cannot be read"):
        git.export(tmp_path / "bare", commit, tmp_path / "more", ("docs",))


def real_pack(folder: Path) -> bytes:
    """A pack as git itself writes it: compressed, in another order."""
    objects = subprocess.run(["git", "-C", folder, "rev-list", "--objects", "--all"], capture_output=True, check=True)
    done = subprocess.run(
        ["git", "-C", folder, "pack-objects", "--stdout"],
        input=objects.stdout.replace(b" ", b"\n"),
        capture_output=True,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("how", ["empty", "of git", "cut", "longer", "deltas", "count", "size"])
def test_any_other_pack_is_refused_before_git_sees_it(how: str, small: Small, tmp_path: Path) -> None:
    import hashlib

    gitpack.write(git.objects(tmp_path / "clone", small.recipe.companions["kit"].source.commit), tmp_path / "pack")
    good = (tmp_path / "pack").read_bytes()

    def signed(content: bytes) -> bytes:
        return content + hashlib.sha1(content, usedforsecurity=False).digest()

    body = good[:-20]
    (tmp_path / "pack").write_bytes(
        {
            "empty": b"",
            "of git": real_pack(tmp_path / "clone") or b"PACK",
            "cut": signed(body[:-7]),
            "longer": signed(body + b"x"),
            "deltas": signed(body[:12] + bytes([body[12] & 0x8F | 0x70]) + body[13:]),
            "count": signed(body[:8] + struct.pack(">L", 0xFFFFFFFF) + body[12:]),
            "size": signed(body[:12] + bytes([body[12] | 0x80]) + b"\xff" * 9 + body[13:]),
        }[how]
    )
    with pytest.raises(DcaError) as refused:
        gitpack.read(tmp_path / "pack", tmp_path / "bare", tmp_path / "log")
    assert refused.value.code == "DCA-410"
    assert not (tmp_path / "bare").exists()


# --- packing -------------------------------------------------------------------------------------------------


def test_a_stand_in_build_is_packed_and_taken_out_where_nothing_can_be_reached(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed = small.pack()
    assert sorted((part.kind, part.name) for part in packed.parts) == [("file", SDIST), ("file", WHEEL), ("git", "kit")]
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple/")
    elsewhere = store.Store(tmp_path / "there", offline=True)
    small.unpack(Path(packed.file), elsewhere)
    tree = fetch.fetch(small.there(), small.recipe, Run(elsewhere, Silent(), tmp_path / "log"))
    assert [source.tree for source in tree.sources] == [
        source.tree
        for source in fetch.fetch(small.plan, small.recipe, Run(small.cache, Silent(), tmp_path / "log")).sources
    ]
    python = environments.make(
        small.lock, small.plan.python_path, small.plan.python, Run(elsewhere, Silent(), tmp_path / "log")
    )
    assert subprocess.run([python, "-c", "import tiny; print(tiny.VALUE)"], capture_output=True, check=True).stdout


def test_the_same_build_is_packed_to_the_same_bytes(small: Small, tmp_path: Path) -> None:
    first = small.pack("first.dca")
    os.utime(small.cache.download(sha(tiny_wheel()), WHEEL), (1, 1))
    again = small.pack("second.dca", store.Store(tmp_path / "another cache"))
    assert first.sha256 == again.sha256 == sha((tmp_path / "second.dca").read_bytes())


def test_nothing_is_taken_out_twice(small: Small, tmp_path: Path) -> None:
    packed = small.pack()
    elsewhere = store.Store(tmp_path / "there", offline=True)
    small.unpack(Path(packed.file), elsewhere)
    before = {path: path.stat().st_mtime_ns for path in elsewhere.root.rglob("*") if path.is_file()}
    small.unpack(Path(packed.file), elsewhere)
    assert {path: path.stat().st_mtime_ns for path in elsewhere.root.rglob("*") if path.is_file()} == before


def test_a_bundle_names_no_path_of_the_machine_that_packed_it(small: Small) -> None:
    with zipfile.ZipFile(small.pack().file) as archive:
        text = archive.read("bundle.json").decode()
    request = json.loads(text)["request"]
    assert (request["source"], request["companions"], request["toolkit"]) == (None, {}, None)
    manifest = Manifest.model_validate_json(text)
    assert {source.place for source in manifest.lock.sources} == {SDIST, "local"}
    assert str(Path.home()) not in text
    assert str(small.folder) not in text


def test_a_folder_as_it_is_is_not_packed(small: Small, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    dirty = PlannedSource(name="kit", origin="local", places=(str(tmp_path / "folder"),), pin="tree:" + "0" * 64)
    small.plan = small.plan.model_copy(update={"sources": (small.plan.sources[0], dirty)})
    contents = Planned(small.plan, small.recipe, (), Reach(places={}))
    with pytest.raises(DcaError) as refused:
        list(bundle._parts(contents, quiet_run(tmp_path, small.cache), tmp_path))
    assert refused.value.code == "DCA-201"


def test_a_packing_that_fails_leaves_nothing_and_keeps_an_older_bundle(small: Small, place: Place) -> None:
    path = Path(small.pack().file)
    before = path.read_bytes()
    shutil.rmtree(small.cache.root)
    place.pages.pop(f"/files/{WHEEL}")
    with pytest.raises(DcaError) as refused:
        small.pack()
    assert refused.value.code == "DCA-402"
    assert path.read_bytes() == before
    assert sorted(file.name for file in path.parent.iterdir() if file.name.endswith(".part")) == []


# --- reading -------------------------------------------------------------------------------------------------


def rewritten(path: Path, to: Path, change: Callable[[dict[str, bytes], zipfile.ZipFile], None]) -> Path:
    """A bundle whose entries a function has changed or written."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(to, "w", zipfile.ZIP_STORED) as archive:
        change(entries, archive)
        for name, content in entries.items():
            archive.writestr(bundle._entry(name), content)
    return to


def odd_entry(name: str, mode: int = stat.S_IFREG | 0o644, compress: int = zipfile.ZIP_STORED) -> Callable[..., None]:
    def change(_: dict[str, bytes], archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        info.external_attr = mode << 16
        info.compress_type = compress
        archive.writestr(info, b"\0" * 100_000)

    return change


def odd_manifest(change: Callable[[dict[str, Any]], object]) -> Callable[..., None]:
    def of(entries: dict[str, bytes], _: zipfile.ZipFile) -> None:
        manifest = json.loads(entries["bundle.json"])
        change(manifest)
        entries["bundle.json"] = documents.canonical(manifest)

    return of


def first_part(manifest: dict[str, Any], **changed: object) -> None:
    manifest["parts"][0].update(changed)


PART = "parts/" + "0" * 64
HOSTILE: dict[str, Callable[..., None]] = {
    "climbs out": odd_entry("../../escaped"),
    "absolute": odd_entry("/tmp/escaped"),
    "a folder": odd_entry("parts/"),
    "a link": odd_entry(PART, stat.S_IFLNK | 0o777),
    "a device": odd_entry(PART, stat.S_IFCHR | 0o666),
    "a bomb": odd_entry(PART, compress=zipfile.ZIP_DEFLATED),
    "an entry that is not named": odd_entry(PART),
    "no manifest": lambda entries, _: entries.pop("bundle.json"),
    "a manifest of text": lambda entries, _: entries.update({"bundle.json": b"x"}),
    "a deep manifest": lambda entries, _: entries.update({"bundle.json": b"[" * 100_000}),
    "another schema": odd_manifest(lambda manifest: manifest.update(schema="dca.bundle/2")),
    "a part less": odd_manifest(lambda manifest: manifest["parts"].pop()),
    "a part twice": odd_manifest(lambda manifest: manifest["parts"].append(manifest["parts"][0])),
    "another size": odd_manifest(lambda manifest: first_part(manifest, size=1)),
    "a negative size": odd_manifest(lambda manifest: first_part(manifest, size=-1)),
    "a name that climbs out": odd_manifest(lambda manifest: first_part(manifest, name="../../x")),
    "an absolute name": odd_manifest(lambda manifest: first_part(manifest, name="/etc/x")),
    "a hidden name": odd_manifest(lambda manifest: first_part(manifest, name=".bashrc")),
    "a name with a newline": odd_manifest(lambda manifest: first_part(manifest, name="a\nb")),
    "a commit that is none": odd_manifest(lambda manifest: first_part(manifest, commit="--upload-pack=x")),
    "a path that climbs out": odd_manifest(lambda manifest: first_part(manifest, only=["../x"])),
    "a request with a path": odd_manifest(lambda manifest: manifest["request"].update(source="/etc")),
    "a request with a toolkit": odd_manifest(lambda manifest: manifest["request"].update(toolkit="/tmp/x")),
    "a source of control characters": odd_manifest(
        lambda manifest: next(part for part in manifest["parts"] if part["kind"] == "git").update(name="\x1b[2J")
    ),
    "a branch of control characters": odd_manifest(lambda manifest: manifest.update(followed={"\x1b[2J": "a" * 40})),
    "a key more": odd_manifest(lambda manifest: manifest.update(run="me")),
}


@pytest.mark.parametrize("how", sorted(HOSTILE))
def test_a_bundle_that_this_tool_did_not_write_is_refused_before_anything_is_taken_out(
    how: str, small: Small, tmp_path: Path
) -> None:
    bad = rewritten(Path(small.pack().file), tmp_path / "bad.dca", HOSTILE[how])
    with pytest.raises(DcaError) as refused:
        bundle.read(bad)
    assert refused.value.code == "DCA-410"
    assert refused.value.remedy


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_bundle_with_an_entry_twice_is_refused(small: Small, tmp_path: Path) -> None:
    def twice(entries: dict[str, bytes], archive: zipfile.ZipFile) -> None:
        archive.writestr(bundle._entry("bundle.json"), entries["bundle.json"])

    with pytest.raises(DcaError) as refused:
        bundle.read(rewritten(Path(small.pack().file), tmp_path / "bad.dca", twice))
    assert refused.value.code == "DCA-410"


def test_entries_that_lie_over_one_another_are_refused(small: Small, tmp_path: Path) -> None:
    path = Path(small.pack().file)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        infos[1].header_offset = infos[2].header_offset
        with pytest.raises(ValueError, match="overlaps another"):
            bundle._entries(archive, path.stat().st_size)


def test_a_part_with_another_content_is_not_taken(small: Small, tmp_path: Path) -> None:
    def other(entries: dict[str, bytes], _: zipfile.ZipFile) -> None:
        for name in entries:
            if name != "bundle.json":
                entries[name] = entries[name][:-1] + bytes([entries[name][-1] ^ 1])

    bad = rewritten(Path(small.pack().file), tmp_path / "bad.dca", other)
    elsewhere = store.Store(tmp_path / "there", offline=True)
    with pytest.raises(DcaError) as refused:
        small.unpack(bad, elsewhere)
    assert refused.value.code == "DCA-401"
    assert kept(elsewhere) == []


def test_what_a_build_does_not_take_is_not_taken_out(small: Small, tmp_path: Path) -> None:
    """A part that the recipe does not pin stays in the file, whatever the bundle says of it."""
    evil = b"evil"

    def more(entries: dict[str, bytes], _: zipfile.ZipFile) -> None:
        manifest = json.loads(entries["bundle.json"])
        manifest["parts"].append(
            {"kind": "file", "name": SDIST, "sha256": sha(evil), "size": 4, "commit": "", "only": []}
        )
        entries["bundle.json"] = documents.canonical(manifest)
        entries[f"parts/{sha(evil)}"] = evil

    path = rewritten(Path(small.pack().file), tmp_path / "more.dca", more)
    elsewhere = store.Store(tmp_path / "there", offline=True)
    small.unpack(path, elsewhere)
    assert not (elsewhere.root / "downloads" / sha(evil)).exists()
    assert (elsewhere.root / "downloads" / sha(sdist_bytes()) / SDIST).is_file()


@pytest.mark.parametrize("kind", ["file", "git"])
def test_a_bundle_that_lacks_a_part_says_which(kind: str, small: Small, tmp_path: Path) -> None:
    def less(entries: dict[str, bytes], _: zipfile.ZipFile) -> None:
        manifest = json.loads(entries["bundle.json"])
        gone = next(part for part in manifest["parts"] if part["kind"] == kind)
        manifest["parts"].remove(gone)
        entries.pop(f"parts/{gone['sha256']}")
        entries["bundle.json"] = documents.canonical(manifest)

    bad = rewritten(Path(small.pack().file), tmp_path / "bad.dca", less)
    with pytest.raises(DcaError) as refused:
        small.unpack(bad, store.Store(tmp_path / "there", offline=True))
    assert refused.value.code == "DCA-410"
    assert "does not have" in refused.value.what


@pytest.mark.parametrize("how", ["of another commit", "a file less", "a folder less"])
def test_git_objects_that_are_not_those_of_the_commit_are_not_kept(how: str, small: Small, tmp_path: Path) -> None:
    """A pack whose hashes are right: of another commit than it says, or without all that it is to hold."""
    if how == "of another commit":
        other = Repository(tmp_path / "other")
        other.write("csrc/kernel.cu", b"evil\n")
        objects = git.objects(other.path, other.commit(), ("csrc",))
    else:
        objects = git.objects(tmp_path / "clone", small.recipe.companions["kit"].source.commit, ("csrc",))
        marks = {"a file less": b"// kernel\n", "a folder less": b"run.sh\0"}
        gone = next(name for name, (_, content) in objects.items() if marks[how] in content)
        del objects[gone]
    gitpack.write(objects, tmp_path / "evil.pack")
    evil = (tmp_path / "evil.pack").read_bytes()

    def swapped(entries: dict[str, bytes], _: zipfile.ZipFile) -> None:
        manifest = json.loads(entries["bundle.json"])
        part = next(part for part in manifest["parts"] if part["kind"] == "git")
        entries.pop(f"parts/{part['sha256']}")
        part.update(sha256=sha(evil), size=len(evil))
        entries[f"parts/{sha(evil)}"] = evil
        entries["bundle.json"] = documents.canonical(manifest)

    good = Path(small.pack().file)
    bad = rewritten(good, tmp_path / "bad.dca", swapped)
    elsewhere = store.Store(tmp_path / "there", offline=True)
    with pytest.raises(DcaError) as refused:
        small.unpack(bad, elsewhere)
    assert refused.value.code == "DCA-410"
    assert not list((elsewhere.root / "git").glob("*part*"))
    # The cache is none the worse for it.
    small.unpack(good, elsewhere)
    fetch.fetch(small.there(), small.recipe, Run(elsewhere, Silent(), tmp_path / "log"))


@pytest.mark.parametrize("bit", range(16))
def test_an_entry_with_a_flag_that_packing_does_not_set_is_refused(bit: int, small: Small, tmp_path: Path) -> None:
    """In the list at the end of the file; before an entry, only what says how its name is spelt is read at all."""
    content = bytearray(Path(small.pack().file).read_bytes())
    content[content.rindex(b"PK\x01\x02") + 8 + bit // 8] ^= 1 << bit % 8
    bad, elsewhere = tmp_path / "bad.dca", store.Store(tmp_path / "there", offline=True)
    bad.write_bytes(content)
    with pytest.raises(DcaError) as refused:
        small.unpack(bad, elsewhere)
    assert refused.value.code == "DCA-410"
    assert kept(elsewhere) == []


def test_an_entry_whose_name_cannot_be_read_before_it_is_refused(small: Small, tmp_path: Path) -> None:
    path = Path(small.pack().file)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        at = archive.infolist()[-1].header_offset
    content[at + 7] |= 0x08
    content[at + 30] = 0xFF
    (tmp_path / "bad.dca").write_bytes(content)
    with pytest.raises(DcaError) as refused:
        small.unpack(tmp_path / "bad.dca", store.Store(tmp_path / "there", offline=True))
    assert refused.value.code == "DCA-410"


@pytest.mark.proof
def test_every_changed_bit_and_every_cut_of_a_bundle_is_found(
    small: Small, tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """Read and taken out, the changed file gives what the whole one gives, or an error with a code."""
    whole = Path(small.pack().file).read_bytes()
    small.unpack(Path(small.folder / "one.dca"), store.Store(tmp_path / "wanted", offline=True))
    expected = {
        path.name: sha(path.read_bytes()) for path in (tmp_path / "wanted/downloads").rglob("*") if path.is_file()
    }
    bad, harmless = tmp_path / "bad.dca", 0
    for number in range(scale(1000)):
        changed = bytearray(whole)
        if number % 8:
            bit = chance.randrange(len(whole) * 8)
            changed[bit // 8] ^= 1 << bit % 8
        else:
            del changed[chance.randrange(len(whole)) :]
        bad.write_bytes(changed)
        elsewhere = store.Store(tmp_path / f"there-{number}", offline=True)
        refused = ""
        try:
            small.unpack(bad, elsewhere)
        except DcaError as error:
            refused = error.code
        downloads = {
            path.name: sha(path.read_bytes()) for path in (elsewhere.root / "downloads").rglob("*") if path.is_file()
        }
        assert downloads == expected or (refused in ("DCA-401", "DCA-410") and downloads.items() <= expected.items())
        harmless += not refused
        shutil.rmtree(elsewhere.root, ignore_errors=True)
    print(f"{harmless} of {scale(1000)} changes were of bytes that say nothing, such as a time")


# --- kills ---------------------------------------------------------------------------------------------------

PACK = """
import sys, zipfile
from pathlib import Path
from dca.pipeline.planned import Planned
from dca.pipeline import bundle
from dca.foundation import documents, store
from dca.foundation.events import Silent
source, target = Path(sys.argv[1]), Path(sys.argv[2])
manifest = bundle.read(source).manifest
with zipfile.ZipFile(source) as archive:
    archive.extractall(target.parent / "parts-here")
files = {part.sha256: target.parent / "parts-here/parts" / part.sha256 for part in manifest.parts}
print("ready", flush=True)
for _ in range(20):
    with store.incoming(target) as part:
        bundle._write(part, manifest, files, Silent())
        part.replace(target)
"""


@pytest.mark.proof
def test_a_bundle_is_whole_or_absent_whenever_its_packing_is_killed(
    small: Small, tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    whole = Path(small.pack().file)
    (tmp_path / "out").mkdir()
    target = tmp_path / "out/two.dca"
    for _ in killed_runs(PACK, [str(whole), str(target)], scale(100), chance):
        if target.exists():
            assert sha(target.read_bytes()) == sha(whole.read_bytes())
            bundle.read(target)
            target.unlink()
    whole_run(PACK, [str(whole), str(target)])
    assert sha(target.read_bytes()) == sha(whole.read_bytes())
    assert leftovers(tmp_path / "out") == []


# --- the lock ------------------------------------------------------------------------------------------------


def test_the_lock_of_a_build_names_everything_that_goes_in(small: Small) -> None:
    tree = fetch.fetch(small.plan, small.recipe, Run(small.cache, Silent(), small.folder / "log"))
    lock = lockfile.lock(small.plan, small.recipe, tree, ())
    source, kit = lock.sources
    assert (source.pin, source.file) == (small.recipe.source.pin, SDIST)
    assert kit.urls == ("https://nowhere.invalid/kit.git",)
    assert kit.pin == f"commit:{small.recipe.companions['kit'].source.commit}"
    assert all(len(source.tree) == 64 for source in lock.sources)
    assert [(package.name, package.version, package.hashes) for package in lock.packages] == [
        ("tiny", "1.0", (sha(tiny_wheel()),))
    ]


def test_packages_are_those_of_the_python_that_is_built_with() -> None:
    lock = data.locks_folder("vllm-0.10.2") / "build.txt"
    for python, version, old in (("3.9.20", "3.2.1", True), ("3.10.14", "3.4.2", True), ("3.12.1", "3.5", False)):
        versions = {package.name: package.version for package in lockfile.packages(lock, python)}
        assert versions["networkx"] == version
        assert ("tomli" in versions) == old
    assert all(package.hashes for package in lockfile.packages(lock, "3.11.7"))


# --- the command line, without a network ---------------------------------------------------------------------

ISOLATED = """
echo interfaces:
tail -n +3 /proc/self/net/dev
echo routes: $(tail -n +2 /proc/self/net/route | wc -l)
getent hosts pypi.org || echo DNS fails
exec "$@"
"""


def isolated(*words: str | Path) -> list[str]:
    """A command in a network namespace that has no interface but a loopback that is down."""
    prefix = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-rn"]
    return [*prefix, "bash", "-c", ISOLATED, "bash", *map(str, words)]


def needs_namespaces() -> None:
    if subprocess.run(isolated("true"), capture_output=True, check=False).returncode:
        pytest.skip("this machine gives no network namespace")


def run_isolated(*words: str | Path) -> str:
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(
        isolated(sys.executable, "-m", "dca", *words),
        cwd=ROOT,
        env=env,
        text=True,
        capture_output=True,
        timeout=1800,
        check=False,
    )
    print(done.stdout.split("{")[0], done.stderr)
    interfaces = done.stdout.partition("interfaces:")[2].partition("routes: ")
    # A loopback that is down, and nothing else.
    assert [line.split(":")[0].strip() for line in interfaces[0].strip().splitlines()] in ([], ["lo"])
    assert interfaces[2].startswith("0\n")
    assert "DNS fails" in done.stdout
    assert done.returncode == 0, done.stderr[-4000:]
    return "{" + done.stdout.partition("{")[2]


@pytest.mark.slow
@pytest.mark.whole
def test_a_wheel_is_made_offline_from_the_cache_and_is_the_one_made_online(
    dca: RunDca, small_cache: Path, tmp_path: Path
) -> None:
    needs_namespaces()
    online = make_small(dca, small_cache, tmp_path / "online")
    words = ("wheel", *INDEX_ONLY, "--offline", "--cache-dir", small_cache, "--out", tmp_path / "offline", "--json")
    offline = json.loads(run_isolated(*words))
    assert offline["sha256"] == online.sha256 == sha(Path(offline["wheel"]).read_bytes())
    assert json.loads((Path(offline["run"]) / "lock.json").read_text())["toolkit"]["archives"]


@pytest.mark.parametrize("offline", [True, False])
def test_a_plan_knows_whether_a_shared_compiler_cache_may_be_asked(
    offline: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCCACHE_REDIS_ENDPOINT", "redis://localhost:1")
    cache, nothing_probed = store.Store(tmp_path / "cache", offline=offline), gather.Shared(Reach(places={}))
    seen = gather.world(Request(), cache, shared=nothing_probed)
    assert "Redis" in [found.shared for found in seen.machine.caches]
    assert seen.offline == offline


@pytest.mark.slow
def test_an_empty_cache_says_offline_what_it_lacks(dca: RunDca, tmp_path: Path) -> None:
    done = dca("fetch", "--recipe", "vllm-0.10.2", "--prebuilt", "all", "--offline", "--cache-dir", tmp_path / "empty")
    assert done.returncode == 4, done.stderr
    assert "DCA-409" in done.stderr
    assert "--bundle" in done.stderr


@pytest.mark.whole
def test_a_wheel_is_made_from_a_bundle_on_a_machine_without_a_network_and_is_the_one_made_online(
    dca: RunDca, cache: store.Store, tmp_path: Path
) -> None:
    """All of it: sources, toolkit and the build environment's wheels, into a cache that has nothing; takes 15 GB."""
    needs_namespaces()
    (tmp_path / "online-cache").mkdir()
    online = link_cache(tmp_path / "online-cache", cache)
    file = tmp_path / "one.dca"
    packed = dca("fetch", *INDEX_ONLY, "--bundle", file, "--cache-dir", online, "--json", timeout=3000)
    assert packed.returncode == 0, packed.stderr[-4000:]
    wheel = make_small(dca, online, tmp_path / "online")
    words = ("wheel", "--bundle", file, "--offline", "--cache-dir", tmp_path / "empty", "--out", tmp_path / "offline")
    result = json.loads(run_isolated(*words, "--json"))
    assert result["sha256"] == wheel.sha256 == sha(Path(result["wheel"]).read_bytes())
    print(f"{json.loads(packed.stdout)['bytes']} bytes packed; wheel {result['sha256']}")
    store.remove(tmp_path / "empty")


def test_a_file_that_is_no_bundle_is_refused_by_the_command(dca: RunDca, tmp_path: Path) -> None:
    (tmp_path / "x.dca").write_bytes(b"PK\3\4" + b"\0" * 100)
    done = dca("wheel", "--bundle", tmp_path / "x.dca", "--offline", "--cache-dir", tmp_path / "cache")
    assert done.returncode == 4
    assert done.stderr.startswith("DCA-410")


def test_a_bundle_of_a_moved_branch_is_built_only_when_that_is_asked_for(small: Small, tmp_path: Path) -> None:
    manifest = bundle.read(Path(small.pack().file)).manifest.model_copy(
        update={"followed": {"qwen-fork/source": "a" * 40}}
    )
    packed = Bundle(tmp_path / "one.dca", manifest)
    with pytest.raises(DcaError) as refused:
        gather._accepted(packed, "")
    assert refused.value.code == "DCA-410"
    assert gather._accepted(packed, "follow") == {"qwen-fork/source": "a" * 40}
    assert gather._accepted(packed, "pinned") == {}


@pytest.mark.parametrize(
    ("words", "changed"),
    [
        ([], {}),
        (["--jobs", "3"], {"jobs": 3}),
        (["--profile", "full"], {"profile": "full"}),
        (["--with", "fp8", "--arch", "9.0"], {"groups": ("fp8",), "archs": ("9.0",)}),
        (["--recipe", "vllm-0.10.2"], {}),
    ],
)
def test_what_the_command_line_says_comes_before_what_the_bundle_was_packed_for(
    words: list[str], changed: dict[str, object]
) -> None:
    own = Request(recipe="vllm-0.10.2", profile="kernels", archs=("8.0",), cuda="12.4", python="3.11")
    packed = Bundle(Path("x.dca"), Manifest.model_construct(request=own))
    requests: list[Request] = []

    @click.command()
    @options.request
    def command(request: Request, update: str) -> None:
        requests.append(options.of_bundle(request, packed))

    command.main(words, standalone_mode=False)
    assert requests == [own.model_copy(update=changed)]
    with pytest.raises(DcaError) as refused:
        command.main(["--recipe", "qwen-fork"], standalone_mode=False)
    assert refused.value.code == "DCA-201"


@pytest.mark.network
def test_a_machine_with_a_toolkit_of_its_own_packs_one_that_can_be_brought(
    tmp_path: Path, cache: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = Request(recipe="vllm-0.10.2", groups=("index-only",), archs=("8.0",))
    own = FoundToolkit(path="/opt/own", version="12.8.93", origin="CUDA_HOME")
    look = machine.look
    monkeypatch.setattr(machine, "look", lambda **options: look(**options).model_copy(update={"toolkits": (own,)}))
    built = gather.make_plan(request, cache).plan
    packed = gather.plan_to_pack(request, cache).plan
    assert built.toolkit is not None
    assert built.toolkit.path == "/opt/own"
    assert packed.toolkit is not None
    assert packed.toolkit.path == ""
    monkeypatch.setattr(toolkits, "load_sources", lambda _="": ())
    only = gather.plan_to_pack(request, store.Store(tmp_path / "cache")).plan
    assert only.toolkit == built.toolkit
    assert any("--toolkit DIR" in note for note in bundle._notes(only))


def test_what_another_machine_planned_is_told_without_what_it_could_do_to_a_terminal(small: Small) -> None:
    whole = bundle.read(Path(small.pack().file))
    assert bundle.differences(whole, small.plan) == []
    choices = {**whole.manifest.choices, "host_compiler_version": "\x1b[2J9"}
    lock = whole.manifest.lock.model_copy(update={"plan": "another"})
    odd = Bundle(whole.path, whole.manifest.model_copy(update={"choices": choices, "lock": lock}))
    (difference,) = bundle.differences(odd, small.plan)
    assert difference.startswith("host_compiler_version was '\\x1b[2J9' and is ")


def test_another_python_is_told_although_the_wheel_would_be_the_same(small: Small) -> None:
    whole = bundle.read(Path(small.pack().file))
    other = small.plan.model_copy(update={"python": "3.99.0"})
    assert other.key == small.plan.key
    assert bundle.differences(whole, other) == [f"python was '{small.plan.python}' and is '3.99.0'"]


def test_a_part_is_found_by_commit_and_paths() -> None:
    part = Part(kind="git", name="kit", sha256="0" * 64, size=1, commit="a" * 40, only=("csrc",))
    packed = Bundle(Path("x"), Manifest.model_construct(parts=(part,)))
    assert packed.objects("a" * 40, ("csrc",)) is part
    assert packed.objects("a" * 40, ()) is None
