"""scripts/bootstrap.py on a small project of its own, whose locked packages are wheels that the test writes."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from dca.catalogue import machine

ROOT = Path(__file__).resolve().parent.parent
# The editable install's backend travels with the project, so that nothing but the wheels is installed.
BACKEND = """
import os, zipfile

def _wheel(folder, content):
    name = "project-1.0-py3-none-any.whl"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as file:
        file.writestr("project.pth", content)
        file.writestr("project-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: project\\nVersion: 1.0\\n")
        file.writestr(
            "project-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        )
        file.writestr("project-1.0.dist-info/RECORD", "")
    return name

def build_editable(folder, config_settings=None, metadata_directory=None):
    return _wheel(folder, os.getcwd())

build_wheel = build_editable
"""


def write_wheel(folder: Path, name: str, version: str, *metadata: str) -> str:
    """A wheel with one module; returns its line of a lock."""
    info = f"{name}-{version}.dist-info"
    path = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr(f"{name}.py", f"version = {version!r}\n")
        file.writestr(
            f"{info}/METADATA",
            "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *metadata, ""]),
        )
        file.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr(f"{info}/RECORD", "")
    return f"{name}=={version} --hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A checkout whose dev lock needs an extra of a package of which a newer release is out."""
    root = tmp_path / "checkout"
    wheels, locks, scripts = tmp_path / "wheels", root / "build/locks", root / "scripts"
    for folder in (wheels, locks, scripts):
        folder.mkdir(parents=True)
    base = write_wheel(wheels, "base", "1.0", "Provides-Extra: more", "Requires-Dist: extra ; extra == 'more'")
    write_wheel(wheels, "base", "1.1", "Provides-Extra: more", "Requires-Dist: extra ; extra == 'more'")
    user = write_wheel(wheels, "user", "1.0", "Requires-Dist: base[more]>=1")
    (locks / "tool.txt").write_text(base)
    (locks / "dev.txt").write_text(base + user + write_wheel(wheels, "extra", "1.0"))
    shutil.copy(ROOT / "scripts/bootstrap.py", scripts)
    (root / "backend.py").write_text(BACKEND)
    (root / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "project"\nversion = "1.0"\n'
    )
    return root


def start(root: Path, *arguments: str, with_uv: bool, **variables: str) -> subprocess.Popen[bytes]:
    """The script, in an environment in which the project's own wheels are all there is."""
    wheels = str(root.parent / "wheels")
    folders = [str(Path(machine.find_uv()).parent)] if with_uv else []
    (settings := root.parent / "uv.toml").write_text("no-index = true\n")
    env = {
        "PATH": os.pathsep.join([*folders, "/usr/bin", "/bin"]),
        "HOME": str(root.parent),
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": wheels,
        "UV_CONFIG_FILE": str(settings),
        "UV_FIND_LINKS": wheels,
        "UV_CACHE_DIR": str(root.parent / "uv-cache"),
    }
    return subprocess.Popen([sys.executable, "-I", root / "scripts/bootstrap.py", *arguments], env={**env, **variables})


def complete(root: Path, *, with_uv: bool, **variables: str) -> None:
    """Run the script to its end; the environment then has what the locks name."""
    assert start(root, "--dev", with_uv=with_uv, **variables).wait() == 0
    probe = "import base, extra, user; print(base.version, extra.version, user.version)"
    assert subprocess.check_output([root / ".venv/bin/python", "-I", "-c", probe]) == b"1.0 1.0 1.0\n"


@pytest.mark.slow
@pytest.mark.parametrize("with_uv", [True, pytest.param(False, marks=pytest.mark.long)])
def test_a_lock_is_installed_as_it_stands_though_a_newer_release_is_out(project: Path, with_uv: bool) -> None:
    complete(project, with_uv=with_uv)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("pip", ["pip==22.0.2", "pip==23.0.1", "pip"])
def test_every_pip_since_22_installs_the_lock(project: Path, pip: str) -> None:
    subprocess.run([sys.executable, "-m", "venv", project / ".venv"], check=True)
    subprocess.run([project / ".venv/bin/python", "-m", "pip", "install", "-q", "--upgrade", pip], check=True)
    complete(project, with_uv=False)


@pytest.mark.slow
@pytest.mark.parametrize("with_uv", [True, pytest.param(False, marks=pytest.mark.whole)])
def test_two_runs_at_once_both_end_well(project: Path, with_uv: bool) -> None:
    both = [start(project, *more, with_uv=with_uv) for more in ([], ["--dev"])]
    assert [run.wait() for run in both] == [0, 0]
    complete(project, with_uv=with_uv)


@pytest.mark.whole
@pytest.mark.slow
def test_an_environment_that_uv_made_is_completed_by_pip(project: Path) -> None:
    assert start(project, with_uv=True).wait() == 0
    complete(project, with_uv=False)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.long
def test_what_the_tests_need_is_kept_when_the_tool_alone_is_asked_for_without_uv(project: Path) -> None:
    complete(project, with_uv=True)
    assert start(project, with_uv=False).wait() == 0
    assert list(project.glob(".venv/lib/python*/site-packages/extra.py"))


@pytest.mark.whole
@pytest.mark.slow
def test_settings_of_the_caller_lead_no_package_elsewhere(project: Path, tmp_path: Path) -> None:
    (tmp_path / "shadow").mkdir()
    for name in ("pip", "zipfile", "base"):
        (tmp_path / "shadow" / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    redirected = {"PYTHONPATH": str(tmp_path / "shadow"), "PIP_TARGET": str(tmp_path / "elsewhere"), "PIP_USER": "1"}
    complete(project, with_uv=False, **redirected)


@pytest.mark.slow
@pytest.mark.parametrize("pythonpath", ["{shadow}", ":{elsewhere}", "{shadow}:{scripts}"])
def test_packages_on_pythonpath_change_nothing(tmp_path: Path, pythonpath: str) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    for name in ("click", "pydantic", "rich", "packaging"):
        (shadow / f"{name}.py").write_text("raise SystemExit('shadowed')\n")
    folders = pythonpath.format(shadow=shadow, scripts=ROOT / "scripts", elsewhere=tmp_path)
    env = {"PATH": "/usr/bin:/bin", "HOME": str(shadow), "PYTHONPATH": folders}
    commands: list[list[str | Path]] = [[Path(sys.executable).with_name("dca"), "doctor", "--help"]]
    if "scripts" in pythonpath:
        commands.append([sys.executable, "-m", "dca", "doctor", "--help"])
    for argv in commands:
        done = subprocess.run(argv, env=env, cwd=shadow, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), argv
