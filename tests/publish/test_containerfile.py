"""`dca index containerfile`: what it says, that a linter accepts it, and that its steps give what it promises."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dca import publish
from dca.catalogue import base_images
from dca.catalogue.base_images import UID
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.publish.containerfile import SHARE, containerfile
from dca.publish.folder import Folder
from dca.serve import command, plan
from dca.serve.command import Launch, Server
from dca.wheelfile import sbom
from tests.support import ROOT
from tests.support.containers import Builder, Stage, StepError, builder, instructions, needs_namespaces
from tests.support.made_wheels import Details, make, put
from tests.support.served import Served, served
from tests.support.serving import SEVEN, subject
from tests.support.web import Place

Dca = Callable[..., "subprocess.CompletedProcess[str]"]
VERSION = "2.0+dca1.cu124"
DIGEST = re.compile(r"@sha256:[0-9a-f]{64}")
# What `vllm --help` prints of the small wheel.
PROGRAM = """
import helper, importlib.metadata as m, os, pathlib
def main():
    pathlib.Path.home().joinpath("cache").mkdir()
    print(m.version("vllm"), m.version("helper"), os.getuid(), os.getgid(), pathlib.Path.cwd())
"""


def wheel(folder: Path, version: str = VERSION, *, tag: str = "py3-none-any") -> Path:
    """A wheel with a program, a dependency and a bill of materials."""
    info = f"vllm-{version}.dist-info"
    files = {
        f"{info}/entry_points.txt": b"[console_scripts]\nvllm = vllm:main\n",
        f"{info}/{sbom.FILE}": json.dumps({"bomFormat": "CycloneDX", "specVersion": "1.6"}).encode(),
    }
    return make(folder, version, content=PROGRAM, details=Details(requires=("helper>=1",), changed=files, tag=tag))


def lock_for(folder: Path) -> tuple[Path, Path]:
    """A wheel that is required, and the lock that pins it."""
    helper, lock = make(folder, "1.5", project="helper", cuda=None), folder / "run-lock.txt"
    lock.write_text(f"helper==1.5 --hash=sha256:{store.sha256_file(helper)}\n")
    return helper, lock


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An index with a wheel and its lock, one without a lock, and one that the lock pins."""
    folder = tmp_path_factory.mktemp("published")
    helper, lock = lock_for(folder / "dist")
    put(folder / "index", wheel(folder / "dist", "1.0+dca1.cu124"), helper)
    put(folder / "index", wheel(folder / "dist"), evidence=[lock], url="https://wheels.example/index/")
    return folder / "index"


@pytest.fixture
def index(published: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return shutil.copytree(published, tmp_path / "index")


def test_it_names_tags_and_hashes_and_no_digest(index: Path) -> None:
    made = containerfile(VERSION, Folder(index))
    (record,) = (one for one in publish.listing(Folder(index)).wheels if one.version == VERSION)
    bases = [rest for name, rest in instructions(made.text) if name == "FROM"]
    assert bases == [f"{made.build}@${{BUILD_DIGEST}} AS build", f"{made.serve}@${{SERVE_DIGEST}}"]
    for image, argument in ((made.build, "BUILD_DIGEST"), (made.serve, "SERVE_DIGEST")):
        assert re.search(rf"^#   docker buildx imagetools inspect .* {re.escape(image)}$", made.text, re.MULTILINE)
        assert f"\nARG {argument}\n" in made.text, "no default"
    assert set(re.findall(r"[0-9a-f]{64}", made.text)) == {
        record.sha256,
        *(proof.sha256 for proof in record.evidence if proof.kind in ("sbom", "run-lock")),
    }
    assert "ARG INDEX_URL=https://wheels.example/index/\n" in made.text
    assert (made.wheel, made.sha256) == (record.file, record.sha256)


def test_the_command_prints_it(index: Path, dca_index: Dca) -> None:
    done = dca_index("containerfile", VERSION, "--index", index)
    assert (done.returncode, done.stdout) == (0, containerfile(VERSION, Folder(index)).text + "\n")
    told = json.loads(dca_index("containerfile", VERSION, "--index", index, "--json").stdout)
    assert (told["schema"], told["text"] + "\n") == ("dca.containerfile/1", done.stdout)


def test_whoever_builds_names_an_index_of_no_known_address(tmp_path: Path) -> None:
    put(tmp_path / "index", wheel(tmp_path), evidence=[lock_for(tmp_path)[1]])
    text = containerfile(None, Folder(tmp_path / "index")).text
    assert "\nARG INDEX_URL\n" in text
    assert "--build-arg INDEX_URL=" in text


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        (None, "DCA-903", "several wheels"),
        ("3.0", "DCA-903", "has no wheel 3.0"),
        ("1.0+dca1.cu124", "DCA-909", "no lock"),
        ("helper==1.5", "DCA-909", "no lock"),
    ],
)
def test_a_wheel_without_a_lock_or_that_is_not_one_is_refused(
    index: Path, name: str | None, code: str, says: str
) -> None:
    with pytest.raises(DcaError) as error:
        containerfile(name, Folder(index))
    assert error.value.code == code
    assert says in str(error.value)


def test_a_yanked_wheel_is_refused_and_not_the_newest(index: Path) -> None:
    publish.yank([VERSION], "wrong answers", Folder(index))
    with pytest.raises(DcaError, match="DCA-909") as error:
        containerfile(VERSION, Folder(index))
    assert "wrong answers" in str(error.value)
    publish.yank(["helper==1.5"], "", Folder(index))
    with pytest.raises(DcaError, match=r"vllm-1\.0"):
        containerfile(None, Folder(index))


@pytest.mark.parametrize("kind", ["run-lock", "sbom"])
@pytest.mark.parametrize("damage", [b"--index-url https://evil.example/\n", None])
def test_damaged_evidence_is_not_built_into_an_image(index: Path, kind: str, damage: bytes | None) -> None:
    (path,) = (path for path in (index / "evidence").glob(f"*/{kind}-*") if path.is_file() and _of_newest(index, path))
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + damage)
    with pytest.raises(DcaError, match="DCA-908"):
        containerfile(VERSION, Folder(index))


def _of_newest(index: Path, path: Path) -> bool:
    (record,) = (one for one in publish.listing(Folder(index)).wheels if one.version == VERSION)
    return path.parent.name == record.sha256


@pytest.mark.parametrize(
    ("tags", "requires", "python"),
    [
        (["cp38-abi3-manylinux_2_24_x86_64"], ">=3.9,<3.14", "3.12"),
        (["cp313-abi3-manylinux_2_24_x86_64"], "", "3.13"),
        (["cp311-cp311-manylinux_2_36_x86_64"], "", "3.11"),
        (["cp311-cp311-linux_x86_64"], "", "3.11"),
        (["py3-none-any"], "<3.12", "3.11"),
        (["py3-none-any"], ">=3.12.1", "3.12"),
        (["cp38-abi3-manylinux_2_41_x86_64"], "", ""),
        (["cp38-abi3-musllinux_1_2_x86_64"], "", ""),
        (["cp38-abi3-win_amd64"], "", ""),
        (["cp39-cp39-manylinux_2_24_x86_64"], "", ""),
        (["py3-none-any"], "<3.9", ""),
        (["py3-none-any"], "three", ""),
    ],
)
def test_the_image_has_a_python_that_runs_the_wheel(tags: list[str], requires: str, python: str) -> None:
    assert base_images.load().python_for(tags, requires) == python


def test_a_wheel_that_no_base_image_runs_is_refused(tmp_path: Path) -> None:
    built = wheel(tmp_path, tag="py3-none-manylinux_2_99_x86_64")
    put(tmp_path / "index", built, evidence=[lock_for(tmp_path)[1]])
    with pytest.raises(DcaError, match="DCA-909") as error:
        containerfile(None, Folder(tmp_path / "index"))
    assert "manylinux_2_99_x86_64" in str(error.value)


@pytest.fixture(scope="module")
def of_serve() -> Launch:
    """A server, for the Dockerfile that `dca serve command` prints."""
    about, served_model = subject(SEVEN, "4xA100-80")
    return command.launch(plan.make(about, served_model), about.gpus, Server(), folder=about.file is not None)


def test_the_image_of_a_local_wheel_is_as_that_of_a_published_one(index: Path, of_serve: Launch) -> None:
    """Who builds names the digest of the base image, and an ordinary user serves, in both."""
    text = command.dockerfile(of_serve)
    stage = containerfile(VERSION, Folder(index)).text.rpartition("\nFROM ")[2].splitlines()
    for start in (
        "RUN apt-get",
        " && apt-get",
        "RUN useradd",
        " && install ",
        "ENV PATH",
        "USER",
        "WORKDIR",
        "HEALTHCH",
    ):
        (line,) = (line for line in text.splitlines() if line.startswith(start))
        assert line in stage, start
    assert [rest.partition("@")[2] for name, rest in instructions(text) if name == "FROM"] == ["${SERVE_DIGEST}"]
    assert "\nARG SERVE_DIGEST\n" in text, "no default"
    assert "docker buildx imagetools inspect" in text
    cache = next(line.rpartition(" ")[2] for line in stage if line.startswith(" && install "))
    for shown in (command.docker(of_serve), command.k8s(of_serve)):
        assert "/root" not in shown
        assert of_serve.folder or cache in shown


def test_no_digest_of_an_image_is_in_the_tree() -> None:
    """Who builds an image names what its tags stand for that day."""
    assert DIGEST.search(f"python:3.12-slim-bookworm@sha256:{'0' * 64}")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    files = [ROOT / name.decode() for name in listed.split(b"\0") if name]
    found = [path for path in files if path.is_file() and DIGEST.search(path.read_text(errors="replace"))]
    assert found == []


@pytest.mark.long
@pytest.mark.network
def test_hadolint_accepts_it(index: Path, hadolint: Path, of_serve: Launch, tmp_path: Path) -> None:
    file = tmp_path / "Containerfile"
    text = containerfile(VERSION, Folder(index)).text
    without = text.replace("# hadolint ignore=DL3008\n", "")
    published = of_serve.model_copy(update={"published": "0.33.0"})
    texts = ((text, True), (without, False), *((command.dockerfile(one), True) for one in (of_serve, published)))
    for content, fine in texts:
        file.write_text(content)
        argv = [str(hadolint / "hadolint"), "--no-color", str(file)]
        done = subprocess.run(argv, text=True, capture_output=True, check=False)
        assert (done.returncode == 0) is fine, done.stdout + done.stderr


@dataclass(frozen=True)
class Scene:
    """A served index with a Containerfile, and a builder."""

    index: Path
    web: Served
    text: str
    images: Builder

    @property
    def arguments(self) -> dict[str, str]:
        return {
            "BUILD_DIGEST": f"sha256:{'b' * 64}",
            "SERVE_DIGEST": f"sha256:{'5' * 64}",
            "INDEX_URL": self.web.url,
            # The packages of a lock come from the usual index: ours takes its place.
            "PIP_INDEX_URL": f"{self.web.url}simple/",
        }


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("containers")
    helper, lock = lock_for(folder / "dist")
    put(folder / "index", wheel(folder / "dist"), evidence=[lock])
    put(folder / "index", helper)
    text = containerfile(VERSION, Folder(folder / "index")).text
    with builder(folder / "layers") as images, served(folder / "index") as web:
        yield Scene(folder / "index", web, text, images)


@pytest.fixture(scope="module")
def image(scene: Scene) -> Stage:
    return scene.images.build(scene.text, scene.arguments)


ON_THIS_MACHINE = [needs_namespaces, pytest.mark.whole, pytest.mark.network]


class TestWithThisMachineInPlaceOfTheBaseImages:
    """Every step runs in a namespace over an overlay of this machine's files: no base image can be had here."""

    pytestmark = ON_THIS_MACHINE

    def test_the_image_runs_the_wheel_with_its_lock_as_an_ordinary_user(self, scene: Scene, image: Stage) -> None:
        assert sum(map(len, (stage.ran for stage in scene.images.stages.values()))) == 5
        assert image.base.endswith(f"@{scene.arguments['SERVE_DIGEST']}")
        assert (image.user, image.command) == (f"{UID}:{UID}", ("vllm", "--help"))
        done = scene.images.run(image, *image.command)
        assert (done.stdout, done.returncode) == (f"{VERSION} 1.5 {UID} {UID} /home/serve\n", 0), done.stderr
        assert scene.images.run(image, "touch", "/opt/vllm/bin/vllm").returncode != 0
        assert scene.images.run(image, "touch", "/home/serve/.cache/model").returncode == 0
        assert scene.images.run(image, "python", "-m", "pip", "--version").returncode != 0, "the image has no pip"
        assert not Path("/opt/vllm").exists(), "nothing of it is on the machine"

    def test_lock_and_bill_of_materials_are_attached(self, scene: Scene, image: Stage) -> None:
        for kind in ("sbom", "lock"):
            done = scene.images.run(image, "sha256sum", image.labels[f"dca.{kind}"])
            assert done.stdout.split() == [image.labels[f"dca.{kind}.sha256"], image.labels[f"dca.{kind}"]]
        assert image.labels["dca.sbom"] == f"{SHARE}/sbom.cdx.json"
        (record,) = (one for one in publish.listing(Folder(scene.index)).wheels if one.version == VERSION)
        assert (image.labels["dca.wheel"], image.labels["dca.wheel.sha256"]) == (record.file, record.sha256)

    def test_the_health_check_asks_the_server(self, scene: Scene, image: Stage) -> None:
        """The server is a stand-in that answers as vLLM's /health does."""
        place = Place()
        port = {"HEALTH_PORT": place.url.rpartition(":")[2]}
        try:
            # A proxy of the machine is not asked for what is in the container.
            env = port | {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
            assert scene.images.run(image, *image.health, env=env).returncode == 1, "404"
            place.pages["/health"] = ("text/plain", b"")
            assert scene.images.run(image, *image.health, env=env).returncode == 0
            place.odd["/health"] = lambda handler: handler.send_error(503)
            assert scene.images.run(image, *image.health, env=env).returncode == 1, "503"
        finally:
            place.server.shutdown()
            place.server.server_close()
        assert scene.images.run(image, *image.health, env=port).returncode == 1, "no server"

    @pytest.mark.parametrize("what", ["run-lock", "sbom", "wheel", "helper"])
    def test_nothing_else_is_built_in(self, scene: Scene, what: str) -> None:
        """What the index serves is not what it was when the Containerfile was made."""
        if what in ("run-lock", "sbom"):
            (path,) = (scene.index / "evidence").glob(f"*/{what}-*")
        else:
            (path,) = scene.index.glob(f"files/{'vllm' if what == 'wheel' else what}-*.whl")
        whole = path.read_bytes()
        path.write_bytes(whole + b"#")
        try:
            with pytest.raises(StepError, match=r"FAILED|DO NOT MATCH THE HASHES"):
                scene.images.build(scene.text, scene.arguments, runs=3)
        finally:
            path.write_bytes(whole)

    def test_a_build_without_an_address_says_what_it_needs(self, scene: Scene) -> None:
        arguments = {name: value for name, value in scene.arguments.items() if name != "INDEX_URL"}
        with pytest.raises(StepError, match="INDEX_URL"):
            scene.images.build(scene.text, arguments, runs=1)
