"""Attacks by whoever can write to a signed index or its server, and lacks the key: `dca verify --key` finds each."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
import requests

from dca import publish
from dca.foundation import documents, store
from dca.foundation.events import Silent
from dca.publish import layout, pages, statement
from dca.publish import verified as verified_index
from dca.publish.bucket import Bucket, _kind
from dca.publish.folder import Folder
from dca.publish.records import parse_record
from dca.publish.seen import Memory
from dca.publish.values import Record, Settings
from dca.publish.verified import Folder as Here
from dca.publish.verified import Served, VerifiedIndex, verify_index
from dca.trust import signing
from dca.trust.verify import Trusted, Verification
from tests.publish.test_verified import KEY, OTHER
from tests.support import SHARE, some
from tests.support.made_wheels import Details, make, put
from tests.support.served import served, uv
from tests.support.uploads import instead_of_boto3
from tests.support.web import Place

# Every attack starts a server.
pytestmark = pytest.mark.slow

OURS, THEIRS = signing.KeySigner(KEY), signing.KeySigner(OTHER)
BY_KEY = Trusted((KEY.public_key(),))
YANKED, GOOD, GONE = (f"vllm-{n}.0+cu12{n}-py3-none-any.whl" for n in (1, 4, 8))
PREFIX = "a/b/"
SIGNED = layout.STATEMENTS["dsse"]


@dataclass
class Site:
    """What a server has of an index, which an attacker changes.

    Args:
        files: by path; in a bucket also the pages under their folders' names.
        kinds: media types that are not the usual ones.
        bucket: whether folders have objects of their own.
    """

    files: dict[str, bytes]
    kinds: dict[str, str]
    bucket: bool

    def serve(self) -> Place:
        """A server that answers a folder's name with the folder's page."""
        place = Place()
        for path, content in self.files.items():
            place.pages[f"/{quote(path)}"] = (self.kinds.get(path, _kind(path)), content)
            if path.endswith(layout.HTML) and not self.bucket:
                folder = path.removesuffix(layout.HTML)
                place.pages[f"/{quote(folder)}"] = (self.kinds.get(path, _kind(path)), content)
        return place

    def records(self) -> list[Record]:
        names = [path for path in self.files if path.startswith(layout.RECORDS)]
        return [parse_record(path.split("/", 1)[1].removesuffix(".json"), self.files[path]) for path in names]

    def write(self, records: list[Record], url: str = "") -> None:
        """Make records and pages anew, as whoever has this tool can."""
        for path in [path for path in self.files if layout.VIEW.fullmatch(path.split("/")[0])]:
            del self.files[path]
        self.files |= {layout.record(record.file): documents.dumps(record) for record in records}
        for path, content in pages.render(records, Settings(url=url)).items():
            self.page(path, content)

    def page(self, path: str, content: bytes) -> None:
        self.files[path] = content
        folder, _, name = path.rpartition("/")
        if name == layout.HTML and folder and self.bucket:
            self.files[f"{folder}/"] = content


class Held(Served):
    """A stand-in for a server and its network: thousands of verifications take minutes instead of hours.

    Args:
        pages: what it serves, as `Place.pages`.
    """

    def __init__(self, pages: dict[str, tuple[str, bytes]]) -> None:
        super().__init__("http://127.0.0.1:1")
        self.pages = pages

    def _get(self, url: str, headers: dict[str, str] | None = None) -> requests.Response:
        path = urlsplit(url).path
        if path not in self.pages:
            raise FileNotFoundError(url)
        answer = requests.Response()
        kind, body = self.pages[path]
        answer.status_code, answer.raw = 200, BytesIO(body)
        answer.headers["Content-Type"] = kind
        return answer


class InOrder(contextlib.nullcontext["InOrder"]):
    """A pool of threads that does one thing after the other."""

    def __init__(self, _: int) -> None:
        super().__init__(self)

    def map(self, function: Callable[[str], str], values: list[str]) -> Iterator[str]:
        return map(function, values)


def remember(patched: pytest.MonkeyPatch) -> None:
    """Verify each wheel and read each statement once for the same bytes: most changes leave them as they are."""
    verify_wheel, parse = verified_index._wheel, statement.parse
    wheels: dict[object, tuple[Verification | None, list[str], set[str]]] = {}
    statements: dict[bytes, statement.Signed] = {}

    def wheel(
        source: Held, record: Record, trusted: Trusted, vouched: str, folder: Path
    ) -> tuple[Verification | None, list[str], set[str]]:
        own = tuple(source.pages.get(f"/{quote(path)}") for path in statement.files_of(record))
        key = documents.dumps(record), vouched, own
        if key not in wheels:
            wheels[key] = verify_wheel(source, record, trusted, vouched, folder)
        return wheels[key]

    def parsed(payload: bytes) -> statement.Signed:
        if payload not in statements:
            statements[payload] = parse(payload)
        return statements[payload]

    patched.setattr(verified_index, "_wheel", wheel)
    patched.setattr(statement, "parse", parsed)
    # Nothing is waited for: threads only cost time.
    patched.setattr("dca.publish.web.ThreadPoolExecutor", InOrder)


def change(site: Site, name: str, **fields: Any) -> None:
    """Change a record and all pages."""
    site.write([one.model_copy(update=fields) if one.file == name else one for one in site.records()])


def verified(site: Site, memory: Memory | None = None, trusted: Trusted = BY_KEY) -> VerifiedIndex:
    place = site.serve()
    try:
        return verify_index(Served(place.url), trusted, Silent(), memory)
    finally:
        place.server.shutdown()
        place.server.server_close()


def wrong(found: VerifiedIndex) -> list[str]:
    """Everything that fails a verification."""
    says = [finding.says for finding in found.findings if finding.status == "wrong"]
    return [*says, *found.problems, *(finding.says for wheel in found.wheels for finding in wheel.wrong)]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, dict[str, bytes]]:
    """The files of a signed index, in a folder and in a bucket; one wheel is yanked, and one removed."""
    root = tmp_path_factory.mktemp("made")
    details = Details(requires=("torch==2.8.0", "numpy"))
    wheels = [make(root / "dist", f"{n}.0+cu12{n}", cuda=f"12.{n}", details=details) for n in (1, 4, 8)]
    cache, signers = store.Store(root / "no-cache"), [OURS]
    with pytest.MonkeyPatch.context() as patched:
        objects = instead_of_boto3(patched)
        for place in (Folder(root / "index"), Bucket(f"s3://wheels/{PREFIX}")):
            publish.publish(wheels, place, cache, Silent(), publish.Additions(signers=signers))
            publish.yank([YANKED], "CVE-2026-1", place, signers)
            publish.remove([GONE], place, signers)
    here = {path: file.read_bytes() for path, file in store.walk(root / "index") if not path.endswith(".lock")}
    there = {key.removeprefix(PREFIX): content for key, (content, _) in objects.objects.items()}
    return {False: here, True: there}


# What a bucket serves differs in the pages under its folders' names alone: `make test` makes each attack once.
@pytest.fixture(params=[pytest.param(False, id="folder"), pytest.param(True, id="bucket", marks=pytest.mark.whole)])
def site(request: pytest.FixtureRequest, made: dict[bool, dict[str, bytes]]) -> Site:
    return Site(dict(made[request.param]), {}, bucket=request.param)


def edited_front(site: Site) -> None:
    site.files["index.html"] = site.files["index.html"].replace(b"pip install", b"pip install evil", 1)


def sidecar(site: Site) -> None:
    """Asked for by pip and uv in place of the wheel."""
    path = layout.metadata(GOOD)
    site.files[path] = site.files[path].replace(b"Requires-Dist: numpy", b"Requires-Dist: numpy\nRequires-Dist: evil")
    change(site, GOOD, metadata_sha256=store.sha256_bytes(site.files[path]))


def only_what_pip_asks_for(site: Site) -> None:
    path = "simple/vllm/" if site.bucket else "simple/vllm/index.html"
    site.files[path] = site.files[path].replace(b"4.0", b"4.1")


def claims(site: Site) -> None:
    change(site, GOOD, archs=("9.0", "10.0"), torch="2.9.0", recipe="better")


def claims_in_words(site: Site) -> None:
    (record,) = (one for one in site.records() if one.file == GOOD)
    said = tuple(one.model_copy(update={"says": "gpu: 900 of 900 cases passed"}) for one in record.evidence)
    change(site, GOOD, evidence=said)


def unyanked(site: Site) -> None:
    change(site, YANKED, yanked=None)


def yanked(site: Site) -> None:
    change(site, GOOD, yanked="use another")


def hidden(site: Site) -> None:
    site.write([one for one in site.records() if one.file != GOOD])
    site.files = {path: content for path, content in site.files.items() if GOOD not in path}


def removed(site: Site) -> None:
    change(site, GOOD, state="gone")


def brought_back(site: Site) -> None:
    change(site, GONE, state="listed")


def unlinked(site: Site) -> None:
    page = site.files["simple/vllm/index.html"].replace(b"vllm", b"torch")
    site.page("simple/torch/index.html", page)


def unlinked_in_json(site: Site) -> None:
    site.kinds["simple/numpy/"] = "application/vnd.pypi.simple.v1+json"
    site.files["simple/numpy/"] = site.files["simple/vllm/index.json"]
    site.bucket = True


def another_view(site: Site) -> None:
    """A CUDA version that the index never had."""
    site.page("cu130/vllm/index.html", site.files["simple/vllm/index.html"])


def no_statement(site: Site) -> None:
    del site.files[SIGNED]


def anothers_statement(site: Site) -> None:
    hidden(site)
    records = site.records()
    made = statement.made(records, Settings(id="1" * 32), pages.render(records, Settings()))
    site.files[SIGNED] = THEIRS.sign(made.payload())


def statement_of_a_wheel(site: Site) -> None:
    """Signed by the key, but of something else."""
    site.files[SIGNED] = next(content for path, content in site.files.items() if "evidence-dsse" in path)


def other_bytes(site: Site) -> None:
    site.files[layout.wheel(GOOD)] = site.files[layout.wheel(YANKED)]


def other_kind(site: Site) -> None:
    for path in ("simple/vllm/", "simple/vllm/index.html"):
        site.kinds[path] = "text/plain"


def requires_python(site: Site) -> None:
    change(site, GOOD, requires_python=">=3.99")


def linked_elsewhere(site: Site) -> None:
    change(site, GOOD, links_to="http://127.0.0.1:1/wheels/")


def another_project(site: Site) -> None:
    (record,) = (one for one in site.records() if one.file == GOOD)
    extra = record.model_copy(update={"file": GOOD.replace("vllm", "torch"), "project": "torch"})
    site.write([*site.records(), extra])


def another_record_of_a_removed_wheel(site: Site) -> None:
    """Which reserves its name for other bytes."""
    path = layout.record(GONE)
    site.files[path] = site.files[path].replace(b'"sha256": "', b'"sha256": "0', 1)


ATTACKS: tuple[Callable[[Site], None], ...] = (
    edited_front,
    sidecar,
    only_what_pip_asks_for,
    claims,
    claims_in_words,
    unyanked,
    yanked,
    hidden,
    removed,
    brought_back,
    unlinked,
    unlinked_in_json,
    another_view,
    no_statement,
    anothers_statement,
    statement_of_a_wheel,
    other_bytes,
    other_kind,
    requires_python,
    linked_elsewhere,
    another_project,
    another_record_of_a_removed_wheel,
)


# Attacks on what only a bucket has: pages under its folders' names.
OF_BUCKETS = (only_what_pip_asks_for, unlinked_in_json)


@pytest.mark.parametrize("site", [False, True], ids=["folder", "bucket"], indirect=True)
def test_an_honest_index_passes(site: Site) -> None:
    found = verified(site)
    assert wrong(found) == []
    assert {finding.check: finding.status for finding in found.findings} == {"index": "proven", "age": "not proven"}
    assert [wheel.wheel for wheel in found.wheels] == [YANKED, GOOD]
    assert {finding.status for wheel in found.wheels for finding in wheel.findings} == {"proven", "not proven"}


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.__name__)
def test_an_attack_is_found(site: Site, attack: Callable[[Site], None]) -> None:
    attack(site)
    assert wrong(verified(site))


@pytest.mark.parametrize("site", [pytest.param(True, id="bucket")], indirect=True)
@pytest.mark.parametrize("attack", OF_BUCKETS, ids=lambda attack: attack.__name__)
def test_an_attack_on_a_bucket_is_found(site: Site, attack: Callable[[Site], None]) -> None:
    attack(site)
    assert wrong(verified(site))


@pytest.mark.long
def test_an_old_state_is_found_on_a_second_visit(site: Site, tmp_path: Path) -> None:
    memory = Memory(store.Store(tmp_path / "cache"))
    assert wrong(verified(site, memory)) == []
    assert wrong(verified(site, memory)) == []
    before = replace(site, files=dict(site.files))
    now = statement.unchecked("dsse", site.files[SIGNED])
    assert now is not None
    newer = now.statement.model_copy(update={"number": now.statement.number + 1})
    site.files[SIGNED] = OURS.sign(statement.Signed(newer, now.files).payload())
    assert wrong(verified(site, memory)) == []
    (says,) = wrong(verified(before, memory))
    assert "an old state is served" in says
    assert wrong(verified(before, Memory(store.Store(tmp_path / "other")))) == [], "a first visit cannot know"
    twin = newer.model_copy(update={"signed": "2026-01-02T03:04:05Z"})
    site.files[SIGNED] = OURS.sign(statement.Signed(twin, now.files).payload())
    assert any("two statements with the number" in one for one in wrong(verified(site, memory)))


@pytest.mark.parametrize(("days", "most", "fine"), [(3, 7, True), (9, 7, False), (9, None, True), (-3, None, False)])
def test_a_statement_has_an_age(site: Site, days: int, most: int | None, fine: bool) -> None:
    now = statement.unchecked("dsse", site.files[SIGNED])
    assert now is not None
    when = (datetime.now(timezone.utc) - timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
    dated = now.statement.model_copy(update={"signed": when})
    site.files[SIGNED] = OURS.sign(statement.Signed(dated, now.files).payload())
    assert bool(wrong(verified(site, Memory(None, most)))) is not fine


def test_another_index_of_the_same_key_is_not_this_one(site: Site, tmp_path: Path) -> None:
    memory = Memory(store.Store(tmp_path / "cache"))
    place = site.serve()
    try:
        source = Served(place.url)
        assert wrong(verify_index(source, BY_KEY, Silent(), memory)) == []
        now = statement.unchecked("dsse", site.files[SIGNED])
        assert now is not None
        other = now.statement.model_copy(update={"index": "1" * 32})
        content = OURS.sign(statement.Signed(other, now.files).payload())
        place.pages[f"/{SIGNED}"] = ("application/json", content)
        assert any("another index" in one for one in wrong(verify_index(source, BY_KEY, Silent(), memory)))
    finally:
        place.server.shutdown()
        place.server.server_close()


@pytest.mark.long
def test_honest_indexes_are_copied_in_many_ways(site: Site) -> None:
    """Served without the tool's own folder, without records, or under another name than its own."""
    for hide in (layout.OWN, layout.RECORDS, layout.AS_IT_IS):
        less = {path: content for path, content in site.files.items() if not path.startswith(hide)}
        assert wrong(verified(replace(site, files=less))) == [], hide
    unsigned = {path: content for path, content in site.files.items() if not path.startswith((layout.OWN, SIGNED))}
    assert wrong(verified(replace(site, files=unsigned), trusted=Trusted())) == []
    elsewhere = replace(site, files=unsigned)
    elsewhere.write(elsewhere.records(), "https://wheels.example/index/")
    assert wrong(verified(elsewhere, trusted=Trusted())) == []


# Whoever has a key may still be an enemy of whoever trusts it: what is signed is no less checked.
STATEMENT: dict[str, tuple[Any, ...]] = {
    "schema": ("", "dca.index-statement/2", None),
    "index": ("", "../../x", "0" * 31, "A" * 32, "0" * 32 + "\n", None),
    "number": (0, -1, 1 << 60, "1", 0.5, None),
    "signed": ("soon", "2026-01-02", "../x", "\0", None),
    "url": ("javascript:alert(1)", "file:///etc/", "https://me:secret@host/", "//host/", "https://h/\n/", None),
    "projects": (["../.."], ["VLLM"], [], ["vllm", "torch"], "vllm", None),
    "wheels": ([], [{}], ["x"], None),
    "removed": (
        [{"file": "../../x.whl", "sha256": "0" * 64, "record": "0" * 64}],
        [{"file": GOOD, "sha256": "0" * 64, "record": "0" * 64}],
        [{}],
        None,
    ),
}
SUBJECTS = (
    "../../keep.txt",
    "/etc/passwd",
    ".dca/index.json",
    "files/other.whl",
    "simple/../x",
    "simple/torch/x.html",
    "",
)


def test_what_cannot_be_is_not_read_even_if_it_is_signed(made: dict[bool, dict[str, bytes]]) -> None:
    payload = OURS.own(made[False][SIGNED])
    assert payload
    assert set(STATEMENT) == {"schema", *statement.Statement.model_fields}
    assert statement.parse(payload)
    for field, values in STATEMENT.items():
        for value in values:
            told = json.loads(payload)
            told["predicate"][field] = value
            with pytest.raises(signing.BadSignatureError) as error:
                statement.parse(documents.canonical(told))
            assert str(error.value).isprintable(), (field, value)
    for name in SUBJECTS:
        told = json.loads(payload)
        told["subject"] = sorted(
            [*told["subject"], {"name": name, "digest": {"sha256": "0" * 64}}], key=lambda one: one["name"]
        )
        with pytest.raises(signing.BadSignatureError):
            statement.parse(documents.canonical(told))
    for odd in (b"", b"{}", b"[]", b"\xff", b"[" * 100_000, b'"x"', payload + b" "):
        with pytest.raises(signing.BadSignatureError):
            statement.parse(odd)


def fields(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The place of every field and element of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*place, key)
        yield from fields(inner, (*place, key))


def flipped(value: Any) -> Any:
    """Another value of the same type."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("0" if value[-1:] != "0" else "1")
    return type(value)()


def mutated(content: bytes, chance: random.Random) -> Iterator[tuple[str, bytes]]:
    """A JSON document with one field flipped, dropped, doubled, or swapped with another."""
    every = list(fields(json.loads(content)))
    for place in every:
        for how in ("flip", "drop", "double", "swap"):
            document = json.loads(content)
            above = document
            for key in place[:-1]:
                above = above[key]
            key, value = place[-1], above[place[-1]]
            if how == "flip":
                above[key] = flipped(value)
            elif how == "drop":
                del above[key]
            elif how == "double" and isinstance(above, list):
                above.append(value)
            elif how == "double":
                above[f"{key}-2"] = value
            else:
                other = chance.choice(list(above) if isinstance(above, dict) else range(len(above)))
                above[key], above[other] = above[other], value
            if document != json.loads(content):
                yield f"{how} {place}", json.dumps(document, indent=2).encode()


def lines(content: bytes) -> Iterator[tuple[str, bytes]]:
    """A text with one attribute, line or word changed, dropped, doubled, or swapped with the next."""
    parts = re.split(rb"(?<=[\n >])", content)
    for number, part in enumerate(parts[:-1]):
        after = parts[number + 1]
        for how, new in (("flip", [part.swapcase()]), ("drop", []), ("double", [part, part])):
            yield f"{how} {number}", b"".join([*parts[:number], *new, *parts[number + 1 :]])
        yield f"swap {number}", b"".join([*parts[:number], after, part, *parts[number + 2 :]])


def tampered(site: Site, chance: random.Random) -> Iterator[tuple[str, str, dict[str, tuple[str, bytes]]]]:
    """Each change of one field, with the pages that it changes; the tool's own folder is not for clients."""
    for path, content in sorted(site.files.items()):
        if path.startswith(layout.OWN) or path.endswith(".whl") or not content:
            continue
        changes = mutated(content, chance) if path.endswith(".json") else lines(content)
        for what, changed in some(list(changes), chance):
            names = {f"/{quote(path)}"}
            if not site.bucket:
                names |= {f"/{quote(path.removesuffix(layout.HTML))}"}
            if changed != content:
                yield path, what, dict.fromkeys(names, (site.kinds.get(path, _kind(path)), changed))


@pytest.mark.whole
def test_every_field_of_every_document_is_checked_with_a_stand_in_server(
    site: Site, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each change of one field is found."""
    remember(monkeypatch)
    tried = 0
    place = site.serve()
    place.server.shutdown()
    place.server.server_close()
    assert wrong(verify_index(Held(place.pages), BY_KEY, Silent())) == []
    for path, what, changed in tampered(site, chance):
        assert wrong(verify_index(Held(place.pages | changed), BY_KEY, Silent())), (path, what)
        tried += 1
    assert tried > 100 or SHARE < 1
    print(f"{tried} of {tried} found")


def test_published_bytes_stay_and_publishing_again_heals(tmp_path: Path) -> None:
    """What changes the wheel where it was built changes nothing in the index; what changed there is written again."""
    wheel, index, cache = make(tmp_path / "dist", "4.0+cu124"), Folder(tmp_path / "index"), store.Store(tmp_path / "c")
    more = publish.Additions(signers=[OURS])

    def put() -> None:
        publish.publish([wheel], index, cache, Silent(), more)

    put()
    whole = {path: file.read_bytes() for path, file in store.walk(index.root) if not path.endswith(".lock")}
    content = wheel.read_bytes()
    with wheel.open("r+b") as stream:
        stream.write(b"changed in place")
    assert (index.root / layout.wheel(wheel.name)).read_bytes() == content
    wheel.write_bytes(content)
    for path in [path for path in whole if not path.startswith((layout.OWN, layout.RECORDS))]:
        (index.root / path).write_bytes(whole[path] + b"damage")
        put()
        healed = {path: file.read_bytes() for path, file in store.walk(index.root) if not path.endswith(".lock")}
        changed = {path for path in whole.keys() | healed.keys() if whole.get(path) != healed.get(path)}
        assert all(
            "dsse" in path or path.startswith((layout.EVIDENCE, layout.OWN, layout.RECORDS)) for path in changed
        ), path
        assert wrong(verify_index(Here(index.root), BY_KEY, Silent())) == [], path
        whole = healed
    assert wrong(verified(Site(whole, {}, bucket=False))) == []


def test_a_bucket_is_healed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata of an object still name the right hash."""
    objects = instead_of_boto3(monkeypatch)
    wheel, place, cache = make(tmp_path, "4.0+cu124"), Bucket(f"s3://wheels/{PREFIX}"), store.Store(tmp_path / "c")
    publish.publish([wheel], place, cache, Silent())
    for path in (layout.wheel(wheel.name), layout.metadata(wheel.name), "simple/vllm/", "simple/vllm/index.json"):
        content, more = objects.objects[PREFIX + path]
        objects.objects[PREFIX + path] = content + b"damage", more
        publish.publish([wheel], place, cache, Silent())
        assert objects.objects[PREFIX + path][0] == content, path
    objects.objects[f"{PREFIX}simple/vllm/"] = b"evil", {}
    publish.gc(place)
    assert objects.objects[f"{PREFIX}simple/vllm/"][0] == objects.objects[f"{PREFIX}simple/vllm/index.html"][0]


def test_a_command_without_the_key_leaves_no_statement_that_no_longer_fits(tmp_path: Path) -> None:
    wheel, index, cache = make(tmp_path / "dist", "4.0+cu124"), Folder(tmp_path / "index"), store.Store(tmp_path / "c")
    publish.publish([wheel], index, cache, Silent(), publish.Additions(signers=[OURS]))
    first = index.read(SIGNED)
    assert publish.publish([wheel], index, cache, Silent(), publish.Additions(signers=[OURS])).statements == ()
    assert publish.publish([wheel], index, cache, Silent()).statements == ()
    assert index.read(SIGNED) == first, "what still fits is kept"
    (says,) = publish.yank([wheel.name], "bad", index).statements
    assert (says.startswith(f"{SIGNED} was removed"), (index.root / SIGNED).exists()) == (True, False)
    assert publish.sign(index, [OURS]).statements
    change_record = json.loads(index.read(layout.record(wheel.name))) | {"yanked": None}
    (index.root / layout.record(wheel.name)).write_bytes(documents.canonical(change_record))
    assert any("was changed since the last signature" in one for one in publish.gc(index, [OURS]).statements)


def test_metadata_beside_a_wheel_that_is_linked_elsewhere_is_checked(tmp_path: Path) -> None:
    """Such as on the page of a release, where both are uploaded."""
    wheel, there = make(tmp_path / "dist", "4.0+cu124"), Place()
    put(tmp_path / "index", wheel, links_to=f"{there.url}/")
    content = (tmp_path / "index" / layout.metadata(wheel.name)).read_bytes()
    host, name = there.url.removeprefix("http://"), f"/{quote(wheel.name)}"
    there.pages[name] = ("application/octet-stream", wheel.read_bytes())
    with served(tmp_path / "index") as web:
        source = Served(web.url, (host,))
        assert any("metadata is missing" in one for one in wrong(verify_index(source, Trusted(), Silent())))
        there.pages[f"{name}.metadata"] = ("text/plain", content)
        assert wrong(verify_index(source, Trusted(), Silent())) == []
        there.pages[f"{name}.metadata"] = ("text/plain", content + b"Requires-Dist: evil\n")
        assert any("metadata has sha256" in one for one in wrong(verify_index(source, Trusted(), Silent())))


PAGE, WHEEL, SIDECAR = "/simple/vllm/", f"/{quote(layout.wheel(GOOD))}", f"/{quote(layout.metadata(GOOD))}"


def encoded(place: Place, path: str, body: bytes, *, always: bool = False) -> None:
    """Send a file compressed: to those who take that, or to everybody."""
    kind, plain = place.pages[path]

    def answer(handler: Any) -> None:
        packs = always or "gzip" in handler.headers.get("Accept-Encoding", "")
        content = gzip.compress(body) if packs else plain
        handler.send_response(200)
        handler.send_header("Content-Type", kind)
        handler.send_header("Content-Length", str(len(content)))
        if packs:
            handler.send_header("Content-Encoding", "gzip")
        handler.end_headers()
        handler.wfile.write(content)

    place.odd[path] = answer


def test_another_page_in_another_encoding_is_found(site: Site, tmp_path: Path) -> None:
    """As a server has it that sends `index.html.gz` to whoever takes gzip: pip and uv do."""
    place = site.serve()
    kind, honest = place.pages[PAGE]
    encoded(place, PAGE, honest)
    assert wrong(verify_index(Served(place.url), BY_KEY, Silent())) == []
    names = ("pip", "install", "--dry-run", "--no-deps", "--index-url", f"{place.url}/simple/", "vllm==4.0+cu124")
    assert uv(*names, "--target", str(tmp_path / "out")).returncode == 0
    encoded(place, PAGE, b"<!DOCTYPE html>")
    found = wrong(verify_index(Served(place.url), BY_KEY, Silent()))
    assert any(PAGE[1:] in one for one in found), kind
    assert uv(*names, "--target", str(tmp_path / "out")).returncode != 0, "it is what uv takes"


@pytest.mark.parametrize(("path", "name"), [(WHEEL, layout.wheel(GOOD)), (SIDECAR, layout.metadata(GOOD))])
def test_a_file_that_installers_would_have_to_decode_is_found(site: Site, path: str, name: str) -> None:
    place = site.serve()
    encoded(place, path, place.pages[path][1], always=True)
    assert any(
        one.startswith(f"{name} is sent in the encoding 'gzip'")
        for one in wrong(verify_index(Served(place.url), BY_KEY, Silent()))
    )


@pytest.mark.parametrize(
    ("charset", "fine"),
    [
        ("utf-8", True),
        ("UTF-8", True),
        ('"utf-8"', True),
        ("iso-8859-1", True),
        ("utf-7", False),
        ("utf-16", False),
        ("x", False),
    ],
)
def test_a_page_in_another_character_set_is_found(site: Site, charset: str, fine: bool) -> None:
    """Which turns `+` of a version into other characters, or leaves no link."""
    site.kinds["simple/vllm/"] = site.kinds["simple/vllm/index.html"] = f"text/html; charset={charset}"
    found = wrong(verified(site))
    assert (not found) is fine, found


@pytest.mark.long
def test_no_other_host_is_asked_unless_it_is_named(site: Site) -> None:
    there, elsewhere = site.serve(), site.serve()
    host = elsewhere.url.removeprefix("http://")

    def away(handler: Any) -> None:
        handler.send_response(302)
        handler.send_header("Location", elsewhere.url + handler.path)
        handler.end_headers()

    for path in (f"/{quote(layout.wheel(GOOD))}", "/simple/vllm/", f"/{quote(layout.metadata(GOOD))}"):
        there.odd[path] = away
        found = verify_index(Served(there.url), BY_KEY, Silent())
        assert any(f"--allow-host {host}" in problem for problem in found.problems), path
        assert elsewhere.asked == [], path
        assert wrong(verify_index(Served(there.url, (host,)), BY_KEY, Silent())) == [], path
        elsewhere.asked.clear()
        there.odd.clear()
