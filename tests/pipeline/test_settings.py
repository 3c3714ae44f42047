"""What a plan says about the user's settings, and about programs that do not start without them."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dca.catalogue import machine
from dca.catalogue.machine import Python
from dca.foundation.errors import DcaError
from dca.pipeline import settings
from dca.sources import index
from tests.support.machines import program
from tests.toolchain.test_stand_ins import compiled

# Programs are compiled and started.
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def plain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings but those of a test."""
    for name in list(os.environ):
        if name not in ("PATH", "HOME", "TMPDIR"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("dca.foundation.user_config.read", tuple)


def ignored() -> dict[str, str]:
    return {one.name: one.changes for one in settings.ignored_now()}


def toolkit(folder: Path) -> Path:
    program(folder / "bin/nvcc", "echo")
    return folder


# --- CUDA_HOME -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["{good}", "{good}/"])
def test_a_cuda_home_that_names_a_toolkit_is_not_worth_a_word(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", value.format(good=toolkit(tmp_path / "cuda")))
    assert ignored() == {}


@pytest.mark.parametrize("value", [":{good}", "{good}:", "{gone}:{good}", "{good}:/usr", " {good}"])
def test_a_cuda_home_that_is_a_list_is_read_and_that_is_told(
    value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = toolkit(tmp_path / "cuda")
    monkeypatch.setenv("CUDA_HOME", value.format(good=good, gone=tmp_path / "gone"))
    ((name, changes),) = ignored().items()
    assert name == f"CUDA_HOME={os.environ['CUDA_HOME']}"
    assert f"{good} is taken" in changes


@pytest.mark.parametrize("value", ["/nonexistent", ":", "{good}/bin", "{good}/bin/nvcc", "12.4"])
def test_a_cuda_home_without_a_toolkit_is_told(value: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", value.format(good=toolkit(tmp_path / "cuda")))
    assert ["no folder with bin/nvcc" in changes for changes in ignored().values()] == [True]


# --- the index -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "names"),
    [
        ({"UV_DEFAULT_INDEX": "https://a.example/simple"}, []),
        ({"PIP_INDEX_URL": "https://a.example/simple"}, []),
        ({"UV_DEFAULT_INDEX": "https://a.example/simple", "PIP_INDEX_URL": "https://a.example/simple"}, []),
        ({"UV_DEFAULT_INDEX": "https://a.example/simple", "PIP_INDEX_URL": "https://b"}, ["PIP_INDEX_URL"]),
        ({"UV_EXTRA_INDEX_URL": "https://b", "UV_INDEX": "https://b"}, ["UV_EXTRA_INDEX_URL", "UV_INDEX"]),
    ],
)
def test_an_index_that_is_not_used_is_told(
    env: dict[str, str], names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert list(ignored()) == names
    if not names:
        assert index.endpoint() == "https://a.example/simple"


# --- LD_LIBRARY_PATH -----------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of programs as a module system installs them: with their library in LD_LIBRARY_PATH alone."""
    library = compiled(tmp_path / "lib/libneeded.so.6", 'extern "C" int needed() { return 0; }')
    source = 'extern "C" int needed(); int main() { return needed(); }'
    (tmp_path / "bin").mkdir()
    words: list[str | Path] = ["g++", "-x", "c++", "-o", tmp_path / "bin/proper", "-", "-x", "none", library]
    subprocess.run(words, input=source, text=True, check=True)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(library.parent))
    return tmp_path / "bin"


@pytest.mark.parametrize("driver", ["echo 12.9.0", "exec proper"], ids=["only cc1plus", "the driver too"])
def test_a_compiler_that_does_not_start_without_it_is_not_used_and_told(driver: str, module: Path) -> None:
    program(module / "g++", f'case $1 in -dumpfullversion) {driver};; *) exec "$(dirname "$0")/proper";; esac')
    host = settings.without_broken(machine.look())
    assert str(module / "g++") not in [compiler.path for compiler in host.compilers]
    ((name, changes),) = [(one.name, one.changes) for one in settings.ignored_now() if "g++" in one.changes]
    assert name == "LD_LIBRARY_PATH"
    assert f"g++ at {module / 'g++'} requires libneeded.so.6" in changes
    error = settings.explained(DcaError("DCA-308", "no compiler.", why="none.", remedy="install one."))
    assert error.why.startswith("none.\ng++ at ")
    assert (error.code, error.remedy) == ("DCA-308", "install one.")


def test_a_compiler_that_starts_without_it_is_used(module: Path) -> None:
    real = shutil.which("g++", path=os.defpath)
    program(module / "g++", f'exec {shlex.quote(str(real))} "$@"')
    host = machine.look()
    assert settings.without_broken(host) == host
    assert list(ignored()) == ["LD_LIBRARY_PATH"]
    error = DcaError("DCA-308", "no compiler.")
    assert settings.explained(error) is error


def test_a_python_that_does_not_start_without_it_is_refused(module: Path) -> None:
    path = program(module / "python3", f"exec {module / 'proper'}")
    with pytest.raises(DcaError) as refused:
        settings.check_python(Python(version="3.12.1", path=str(path), headers=True))
    assert refused.value.code == "DCA-306"
    assert "libneeded.so.6" in refused.value.why
    settings.check_python(Python(version="3.12.1", path=sys.executable, headers=True))
    settings.check_python(None)
