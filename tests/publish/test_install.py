"""pip, uv and pypi-simple read the published folder over plain HTTP."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from pypi_simple import PyPISimple

from tests.support.made_wheels import Details, make, put
from tests.support.served import Served, pip, says, served, uv

pytestmark = pytest.mark.slow
VERSIONS = {"1.0+dca1.cu121": "12.1", "1.0+dca1.cu124": "12.4", "2.0+dca1.cu124": "12.4", "2.0+dca2.cu130": "13.0"}
VERSION = "import vllm, importlib.metadata as m; print(m.version('vllm'), vllm.x)"


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four wheels for three CUDA versions, and a wheel that they require."""
    folder = tmp_path_factory.mktemp("published")
    wheels = [
        make(
            folder / "dist", version, cuda=cuda, content=f"x = '{version}'\n", details=Details(requires=("helper>=1",))
        )
        for version, cuda in VERSIONS.items()
    ]
    helper = make(folder / "dist", "1.5", project="helper", cuda=None)
    put(folder / "index", *wheels, helper)
    return folder / "index"


@pytest.fixture
def web(index: Path) -> Iterator[Served]:
    with served(index) as web:
        yield web


@pytest.fixture(params=["pip", "uv"])
def install(request: pytest.FixtureRequest, python: Path, tmp_path: Path) -> object:
    """Install with pip or uv into an empty folder; what was installed there, by its distribution's name."""
    target = tmp_path / "target"

    def run(*words: str, stdin: str = "") -> list[str]:
        if request.param == "pip":
            stdin_file = ["-r", "/dev/stdin"] if stdin else []
            done = pip(python, "--target", str(target), *words, *stdin_file, stdin=stdin)
        else:
            stdin_file = ["-r", "-"] if stdin else []
            done = uv(
                "pip", "install", "--python", str(python), "--target", str(target), *words, *stdin_file, stdin=stdin
            )
        assert done.returncode == 0, done.stderr
        found = [path.name.removesuffix(".dist-info") for path in target.glob("*.dist-info")]
        shutil.rmtree(target)
        return sorted(found)

    return run


@pytest.mark.long
def test_installs_by_version(web: Served, install) -> None:  # type: ignore[no-untyped-def]
    found = install("--index-url", f"{web.url}simple/", "vllm==1.0+dca1.cu121")
    assert found == ["helper-1.5", "vllm-1.0+dca1.cu121"]
    # pip 23.0 asks for each twice.
    assert set(web.bodies()) == {"helper-1.5-py3-none-any.whl", "vllm-1.0+dca1.cu121-py3-none-any.whl"}
    assert web.errors() == []


@pytest.mark.parametrize(
    ("view", "newest"),
    [
        ("cu121", "1.0+dca1.cu121"),
        ("cu124", "2.0+dca1.cu124"),
        ("cu130", "2.0+dca2.cu130"),
        ("simple", "2.0+dca2.cu130"),
    ],
)
def test_a_view_holds_one_cuda_version(web: Served, install, view: str, newest: str) -> None:  # type: ignore[no-untyped-def]
    # Written without a slash at its end as well as with one.
    assert install("--no-deps", "--index-url", f"{web.url}{view}", "vllm") == [f"vllm-{newest}"]
    assert {path.split("/")[1] for _, path in web.asked} == {view, "files"}


def test_installs_with_hashes(web: Served, install, index: Path) -> None:  # type: ignore[no-untyped-def]
    """The install command of the page, unchanged."""
    page = (index / "index.html").read_text()
    wanted = re.search(r"echo (?:&#39;)(vllm==2.0\+dca1.cu124 --hash=sha256:[0-9a-f]{64})(?:&#39;)", page)
    assert wanted
    options = ["--no-deps", "--require-hashes", "--index-url", f"{web.url}cu124/"]
    assert f"{' '.join(options[:2])} --index-url URL/cu124/ -r" in page
    assert install(*options, stdin=wanted[1]) == ["vllm-2.0+dca1.cu124"]


def test_a_wrong_hash_is_refused(web: Served, python: Path, tmp_path: Path) -> None:
    line = f"vllm==2.0+dca1.cu124 --hash=sha256:{'0' * 64}"
    words = ["--no-deps", "--require-hashes", "--index-url", f"{web.url}simple/"]
    assert pip(python, "--target", str(tmp_path / "a"), *words, "-r", "/dev/stdin", stdin=line).returncode != 0
    done = uv("pip", "install", "--python", str(python), "--target", str(tmp_path / "b"), *words, "-r", "-", stdin=line)
    assert done.returncode != 0
    assert not list(tmp_path.glob("*/vllm"))


def test_what_was_installed_runs(web: Served, python: Path, tmp_path: Path) -> None:
    done = pip(python, "--index-url", f"{web.url}cu130/", "--no-deps", "--target", str(tmp_path), "vllm")
    assert done.returncode == 0, done.stderr
    assert says(python, VERSION, tmp_path) == "2.0+dca2.cu130 2.0+dca2.cu130\n"


def test_resolving_takes_metadata_only(web: Served, python: Path) -> None:
    """By the server's log, no wheel is sent."""
    done = uv(
        "pip",
        "compile",
        "--python",
        str(python),
        "--index-url",
        f"{web.url}simple/",
        "--generate-hashes",
        "-",
        stdin="vllm>=1",
    )
    assert done.returncode == 0, done.stderr
    assert "vllm==2.0+dca2.cu130" in done.stdout
    assert "helper==1.5" in done.stdout
    assert "--hash=sha256:" in done.stdout
    assert web.bodies() == []
    assert any(path.endswith(".whl.metadata") for _, path in web.asked)
    assert web.errors() == []


def test_pip_resolves_with_metadata_only(web: Served, python: Path) -> None:
    """The older wheel requires a helper that is missing; pip finds that out without downloading the wheel."""
    done = pip(python, "--dry-run", "--ignore-installed", "--index-url", f"{web.url}simple/", "vllm<2", "helper<1")
    assert done.returncode != 0
    assert web.bodies() == []
    assert any(path.endswith(".whl.metadata") for _, path in web.asked)


@pytest.mark.parametrize(("as_json", "version"), [(False, "1.0"), (True, "1.1")], ids=["HTML", "JSON"])
def test_pypi_simple_reads_it(index: Path, python: Path, as_json: bool, version: str) -> None:
    with served(index, as_json=as_json) as web:
        with PyPISimple(f"{web.url}simple/") as client:
            assert client.get_index_page().projects == ["helper", "vllm"]
            page = client.get_project_page("vllm")
            assert page.repository_version == version
            assert sorted(package.version or "" for package in page.packages) == sorted(VERSIONS)
            for package in page.packages:
                assert package.digests["sha256"]
                assert package.requires_python == ">=3.8"
                assert package.metadata_digests is not None
                assert package.metadata_digests["sha256"]
                assert not package.is_yanked
                assert client.get_package_metadata(package).startswith("Metadata-Version: 2.1\nName: vllm\n")
                if as_json:
                    assert package.size == (index / "files" / package.filename).stat().st_size
                    assert package.upload_time is not None
        with PyPISimple(f"{web.url}cu121/") as client:
            assert [package.version for package in client.get_project_page("vllm").packages] == ["1.0+dca1.cu121"]
        words = ["--no-deps", "--index-url", f"{web.url}cu124/", "--dry-run", "--ignore-installed", "vllm"]
        assert "vllm-2.0+dca1.cu124" in pip(python, *words).stdout
        done = uv("pip", "compile", "--python", str(python), "--index-url", f"{web.url}simple/", "-", stdin="vllm")
        assert "vllm==2.0+dca2.cu130" in done.stdout
        assert ("/cu124/vllm/index.json" in {path for _, path in web.asked}) == as_json


@pytest.mark.long
def test_a_yanked_wheel_is_installed_only_when_asked_for(tmp_path: Path, python: Path) -> None:
    from dca import publish
    from dca.publish.folder import Folder

    put(tmp_path / "index", make(tmp_path, "1.0"), make(tmp_path, "2.0"))
    publish.yank(["2.0"], 'wrong <past> 4K & "more"', Folder(tmp_path / "index"))
    for as_json in (False, True):
        with served(tmp_path / "index", as_json=as_json) as web:
            options = ["--no-deps", "--dry-run", "--ignore-installed", "--index-url", f"{web.url}simple/"]
            assert "vllm-1.0" in pip(python, *options, "vllm").stdout
            asked = pip(python, *options, "vllm==2.0")
            assert "vllm-2.0" in asked.stdout
            assert 'wrong <past> 4K & "more"' in asked.stderr + asked.stdout
            told = uv("pip", "compile", "--python", str(python), "--index-url", f"{web.url}simple/", "-", stdin="vllm")
            assert "vllm==1.0" in told.stdout
            with PyPISimple(f"{web.url}simple/") as client:
                yanked = {one.version: one.yanked_reason for one in client.get_project_page("vllm").packages}
            assert yanked == {"1.0": None, "2.0": 'wrong <past> 4K & "more"'}


def test_the_folder_works_below_any_path(index: Path, python: Path, tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    shutil.copytree(index, tmp_path / "a b/c")
    with served(tmp_path) as web:
        done = pip(
            python, "--no-deps", "--dry-run", "--ignore-installed", "--index-url", f"{web.url}a%20b/c/cu121/", "vllm"
        )
        assert "vllm-1.0+dca1.cu121" in done.stdout, done.stderr
        assert web.errors() == []
