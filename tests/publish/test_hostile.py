"""Others may write to an index's disk or server: nothing in an index leads to files outside of it."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dca import publish
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.publish import Additions, layout
from dca.publish.bucket import GRACE, Bucket
from dca.publish.check import check
from dca.publish.folder import Folder
from dca.publish.place import Place
from dca.publish.records import parse_record
from dca.publish.values import Evidence, Record, Settings
from dca.publish.verified import Folder as Looked
from dca.publish.verified import Served, verify_index
from dca.trust import signing
from dca.trust.verify import NOBODY
from tests.publish.test_verified import KEY
from tests.support import some
from tests.support.made_wheels import Details, make, put
from tests.support.served import served
from tests.support.uploads import Store, instead_of_boto3

# Every field and command is tried, each with an index of its own.
pytestmark = pytest.mark.slow

GOOD, OTHER = "vllm-1.0+cu124-py3-none-any.whl", "vllm-2.0+cu121-py3-none-any.whl"
# {root} is the test's folder, {sha} the wheel's hash. No other existing file is named, because a bug would delete it.
PATHS = (
    "../../keep.txt",
    "{root}/keep.txt",
    "evidence/../../keep.txt",
    "evidence/{sha}/../../../keep.txt",
    "evidence/{sha}/../x",
    "evidence/{sha}/..",
    "evidence/{sha}/",
    "evidence//x",
    "files/" + OTHER,
    ".dca/index.json",
    "evidence/{sha}/a\0b",
    "evidence/{sha}/a\\..\\b",
    "evidence/{sha}/a\nb",
    "\0",
    "",
    ".",
    "..",
    "{root}",
    "a/b",
    "~/x",
)
LINKS = (
    "javascript:alert(1)",
    "javascript://host/%0aalert(1)//",
    "file:///etc/",
    "data:text/html,x/",
    "ftp://host/",
    "//host/",
    "/a/",
    "../",
    "https://",
    "https:///a/",
    "https://me:secret@host/",
    "https://host/?a=/",
    "https://host/#/",
    "https://host",
    'https://host/"><script>/',
    "https://host/\n/",
    "https://[/",
    "http://h\0/",
    "\0",
)
HASHES = (*PATHS, "0" * 63, "0" * 65, "A" * 64, "0" * 64 + "\n", "../" + "0" * 61)
SIZES = (-1, 1 << 60, 10**30, "many", 0.5, None)
TEXTS = ("a\x1b[2Jb", "\0", "a\nb", "\x7f")
RECORD: dict[str, tuple[Any, ...]] = {
    "file": (*PATHS, "../" + GOOD, "a.whl", "vllm-x-y-z.whl", GOOD.upper(), GOOD + "\n", OTHER),
    "sha256": HASHES,
    "bytes": SIZES,
    "published": (*PATHS, *TEXTS, "soon"),
    "project": (*PATHS, "VLLM", "other", "vllm\n"),
    "version": (*PATHS, *TEXTS, "2.0"),
    "requires_python": TEXTS,
    "metadata_sha256": HASHES,
    "tags": (["../.."], ["x"], [], ["py2-none-any"], "py3-none-any"),
    "cuda": (*(path for path in PATHS if path), "12", "12.4.1", "12.4/..", "١٢.٤", "12.4\n", ".4"),
    "archs": (*([path] for path in PATHS), ["sm_90"], ["9.0\n"]),
    "torch": TEXTS,
    "recipe": TEXTS,
    "evidence": ({}, ["x"], "x", None),
    "yanked": TEXTS,
    "links_to": LINKS,
    "state": ("removed", "", "../../keep.txt"),
    "variant": (
        *({"label": label, "properties": {}} for label in (*PATHS, "cu124", "null\n")),
        {"label": "null", "properties": {"nvidia": {"sm_arch": ["90_real"]}}},
        {"label": "cu124", "properties": {"nvidia": {}}},
        {"label": "cu124", "properties": {"../..": {"sm_arch": ["90_real"]}}},
        {"label": "cu124", "properties": {"nvidia": {"sm_arch": ["../.."]}}},
        {},
        [],
        "cu124",
    ),
}
EVIDENCE: dict[str, tuple[Any, ...]] = {
    "kind": (*PATHS, "smoke", "Inspection", "inspection\n"),
    "path": PATHS,
    "sha256": HASHES,
    "bytes": SIZES,
    "says": TEXTS,
}
SETTINGS: dict[str, tuple[Any, ...]] = {"url": LINKS, "id": (*(path for path in PATHS if path), *HASHES[-5:], "0" * 31)}


class Scene:
    """An index with two wheels, and files that do not belong to it.

    Args:
        root: the index is two folders below it.
        published: the wheels and the index, which are copied.
    """

    def __init__(self, root: Path, published: Path) -> None:
        shutil.copytree(published, root, dirs_exist_ok=True)
        self.root, self.index = root, root / "site" / "index"
        *self.wheels, self.third = sorted((root / "dist").iterdir())
        self.outside = root / "outside"
        self.outside.mkdir()
        for path in (root, root / "site", self.outside):
            (path / "keep.txt").write_text("dear")
        self.place = Folder(self.index)
        self.whole = self.files(self.index)

    @staticmethod
    def files(folder: Path) -> dict[str, bytes]:
        return {name: path.read_bytes() for name, path in store.walk(folder) if not name.endswith(".lock")}

    def restore(self) -> None:
        """The index as it was."""
        store.remove(self.index)
        for name, content in self.whole.items():
            store.write_bytes(self.index / name, content)

    def path(self, name: str = GOOD) -> Path:
        return self.index / layout.record(name)

    def told(self, name: str = GOOD) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self.whole[layout.record(name)])
        return told

    def spelt(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self.spelt(one) for one in value]
        if not isinstance(value, str):
            return value
        return value.replace("{root}", str(self.root)).replace("{sha}", self.told()["sha256"])

    def commands(self, place: Place) -> dict[str, Callable[[], object]]:
        """All commands that read an index; those that write have something to change."""
        cache = store.Store(self.root / "no-cache")
        links, signed = Additions(links_to="https://h/"), Additions(signers=[signing.KeySigner(KEY)])
        return {
            "remove": lambda: publish.remove([GOOD], place),
            "remove another": lambda: publish.remove([OTHER], place),
            "gc": lambda: publish.gc(place),
            "yank": lambda: publish.yank([GOOD], "wrong", place),
            "unyank": lambda: publish.unyank([GOOD], place),
            "publish": lambda: publish.publish([self.third], place, cache, Silent()),
            "publish again": lambda: publish.publish(self.wheels, place, cache, Silent(), links),
            "sign": lambda: publish.publish(self.wheels, place, cache, Silent(), signed),
            "list": lambda: publish.listing(place),
        }

    def kept(self) -> None:
        """Assert that nothing outside the index has changed."""
        assert all((path / "keep.txt").read_text() == "dear" for path in (self.root, self.root / "site", self.outside))
        assert sorted(path.name for path in self.root.iterdir() if path.name != "no-cache") == [
            "dist",
            "keep.txt",
            "outside",
            "site",
        ]
        assert sorted(path.name for path in (self.root / "site").iterdir()) == ["index", "keep.txt"]
        assert len(list((self.root / "dist").iterdir())) == 3


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("published")
    wheels = [make(root / "dist", "1.0+cu124"), make(root / "dist", "2.0+cu121", cuda="12.1")]
    make(root / "dist", "3.0+cu124")
    put(root / "site" / "index", *wheels)
    return root


@pytest.fixture
def scene(tmp_path: Path, published: Path) -> Scene:
    return Scene(tmp_path, published)


_HEARD: list[list[str]] = []


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if _HEARD and event in ("open", "os.remove", "os.rmdir", "os.rename", "os.truncate", "os.chmod", "shutil.rmtree"):
        _HEARD[-1] += [os.fsdecode(one) for one in arguments[:2] if isinstance(one, (str, bytes, Path))]


sys.addaudithook(_hear)


@contextlib.contextmanager
def untouched(scene: Scene) -> Iterator[None]:
    """Assert that no file outside the index is opened, moved or deleted."""
    heard: list[str] = []
    _HEARD.append(heard)
    try:
        yield
    finally:
        _HEARD.pop()
    keep = [scene.root / "keep.txt", scene.root / "site/keep.txt", scene.outside]
    real = {Path(os.path.realpath(path)) for path in heard if "\0" not in path}
    assert not [path for path in real if any(path.is_relative_to(one) for one in keep)]
    scene.kept()


# A record of the first version of this tool, with every kind of name that it gave to evidence.
EARLIER = {
    "schema": "dca.published/1",
    "file": "Other_Thing.x-1.0rc1+cu124-1-py3-none-any.whl",
    "sha256": "a" * 64,
    "bytes": 0,
    "published": "2026-01-02T03:04:05Z",
    "project": "other-thing-x",
    "version": "1.0rc1+cu124",
    "requires_python": "",
    "metadata_sha256": "b" * 64,
    "tags": ["py3-none-any"],
    "cuda": "12.4",
    "archs": ["8.0", "9.0a", "9.0+PTX", "10.0f"],
    "torch": "",
    "recipe": "",
    "yanked": "bad <b>",
    "links_to": "https://h:8000/%7Eme/@x/",
    "state": "listed",
    "evidence": [
        {
            "kind": kind,
            "path": f"evidence/{'a' * 64}/{kind}-cccccccc.{suffix}",
            "sha256": "c" * 64,
            "bytes": 7,
            "says": "",
        }
        for kind, suffix in (
            ("_x", "ab"),
            ("bom", "cdx.json"),
            ("dot", ""),
            ("note", ".json"),
            ("upper-case", "TXT"),
            ("evidence-dsse", "json"),
            ("provenance-sigstore", "json"),
            ("evidence", "hidden"),
        )
    ],
}


def test_an_index_of_the_first_version_is_read() -> None:
    content = documents.canonical(EARLIER)
    assert documents.dumps(parse_record(str(EARLIER["file"]), content)) == content
    for url in ("", "https://host/", "http://host:8000/a/@b/"):
        assert Settings.model_validate({"schema": "dca.index/1", "url": url}).url == url


def damaged(scene: Scene, field: str, value: Any, *, inside: str = "") -> bytes:
    """A record with one changed value."""
    told = scene.told()
    (told[inside][0] if inside else told)[field] = scene.spelt(value)
    return json.dumps(told).encode()


def every_field() -> list[tuple[str, str]]:
    return [("", field) for field in RECORD] + [("evidence", field) for field in EVIDENCE]


def test_no_field_is_forgotten() -> None:
    """Every field of a document that is read from an index needs hostile values here."""
    assert set(RECORD) == set(Record.model_fields)
    assert set(EVIDENCE) == set(Evidence.model_fields)
    assert set(SETTINGS) == set(Settings.model_fields)


@pytest.mark.parametrize(("inside", "field"), every_field(), ids=lambda one: str(one))
def test_a_record_that_says_what_cannot_be_is_damaged(
    scene: Scene, inside: str, field: str, chance: random.Random
) -> None:
    for value in some((EVIDENCE if inside else RECORD)[field], chance):
        content = damaged(scene, field, value, inside=inside)
        if content == documents.canonical(scene.told()):
            continue
        scene.path().write_bytes(content)
        before = scene.files(scene.index)
        for what, command in scene.commands(scene.place).items():
            with untouched(scene), pytest.raises(DcaError) as error:
                command()
            assert error.value.code == "DCA-908", (what, value)
            assert error.value.what == f"{layout.record(GOOD)} is damaged.", (what, value)
            assert error.value.remedy
            assert error.value.why.isprintable(), "no control characters"
            assert scene.files(scene.index) == before, (what, value)


@pytest.mark.parametrize(("inside", "field"), every_field(), ids=lambda one: str(one))
def test_verifying_an_index_does_not_follow_its_records(
    scene: Scene, inside: str, field: str, chance: random.Random
) -> None:
    with served(scene.index) as web:
        for number, value in enumerate(some((EVIDENCE if inside else RECORD)[field], chance)):
            scene.path().write_bytes(damaged(scene, field, value, inside=inside))
            with untouched(scene):
                # A server is slower, and its records are parsed by the same code.
                for source in (Looked(scene.index), Served(web.url))[: 1 if number % 4 else 2]:
                    found = verify_index(source, NOBODY, Silent())
                    assert any(f"{layout.record(GOOD)} is damaged." in one for one in found.problems), value
                    assert [one.wheel for one in found.wheels] == [OTHER]
                    assert all(one.isprintable() for one in found.problems)
        assert not [path for _, path in web.asked if "keep" in path or ".." in path or "etc" in path]


def test_an_error_says_which_key_is_wrong(scene: Scene) -> None:
    scene.path().write_bytes(damaged(scene, "path", "../../keep.txt", inside="evidence"))
    with pytest.raises(DcaError) as error:
        publish.remove([GOOD], scene.place)
    assert error.value.why.startswith("evidence.0: path '../../keep.txt' is not evidence/SHA256/NAME")


def test_a_record_has_the_name_of_its_wheel(scene: Scene) -> None:
    """Records under other names, some with control characters."""
    for name in ("evil\x1b[2J-1.0-py3-none-any.whl", "..whl", "a b.whl", "x.whl", OTHER.replace("2.0", "2.00")):
        path = scene.path(name)
        path.write_bytes(scene.whole[layout.record(OTHER)])
        for command in scene.commands(scene.place).values():
            with untouched(scene), pytest.raises(DcaError) as error:
                command()
            assert (error.value.code, str(error.value).replace("\n", "").isprintable()) == ("DCA-908", True)
        assert check(scene.index).wrong
        path.unlink()


def test_a_number_of_an_index_that_cannot_be_is_not_read(scene: Scene) -> None:
    for value in map(scene.spelt, SETTINGS["id"]):
        with pytest.raises(ValueError, match="id"):
            Settings.model_validate({"schema": Settings.SCHEMA, "url": "", "id": value})


@pytest.mark.parametrize("url", LINKS)
def test_a_url_that_cannot_be_is_not_shown(scene: Scene, url: str, chance: random.Random) -> None:
    def spoil() -> None:
        scene.restore()
        (scene.index / layout.SETTINGS).write_text(json.dumps({"schema": Settings.SCHEMA, "url": url}))

    for what, command in some(scene.commands(scene.place).items(), chance):
        spoil()
        with untouched(scene):
            done = command()
        assert getattr(done, "url", "") == "", what
        texts = [(scene.index / page).read_text() for page in scene.place.pages()]
        # These occur in links between pages, or in those of the command.
        assert url in ("../", "/a/", "https://", "\0") or not [text for text in texts if url in text]
    spoil()
    with served(scene.index) as web:
        for source in (Looked(scene.index), Served(web.url)):
            assert any(layout.SETTINGS in one for one in verify_index(source, NOBODY, Silent()).problems)


BAD = (
    "../../keep.txt",
    "{root}/keep.txt",
    "files/../../keep.txt",
    "files//x",
    "./x",
    "",
    ".",
    "..",
    "a\\b",
    "a\0b",
    "a\nb",
    "x/",
)


def uses(place: Place, path: str) -> list[Callable[[], object]]:
    """All uses of a path."""
    return [
        lambda: place.read(path),
        lambda: place.put(path, b"x", store.sha256_bytes(b"x")),
        lambda: place.put_page(path, b"x"),
        lambda: place.delete([layout.wheel(GOOD), path]),
        lambda: place.put_record(f"{path}/../x", b"x", None),
    ]


@pytest.mark.parametrize("path", BAD)
def test_no_place_goes_where_a_path_leads_out(scene: Scene, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last line of defence, for values that were not validated."""
    objects, path = instead_of_boto3(monkeypatch), scene.spelt(path)
    for place in (scene.place, Bucket("s3://wheels/a/b")):
        for use in uses(place, path):
            with untouched(scene), pytest.raises(DcaError) as error:
                use()
            assert error.value.code == "DCA-908"
    assert scene.files(scene.index) == scene.whole, "the file that comes first is not deleted either"
    assert (objects.objects, objects.deleted) == ({}, [])


@pytest.mark.parametrize(("inside", "field"), every_field(), ids=lambda one: str(one))
def test_a_bucket_is_believed_no_more_than_a_folder(
    scene: Scene, objects: Store, inside: str, field: str, chance: random.Random
) -> None:
    place = Bucket("s3://wheels/a/b")
    publish.publish(scene.wheels, place, store.Store(scene.root / "no-cache"), Silent())
    objects.put_object(Bucket="wheels", Key="keep.txt", Body=b"dear")
    for value in some((EVIDENCE if inside else RECORD)[field], chance):
        content = damaged(scene, field, value, inside=inside)
        objects.put_object(Bucket="wheels", Key=f"a/b/{layout.record(GOOD)}", Body=content)
        before = dict(objects.objects)
        commands = scene.commands(place)
        for what in ("remove", "gc", "publish", "list"):
            with untouched(scene), pytest.raises(DcaError) as error:
                commands[what]()
            assert error.value.code == "DCA-908", (what, value)
            assert (objects.objects, objects.deleted) == (before, []), (what, value)


@pytest.mark.parametrize("name", ["../../keep.txt", "../x", "a/b", "/", "a\x1b[2J"])
def test_keys_of_a_bucket_are_names_like_any_other(scene: Scene, objects: Store, name: str) -> None:
    place = Bucket("s3://wheels/a/b")
    publish.publish(scene.wheels, place, store.Store(scene.root / "no-cache"), Silent())
    for key in (f"a/b/files/{name}", f"a/b/simple/{name}/", f"a/b/evidence/{name}"):
        objects.put_object(Bucket="wheels", Key=key, Body=b"x")
        objects.objects[key][1]["LastModified"] -= 2 * GRACE
    gone = publish.gc(place).deleted
    assert all(layout.is_plain(path) for path in gone)
    assert set(objects.deleted) <= {f"a/b/{path}" for path in gone}
    objects.put_object(Bucket="wheels", Key=f"a/b/records/{name}.whl.json", Body=b"{}")
    with pytest.raises(DcaError) as error:
        publish.listing(place)
    assert (error.value.code, str(error.value).replace("\n", "").isprintable()) == ("DCA-908", True)


def linked(scene: Scene, path: str, target: Path) -> None:
    """Move what is at a path elsewhere, and leave a link."""
    (scene.index / path).rename(target)
    (scene.index / path).symlink_to(target)


@pytest.mark.parametrize("path", ["simple", "cu124", "cu99", layout.OWN, layout.STAGING, f"{layout.OWN}/locks"])
def test_links_are_not_followed_where_files_are_deleted_by_their_names(scene: Scene, path: str) -> None:
    """A view, and the tool's own folder."""
    if (scene.index / path).exists():
        linked(scene, path, scene.outside / "there")
    else:
        (scene.outside / "there").mkdir()
        (scene.index / path).symlink_to(scene.outside / "there")
    (scene.outside / "there/keep.txt").write_text("dear")
    before = scene.files(scene.outside)
    for what, command in scene.commands(scene.place).items():
        if what == "list" and path != layout.OWN:
            continue
        with pytest.raises(DcaError) as error:
            command()
        assert (error.value.code, path in error.value.what) == ("DCA-904", True), what
        assert scene.files(scene.outside) == before
        scene.kept()
    assert check(scene.index).wrong


def test_a_lock_that_is_a_link_empties_no_file(scene: Scene) -> None:
    lock = scene.index / layout.OWN / "locks/publish-index.lock"
    lock.unlink()
    lock.symlink_to(scene.outside / "keep.txt")
    with untouched(scene), pytest.raises(DcaError) as error:
        publish.gc(scene.place)
    assert error.value.code == "DCA-904"


@pytest.mark.parametrize("top", [layout.FILES, layout.EVIDENCE])
def test_below_a_link_of_the_operator_only_what_the_index_put_there_is_deleted(scene: Scene, top: str) -> None:
    there = scene.outside / "there"
    linked(scene, top, there)
    own = scene.files(there)
    (there / "keep.whl").write_text("dear")
    (there / ("0" * 64)).mkdir()
    (there / ("0" * 64) / "smoke-00000000.json").write_text("dear")
    assert publish.gc(scene.place).deleted == ()
    put(scene.index, scene.third)
    publish.yank([OTHER], "wrong", scene.place)
    assert len(scene.files(there)) > len(own) + 2
    publish.remove([scene.third.name], scene.place)
    assert set(scene.files(there)) == {*own, "keep.whl", "0" * 64 + "/smoke-00000000.json"}
    before = dict.fromkeys(own, b"another's")
    for name, content in before.items():
        (there / name).unlink()
        (there / name).write_bytes(content)
    with pytest.raises(DcaError) as error:
        publish.remove([GOOD], scene.place)
    assert (error.value.code, "was not deleted" in error.value.what) == ("DCA-904", True)
    assert before.items() <= scene.files(there).items()


def test_a_link_below_the_top_is_not_followed(scene: Scene) -> None:
    (folder,) = {Path(one["path"]).parent for one in scene.told()["evidence"]}
    linked(scene, str(folder), scene.outside / "there")
    before = scene.files(scene.outside)
    found = verify_index(Looked(scene.index), NOBODY, Silent())
    assert any("symbolic link" in one for one in found.problems)
    for what in ("sign", "remove", "gc"):
        with pytest.raises(DcaError) as error:
            scene.commands(scene.place)[what]()
        assert error.value.code == "DCA-904", what
        assert scene.files(scene.outside) == before


def test_a_record_that_is_a_link_is_not_read(scene: Scene) -> None:
    scene.path().unlink()
    scene.path().symlink_to(scene.outside / "keep.txt")
    for command in scene.commands(scene.place).values():
        with untouched(scene), pytest.raises(DcaError) as error:
            command()
        assert (error.value.code, layout.record(GOOD) in error.value.what) == ("DCA-904", True)
    with untouched(scene):
        assert verify_index(Looked(scene.index), NOBODY, Silent()).problems


def test_a_broken_link_hides_no_other_record(scene: Scene) -> None:
    for name in ("a.whl", "vllm-1.5-py3-none-any.whl", "z.whl"):
        scene.path(name).symlink_to(scene.outside / "nothing")
        with pytest.raises(DcaError) as error:
            publish.gc(scene.place)
        assert error.value.code == "DCA-904"
        scene.path(name).unlink()
    assert scene.files(scene.index) == scene.whole


def test_pages_and_wheels_replace_links_in_their_place(scene: Scene) -> None:
    for path in ("index.html", f"files/{GOOD}", layout.SUMS, layout.ROWS):
        (scene.index / path).unlink(missing_ok=True)
        (scene.index / path).symlink_to(scene.outside / "keep.txt")
    with untouched(scene):
        publish.gc(scene.place)
        assert not any((scene.index / path).is_symlink() for path in ("index.html", layout.SUMS, layout.ROWS))
        publish.remove([GOOD], scene.place)
    put(scene.index, scene.wheels[0])
    assert check(scene.index).fine


@pytest.mark.parametrize(
    "told",
    [
        {"cuda": "../../outside/x"},
        {"cuda": "12.4.1"},
        {"recipe": "a\x1b[2J"},
        {"archs": ["../x"]},
    ],
)
def test_a_wheel_that_says_what_cannot_be_is_not_published(scene: Scene, told: dict[str, Any]) -> None:
    """In its own dca.json, which anybody can write."""
    info = "vllm-9.0.dist-info/dca.json"
    said = {
        "recipe": "one",
        "plan": "p",
        "profile": "lean",
        "groups": [],
        "archs": ["8.0"],
        "cuda": "12.4",
        "torch": {"version": "2.8.0"},
        "modules": [],
        "serves": {},
    }
    wheel = make(
        scene.root / "more", "9.0", cuda=None, details=Details(changed={info: json.dumps(said | told).encode()})
    )
    with pytest.raises(DcaError, match="metadata is invalid") as error:
        put(scene.index, wheel)
    assert error.value.code == "DCA-901"
    assert scene.files(scene.index) == scene.whole


@pytest.mark.parametrize("name", ["..", "../..", "a/b", "", "VLLM", "vllm\n", "%2e%2e", 1, None])
def test_a_served_index_names_projects_and_no_paths(scene: Scene, name: Any) -> None:
    page = scene.index / "simple/index.json"
    page.write_text(json.dumps({"meta": {"api-version": "1.1"}, "projects": [{"name": name}]}))
    with served(scene.index) as web, pytest.raises(DcaError) as error:
        verify_index(Served(web.url), NOBODY, Silent())
    assert error.value.code == "DCA-111"
    statements = [f"/{path}" for path in layout.STATEMENTS.values()]
    assert [path for _, path in web.asked if path not in statements] == ["/simple/index.json"]


def test_a_file_that_is_no_wheel_is_wrong(scene: Scene) -> None:
    """Even if its record has the right hash."""
    told = scene.told()
    content = (scene.index / "files" / GOOD).read_bytes()[:-30]
    (scene.index / "files" / GOOD).unlink()
    (scene.index / "files" / GOOD).write_bytes(content)
    scene.path().write_text(
        json.dumps(told | {"bytes": len(content)}).replace(told["sha256"], store.sha256_bytes(content))
    )
    assert any("is not a wheel" in one for one in check(scene.index).wrong)


def test_a_reason_holds_nothing_that_a_terminal_obeys(scene: Scene) -> None:
    (record,) = publish.yank([GOOD], "wrong\x1b[2J\0 past\x07 4K", scene.place).changed
    assert record.yanked == "wrong [2J past 4K"
    assert record in publish.listing(scene.place).wheels
