"""The bill of materials, the provenance, signatures, and `dca verify`."""

from __future__ import annotations

import base64
import gc
import json
import random
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from dca.catalogue import toolkits
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import Loaded, Recipe
from dca.compile.compiling import Build
from dca.compile.job import BuildEnvironment, Job
from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.pipeline.wheel import Made
from dca.sources.fetch import Tree
from dca.toolchain.environments import TorchFacts
from dca.trust import evidence, signing
from dca.trust.verify import Trusted, Verification, verify
from dca.wheelfile import provenance, sbom
from tests.support import RunDca, make_small

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))
BY_KEY = Trusted((KEY.public_key(),))


@dataclass(frozen=True)
class Parts:
    """What a wheel was built from."""

    job: Job
    build: Build

    @property
    def plan(self) -> Plan:
        return self.job.plan

    @property
    def recipe(self) -> Recipe:
        return self.job.recipe

    @property
    def tree(self) -> Tree:
        return self.job.tree

    def sbom(self) -> bytes:
        return sbom.sbom(self.job, self.build)

    def provenance(self) -> dict[str, Any]:
        started = datetime(2026, 1, 2, tzinfo=timezone.utc)
        invocation = provenance.Invocation("tool", toolkits.load_sources(), started, "run")
        return provenance.statement("some.whl", "0" * 64, self.job, self.build, invocation)

    def definition(self) -> bytes:
        return documents.canonical(self.provenance()["predicate"]["buildDefinition"])


@pytest.fixture(scope="module")
def parts(made: Made, plan: Plan, all_recipes: tuple[Loaded, ...]) -> Parts:
    run = Path(made.run)
    recipe = next(one.recipe for one in all_recipes if one.recipe.name == plan.recipe)
    tree, build = documents.read(Tree, run / "source.json"), documents.read(Build, run / "build.json")
    torch = TorchFacts(version=build.torch, cuda="", cxx11_abi=False, includes=(), libraries="", python_include="")
    job = Job(
        plan=plan, recipe=recipe, tree=tree, toolkit=None, environment=BuildEnvironment(Path(plan.python_path), torch)
    )
    return Parts(job, build)


@pytest.mark.long
def test_the_wheel_carries_its_bill_of_materials_which_is_valid(wheel: Path, parts: Parts) -> None:
    # Its parsers take seconds to import, which every run of the tests would pay.
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    carried = evidence.carried_sbom(wheel)
    assert carried == parts.sbom()
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(carried.decode()) is None
    told = json.loads(carried)
    components = {one["bom-ref"]: one for one in told["components"]}
    assert {"source:source", "toolkit", "torch", "host-compiler", "file:vllm/_C.abi3.so"} <= set(components)
    assert str(Path.home()) not in carried.decode()
    refs = {*components, "wheel", "tool"}
    assert {one["ref"] for one in told["dependencies"]} | {
        ref for one in told["dependencies"] for ref in one.get("dependsOn", [])
    } <= refs


def test_companions_and_their_submodules_stand_in_it_with_their_commits(all_recipes: tuple[Loaded, ...]) -> None:
    for loaded in all_recipes:
        for name, companion in loaded.recipe.companions.items():
            assert loaded.recipe.origin(name) == companion.source
            for submodule in companion.submodules:
                assert loaded.recipe.origin(f"{name}/{submodule.path}") == submodule
    assert sbom._repository("https://github.com/some/thing.git") == "pkg:github/some/thing"
    assert sbom._repository("https://example.org/a/b") == "pkg:generic/b?vcs_url=git%2Bhttps://example.org/a/b"


def without_first_patch(parts: Parts) -> Parts:
    tree = parts.tree.model_copy(update={"patches": parts.tree.patches[1:]})
    return replace(parts, job=replace(parts.job, tree=tree))


def with_another_patch(parts: Parts) -> Parts:
    first, *rest = parts.tree.patches
    patches = (first.model_copy(update={"sha256": "1" * 64}), *rest)
    return replace(parts, job=replace(parts.job, tree=parts.tree.model_copy(update={"patches": patches})))


def with_another_source(parts: Parts) -> Parts:
    first, *rest = parts.tree.sources
    sources = (first.model_copy(update={"tree": "1" * 64}), *rest)
    pinned = parts.recipe.source.model_copy(update={"sha256": "1" * 64})
    recipe = parts.recipe.model_copy(update={"source": pinned})
    tree = parts.tree.model_copy(update={"sources": sources})
    return replace(parts, job=replace(parts.job, recipe=recipe, tree=tree))


def with_another_compiler(parts: Parts) -> Parts:
    return replace(parts, build=parts.build.model_copy(update={"toolkit": "12.4.999"}))


def with_another_header(parts: Parts) -> Parts:
    first, *rest = parts.build.headers
    fixes = (first.model_copy(update={"sha256": "1" * 64}), *rest)
    return replace(parts, build=parts.build.model_copy(update={"headers": fixes}))


@pytest.mark.parametrize(
    "change",
    [without_first_patch, with_another_patch, with_another_source, with_another_compiler, with_another_header],
)
def test_a_change_of_what_went_in_changes_both(parts: Parts, change: Callable[[Parts], Parts]) -> None:
    assert change(parts).sbom() != parts.sbom()
    assert change(parts).definition() != parts.definition()
    assert parts.definition() == parts.definition()


def test_both_name_what_was_fixed_in_the_headers_of_the_toolkit(parts: Parts) -> None:
    assert parts.plan.toolkit is not None
    assert {one.name: one.sha256 for one in parts.build.headers} == parts.plan.toolkit.fixes
    told = json.loads(parts.sbom())
    fixes = {
        one["name"]: one["hashes"][0]["content"] for one in told["components"] if "math_functions.h" in one["name"]
    }
    assert fixes == {f"toolkit/{one.file}: {one.name}": one.sha256 for one in parts.build.headers}
    (toolkit,) = (one for one in told["dependencies"] if one["ref"] == "toolkit")
    assert len(toolkit["dependsOn"]) == len(fixes) == 2
    parts_of = {one["name"]: one for one in parts.provenance()["predicate"]["buildDefinition"]["resolvedDependencies"]}
    fix = parts_of[f"toolkit {parts.plan.toolkit.name}: fix sinpi of crt/math_functions.h"]
    assert fix["annotations"] == {"status": "applied"}
    assert fix["digest"] == {"sha256": parts.plan.toolkit.fixes["sinpi"]}


def test_provenance_names_the_wheel_and_every_part(wheel: Path, made: Made, parts: Parts) -> None:
    told = json.loads((Path(made.run) / evidence.PROVENANCE).read_bytes())
    assert told["subject"] == [{"name": wheel.name, "digest": {"sha256": made.sha256}}]
    names = {one["name"] for one in told["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert {"recipe", "build lock", "source", "torch"} <= names
    assert {f"patch {one.name}" for one in parts.tree.patches} <= names
    assert any(name.startswith("toolkit ") for name in names)
    when = told["predicate"]["runDetails"]["metadata"]
    assert when["startedOn"] <= when["finishedOn"]
    assert str(Path.home()) not in json.dumps(told)


def test_an_envelope_opens_with_its_key_alone() -> None:
    envelope = signing.KeySigner(KEY).sign(b"payload")
    mine, other = KEY.public_key(), OTHER.public_key()
    assert signing.opened(envelope, (other, mine)) == (b"payload", signing.key_id(mine))
    assert signing.opened(envelope, (other,)) == (b"payload", "")
    given = json.loads(envelope)
    given["payload"] = base64.b64encode(b"another").decode()
    with pytest.raises(signing.BadSignatureError, match="is wrong"):
        signing.opened((json.dumps(given, indent=1) + "\n").encode(), (mine,))


def test_the_signed_bytes_are_those_that_dsse_defines() -> None:
    """The example of the specification, with its payload type."""
    assert signing._encoded(b"hello world") == b"DSSEv1 28 application/vnd.in-toto+json 11 hello world"


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b"null", b"\xff", b'{"payloadType": 1}', b"[" * 100_000, b'{"payload": "' + b"A" * 9]
)
def test_what_is_no_envelope_is_told(content: bytes) -> None:
    # What is collected in the depths of a nested document finds no room on the stack for its finalizer.
    gc.collect()
    with pytest.raises(signing.BadSignatureError):
        signing.opened(content, ())


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"]
)
def test_what_is_no_key_is_told(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(content)
    for read in (signing.private_key, signing.public_key):
        with pytest.raises(DcaError) as refused:
            read(file)
        assert refused.value.code == "DCA-220"


@pytest.mark.slow
def test_keys_of_openssl_are_read(tmp_path: Path) -> None:
    private, public, other = tmp_path / "key.pem", tmp_path / "key.pub", tmp_path / "rsa.pem"
    commands: list[list[str | Path]] = [
        ["genpkey", "-algorithm", "ed25519", "-out", private],
        ["pkey", "-in", private, "-pubout", "-out", public],
        ["genpkey", "-algorithm", "rsa", "-out", other],
    ]
    for words in commands:
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    envelope = signing.KeySigner(signing.private_key(private)).sign(b"payload")
    for key in (signing.public_key(public), signing.public_key(private)):
        assert signing.opened(envelope, (key,))[1] == signing.key_id(key)
    with pytest.raises(DcaError, match="not an Ed25519 key"):
        signing.private_key(other)


@dataclass(frozen=True)
class Proven:
    """A small wheel with all of its evidence, signed."""

    wheel: Path
    files: dict[str, bytes]

    def verify(self, **changes: bytes) -> Verification:
        return verify(self.wheel, self.files | changes, BY_KEY)


@pytest.fixture(scope="module")
def proven(dca: RunDca, small_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Proven:
    made = make_small(dca, small_cache, tmp_path_factory.mktemp("proven"))
    wheel = Path(made.wheel)
    files = evidence.collect(wheel, made.sha256, store.Store(small_cache))
    # Other tests prove this wheel; what a report adds is not tested here.
    files.pop(evidence.SMOKE, None)
    return Proven(wheel, files | evidence.sign(wheel.name, made.sha256, files, signing.KeySigner(KEY)))


def test_everything_of_a_wheel_with_all_of_its_evidence_is_proven(proven: Proven) -> None:
    found = proven.verify()
    status = {one.check: one.status for one in found.findings}
    assert status == {
        "archive": "proven",
        "record": "proven",
        "sbom": "proven",
        "provenance": "proven",
        "inspection": "proven",
        "smoke": "not proven",
        "evidence": "proven",
        "signature": "proven",
    }
    assert found.key == signing.key_id(KEY.public_key())


def test_without_the_key_nobody_is_named_and_with_another_it_fails(proven: Proven) -> None:
    assert {one.check: one.status for one in verify(proven.wheel, proven.files).findings}["signature"] == "not proven"
    by_other = Trusted((OTHER.public_key(),))
    assert [one.check for one in verify(proven.wheel, proven.files, by_other).wrong] == ["signature"]
    bare = {name: content for name, content in proven.files.items() if name in evidence.DOCUMENTS}
    assert [one.check for one in verify(proven.wheel, bare, BY_KEY).wrong] == ["signature"]
    assert not verify(proven.wheel, bare).wrong


@pytest.fixture(scope="module")
def documents_of(wheel: Path, made: Made) -> dict[str, bytes]:
    """The documents about the wheel, in which a module of the official wheel was written anew."""
    return {evidence.SBOM: evidence.carried_sbom(wheel)} | evidence.read(Path(made.run), (evidence.PROVENANCE,))


def test_bill_of_materials_and_provenance_have_both_hashes_of_a_rewritten_module(
    documents_of: dict[str, bytes], parts: Parts
) -> None:
    (module,) = [module for module in parts.build.modules if module.rewritten]
    (planned,) = [planned for planned in parts.plan.modules if planned.path == module.path]
    assert module.rewritten is not None
    assert module.rewritten.official == planned.sha256 != module.sha256
    told = {one["bom-ref"]: one for one in json.loads(documents_of[evidence.SBOM])["components"]}
    component = told[f"file:{module.path}"]
    assert component["hashes"][0]["content"] == module.sha256
    assert {"name": "dca:official-sha256", "value": planned.sha256} in component["properties"]
    assert {"ptxas", "fatbinary"} <= set(told)
    definition = json.loads(documents_of[evidence.PROVENANCE])["predicate"]["buildDefinition"]
    assert definition["internalParameters"]["rewritten"][module.path]["sha256"] == module.sha256
    inputs = {one["name"]: one.get("digest") for one in definition["resolvedDependencies"]}
    assert inputs[module.path] == {"sha256": planned.sha256}


@pytest.mark.parametrize("name", [evidence.SBOM, evidence.PROVENANCE])
@pytest.mark.parametrize("what", ["official", "sha256"])
def test_another_origin_of_a_rewritten_module_is_found(
    wheel: Path, documents_of: dict[str, bytes], parts: Parts, name: str, what: str
) -> None:
    assert not verify(wheel, documents_of).wrong
    (module,) = [module for module in parts.build.modules if module.rewritten]
    assert module.rewritten is not None
    sha256 = module.sha256 if what == "sha256" else module.rewritten.official
    content = documents_of[name].replace(sha256.encode(), b"0" * 64)
    assert content != documents_of[name]
    (wrong,) = verify(wheel, documents_of | {name: content}).wrong
    assert wrong.check == name.split(".")[0]


@pytest.mark.parametrize("name", [evidence.SBOM, evidence.PROVENANCE, evidence.INSPECTION])
def test_a_document_of_another_wheel_is_found_without_a_key(proven: Proven, name: str) -> None:
    content = proven.files[name].replace(store.sha256_file(proven.wheel).encode(), b"0" * 64)
    if name == evidence.SBOM:
        content = content.replace(b'"dca:pin"', b'"dca:pins"')
    bare = {one: there for one, there in proven.files.items() if one in evidence.DOCUMENTS}
    (wrong,) = verify(proven.wheel, bare | {name: content}).wrong
    assert wrong.check == name.split(".")[0]


def test_a_smoke_test_that_failed_or_was_of_something_else_proves_nothing(dca: RunDca, proven: Proven) -> None:
    from dca.smoke import CaseResult, Smoke

    case = CaseResult(level="static", name="one", proves="all is well", passed=True)
    smoke = Smoke(
        wheel=proven.wheel.name,
        sha256=store.sha256_file(proven.wheel),
        version="1",
        recipe="r",
        level="static",
        seed=0,
        cases=(case,),
    )

    def status(**changes: Any) -> str:
        files = {evidence.SMOKE: documents.dumps(smoke.model_copy(update=changes))}
        return {one.check: one.status for one in verify(proven.wheel, files).findings}["smoke"]

    assert status() == "claimed"
    assert status(sha256="0" * 64) == "wrong"
    assert status(partial=True) == "wrong"
    assert status(cases=(case.model_copy(update={"passed": False}),)) == "wrong"
    assert status(cases=(case.model_copy(update={"overlay": "/some"}),)) == "wrong"


def is_found(wheel: Path, files: dict[str, bytes]) -> bool:
    try:
        return bool(verify(wheel, files, BY_KEY).wrong)
    except DcaError as error:
        return error.code == "DCA-701"


@pytest.mark.proof
def test_a_changed_byte_is_found_wherever_it_is(
    proven: Proven, tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """A bit of the wheel, of a document or of an envelope, in turn."""
    target = tmp_path / proven.wheel.name
    missed = []
    for number in range(scale(500)):
        name = (proven.wheel.name, *sorted(proven.files))[number % (1 + len(proven.files))]
        content = bytearray(proven.files.get(name) or proven.wheel.read_bytes())
        at = chance.randrange(len(content))
        content[at] ^= 1 << chance.randrange(8)
        files = proven.files
        if name == proven.wheel.name:
            target.write_bytes(content)
        else:
            shutil.copyfile(proven.wheel, target)
            files = files | {name: bytes(content)}
        if not is_found(target, files):
            missed.append((name, at))
    assert missed == []


def test_verify_says_it_in_words_and_ends_with_its_code(dca: RunDca, proven: Proven, tmp_path: Path) -> None:
    for name, content in proven.files.items():
        (tmp_path / name).write_bytes(content)
    key = tmp_path / "key.pub"
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key.write_bytes(KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    words = ("verify", proven.wheel, "--evidence", tmp_path, "--key", key)
    done = dca(*words)
    assert done.returncode == 0, done.stderr
    assert "ok    signature   signed with key" in done.stdout
    assert "not proven: that it computes correctly" in done.stdout
    (tmp_path / evidence.SBOM).write_bytes(proven.files[evidence.SBOM] + b" ")
    done = dca(*words, "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["schema"] == "dca.verification/2"
    assert {one["check"] for one in found["findings"] if one["status"] == "wrong"} == {"sbom", "evidence"}


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("nowhere.whl",), "DCA-204", "nowhere.whl is not a file"),
        (("{wheel}", "--key", "nowhere"), "DCA-204", "--key: nowhere is not a file"),
        (("{wheel}", "--key", "/etc/passwd"), "DCA-220", "openssl"),
        (("{wheel}", "--evidence", "nowhere"), "DCA-204", "--evidence: nowhere is not a folder"),
        (("/etc/passwd",), "DCA-701", "is not a wheel"),
    ],
)
def test_wrong_input_is_told(dca: RunDca, wheel: Path, words: tuple[str, ...], code: str, says: str) -> None:
    done = dca("verify", *(word.replace("{wheel}", str(wheel)) for word in words))
    assert done.returncode == int(code[4])
    assert code in done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wheel_of_somebody_else_is_no_error(tmp_path: Path) -> None:
    wheel = tmp_path / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("thing-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
        archive.writestr("thing-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("thing-1.0.dist-info/RECORD", "")
    found = verify(wheel, {})
    assert {one.check: one.status for one in found.findings}["record"] == "not proven"
