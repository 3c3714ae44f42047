"""nginx serves an index as docs/publish.md says; pip, uv, poetry and pdm install from it, and from a bucket."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from dca import publish
from dca.catalogue import machine
from dca.catalogue.variants import of_build
from dca.foundation import store
from dca.foundation.events import Silent
from dca.publish.folder import Folder
from dca.publish.verified import Served, verify_index
from dca.publish.web import CLIENTS, JSON
from dca.trust import signing
from dca.trust.verify import Trusted
from tests.publish.test_verified import KEY
from tests.support import ROOT
from tests.support.made_wheels import Details, make, put
from tests.support.served import clean, environment
from tests.support.servers import KEYS, Dca, free_port, running

pytestmark = [pytest.mark.whole, pytest.mark.network]
VERSIONS = ("1.0+dca1.cu124", "2.0+dca1.cu124")
NEWEST = VERSIONS[-1]
Words = list[str | Path]
SAYS = "import importlib.metadata as m, vllm; print(m.version('vllm'), m.version('helper'), vllm.x)"


@pytest.fixture(scope="session")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The machine's nginx, else that of its distribution, unpacked and not installed."""
    if own := shutil.which("nginx"):
        return Path(own)
    folder = tmp_path_factory.mktemp("nginx")
    done = subprocess.run(["apt-get", "download", "nginx"], cwd=folder, text=True, capture_output=True, check=False)
    assert done.returncode == 0, f"apt-get update, or apt-get install nginx: {done.stderr}"
    (package,) = folder.glob("nginx_*.deb")
    subprocess.run(["dpkg", "-x", str(package), str(folder / "root")], check=True)
    return folder / "root/usr/sbin/nginx"


@dataclass(frozen=True)
class Wheels:
    """What is published: two wheels, one that they require, and their lock."""

    files: tuple[Path, ...]
    lock: Path

    @property
    def newest(self) -> str:
        """The sha256 of the newest."""
        return store.sha256_file(self.files[1])


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    folder = tmp_path_factory.mktemp("wheels")
    details = Details(requires=("helper>=1",))
    ours = [make(folder, version, content=f"x = '{version}'\n", details=details) for version in VERSIONS]
    helper = make(folder, "1.5", project="helper", cuda=None)
    lock = folder / "run-lock.txt"
    lock.write_text(f"helper==1.5 --hash=sha256:{store.sha256_file(helper)}\n")
    return Wheels((*ours, helper), lock)


@pytest.fixture(scope="module")
def index(wheels: Wheels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    index = tmp_path_factory.mktemp("published") / "index"
    *ours, helper = wheels.files
    for wheel in ours:
        put(index, wheel, evidence=[wheels.lock], signers=[signing.KeySigner(KEY)])
    put(index, helper, signers=[signing.KeySigner(KEY)])
    variant = make(helper.parent, "3.0+dca1", details=Details(variant=of_build("12.4", ["9.0"], [], "12.0")))
    put(index, variant, signers=[signing.KeySigner(KEY)], variants=True)
    return index


@pytest.fixture(scope="module")
def web(nginx: Path, index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """nginx with the recipe of the documentation, unchanged but for folder and port."""
    folder, port = tmp_path_factory.mktemp("web"), free_port()
    (recipe,) = re.findall(r"```nginx\n(.*?)```", (ROOT / "docs/publish.md").read_text(), re.DOTALL)
    assert recipe.count("root /srv/index;") == 1
    recipe = recipe.replace("root /srv/index;", f'listen 127.0.0.1:{port};\n  root "{index}";')
    own = "".join(f"{kind}_temp_path {folder};\n" for kind in ("client_body", "fastcgi", "proxy", "scgi", "uwsgi"))
    # One process, which may read what this user may.
    text = "daemon off;\nmaster_process off;\nerror_log stderr;\npid nginx.pid;\nevents {}\n"
    (folder / "nginx.conf").write_text(f"{text}http {{\naccess_log off;\n{own}{recipe}}}\n")
    argv: list[str | Path] = [nginx, "-p", folder, "-c", folder / "nginx.conf", "-e", "stderr"]
    with running(argv, f"http://127.0.0.1:{port}/", folder) as url:
        yield url


def asked(url: str, **headers: str) -> requests.Response:
    return requests.get(url, headers=headers, timeout=30)


@pytest.mark.parametrize("path", ["simple/", "simple/vllm/", "cu124/", "cu124/vllm/", "variants/vllm/"])
def test_a_page_has_the_type_that_is_asked_for_and_may_vary(web: str, index: Path, path: str) -> None:
    for client, headers in CLIENTS.items():
        answer = asked(web + path, **headers)
        kind, name = ("text/html", "index.html") if client == "a browser" else (JSON, "index.json")
        assert answer.headers["Content-Type"] == kind, client
        assert answer.content == (index / path / name).read_bytes(), client
        assert answer.headers["Vary"] == "Accept", client
        assert answer.headers["Cache-Control"] == "no-cache", client
        again = asked(web + path, **headers, **{"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.headers["Vary"]) == (304, "Accept"), client
    assert asked(web + path, Accept="text/html").headers["Content-Type"] == "text/html"
    assert asked(web + path + "index.json").headers["Content-Type"] == JSON
    assert asked(web + path + "index.html").headers["Vary"] == "Accept"


def test_what_never_changes_is_cached_and_the_rest_is_asked_for_again(web: str, index: Path) -> None:
    paths = {path for path, _ in store.walk(index) if not path.startswith(".dca/")}
    for path in sorted(paths):
        answer = asked(web + path.replace("+", "%2B"))
        assert answer.content == (index / path).read_bytes(), path
        immutable = path.startswith(("files/", "evidence/"))
        assert answer.headers["Cache-Control"] == ("public, max-age=31536000, immutable" if immutable else "no-cache")
        if path.endswith((".whl", ".metadata")):
            assert answer.headers["Content-Type"] == "application/octet-stream"
        if path.endswith("-variants.json"):
            assert answer.headers["Content-Type"] == "application/json"
    assert asked(web).headers["Content-Type"] == "text/html"
    assert asked(f"{web}simple/none/").status_code == 404
    before = {kind: asked(f"{web}simple/vllm/", Accept=kind) for kind in (JSON, "text/html")}
    publish.yank([VERSIONS[0]], "old", Folder(index), [signing.KeySigner(KEY)])
    for kind, answer in before.items():
        after = asked(f"{web}simple/vllm/", **{"Accept": kind, "If-None-Match": answer.headers["ETag"]})
        assert (after.status_code, after.content == answer.content) == (200, False), "a yank is seen at once"
    publish.unyank([VERSIONS[0]], Folder(index), [signing.KeySigner(KEY)])


def test_it_is_verified_as_it_is_served(web: str) -> None:
    found = verify_index(Served(web), Trusted((KEY.public_key(),)), Silent())
    assert (found.problems, [one.wrong for one in found.wheels]) == ((), [(), (), (), ()])


@dataclass(frozen=True)
class Project:
    """A project of a user.

    Args:
        folder: of it.
        url: of the index.
        env: of its commands; nothing in it leads to another index.
    """

    folder: Path
    url: str
    env: dict[str, str]

    def run(self, *argv: str | Path) -> subprocess.CompletedProcess[str]:
        words = list(map(str, argv))
        return subprocess.run(words, cwd=self.folder, env=self.env, text=True, capture_output=True, check=False)

    def right(self, *argv: str | Path) -> str:
        done = self.run(*argv)
        assert done.returncode == 0, f"{argv}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done.stdout


@pytest.fixture(params=["nginx", "bucket"])
def project(request: pytest.FixtureRequest, wheels: Wheels, tmp_path: Path) -> Project:
    if request.param == "nginx":
        url = request.getfixturevalue("web")
    else:
        url = in_a_bucket(request.getfixturevalue("s3"), request.getfixturevalue("run"), wheels)
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(f"""\
[project]
name = "app"
version = "1"
requires-python = ">=3.10,<4"
dependencies = ["vllm=={NEWEST}"]
[tool.uv]
package = false
[[tool.uv.index]]
url = "{url}simple/"
default = true
[tool.poetry]
package-mode = false
[[tool.poetry.source]]
name = "ours"
url = "{url}simple/"
priority = "primary"
[tool.pdm]
distribution = false
[[tool.pdm.source]]
name = "pypi"
url = "{url}simple/"
verify_ssl = false
""")
    # The packages of a lock come from the usual index: ours takes its place.
    env = {name: value for name, value in clean().items() if not name.startswith(("POETRY_", "PDM_", "VIRTUAL_ENV"))}
    del env["UV_NO_CONFIG"]
    env |= {
        "HOME": str(tmp_path),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "PATH": f"{machine.find_uv().parent.absolute()}:{env['PATH']}",
        "PIP_INDEX_URL": f"{url}simple/",
        "PIP_NO_CACHE_DIR": "1",
        "UV_DEFAULT_INDEX": f"{url}simple/",
        "UV_NO_CACHE": "1",
        "UV_PYTHON_DOWNLOADS": "never",
        "POETRY_CACHE_DIR": str(tmp_path / "poetry"),
        "POETRY_VIRTUALENVS_IN_PROJECT": "true",
        "PDM_CACHE_DIR": str(tmp_path / "pdm"),
        "PDM_CHECK_UPDATE": "0",
    }
    return Project(folder, url, env)


def in_a_bucket(s3: str, run: Dca, wheels: Wheels) -> str:
    """Publish to a bucket; its address."""
    where = ["--s3", "s3://wheels/a", "--s3-endpoint", s3]
    ours = wheels.files[:-1]
    for wheel in wheels.files:
        more = ["--evidence", wheels.lock] if wheel in ours else []
        done = run("publish", wheel, *more, *where, "--url", f"{s3}wheels/a/", **KEYS)
        assert done.returncode == 0, done.stderr
    return f"{s3}wheels/a/"


def says(project: Project) -> str:
    return project.right(project.folder / ".venv/bin/python", "-c", SAYS).strip()


@pytest.mark.parametrize("program", ["pip", "uv"])
def test_both_lines_of_the_page_install(project: Project, program: str) -> None:
    page = html.unescape(asked(f"{project.url}index.html").text)
    of_newest = page[page.index(f"<code>vllm=={NEWEST}</code>") :].partition("</details>")[0]
    lines = [line.replace(" URL/", f" {project.url}") for line in re.findall(r"<pre>(.*?)</pre>", of_newest)]
    ours = [line for line in lines if line.startswith("uv ") == (program == "uv")]
    assert len(ours) == 2
    for line in ours:
        shutil.rmtree(project.folder / ".venv", ignore_errors=True)
        environment(project.folder / ".venv")
        env = project.env | {"VIRTUAL_ENV": str(project.folder / ".venv")}
        env["PATH"] = f"{project.folder / '.venv/bin'}:{env['PATH']}"
        replaced = Project(project.folder, project.url, env)
        replaced.right("sh", "-c", line)
        assert says(replaced) == f"{NEWEST} 1.5 {NEWEST}", line


# What writes a lock, the lock, and what installs from it.
LOCKERS: dict[str, tuple[Words, str, Words]] = {
    "pip": (
        ["uv", "pip", "compile", "-q", "--generate-hashes", "pyproject.toml", "-o", "lock.txt"],
        "lock.txt",
        [".venv/bin/python", "-m", "pip", "install", "--require-hashes", "-r", "lock.txt"],
    ),
    "uv": (["uv", "lock"], "uv.lock", ["uv", "sync", "--locked"]),
    "poetry": (["poetry", "lock", "-n"], "poetry.lock", ["poetry", "sync", "-n"]),
    "pdm": (["pdm", "lock"], "pdm.lock", ["pdm", "sync"]),
}


@pytest.mark.parametrize("program", LOCKERS)
def test_an_installer_installs_with_its_own_lock(
    project: Project, program: str, wheels: Wheels, installers: Path
) -> None:
    lock, name, install = LOCKERS[program]
    own: dict[str | Path, str | Path] = {name: installers / name for name in ("poetry", "pdm")}
    lock, install = ([own.get(words[0], words[0]), *words[1:]] for words in (lock, install))
    if program in ("pip", "pdm"):
        environment(project.folder / ".venv")
    project.right(*lock)
    text = (project.folder / name).read_text()
    assert f"sha256:{wheels.newest}" in text
    project.right(*install)
    assert says(project) == f"{NEWEST} 1.5 {NEWEST}"
    # And refuses another wheel than the one that was locked.
    shutil.rmtree(project.folder / ".venv")
    for cache in ("poetry", "pdm"):
        shutil.rmtree(project.folder.parent / cache, ignore_errors=True)
    if program in ("pip", "pdm"):
        environment(project.folder / ".venv")
    (project.folder / name).write_text(text.replace(wheels.newest, "0" * 64))
    refused = project.run(*install)
    assert refused.returncode != 0, refused.stdout
    assert not list(project.folder.glob(".venv/lib/python*/site-packages/vllm"))
