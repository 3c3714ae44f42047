"""The user's mirrors: which places are asked, in which order, and that the pin decides whichever answers."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dca.catalogue import mirrors
from dca.catalogue.mirrors import Config, places
from dca.catalogue.recipes import SdistSource
from dca.catalogue.toolkits import Component, Redist
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.sources import git, index
from dca.toolchain import redist
from tests.support.repositories import GitHandler, Repository, served
from tests.support.web import Place, sha

# Starts servers and programs.
pytestmark = pytest.mark.slow

BODY = b"whole " * 2000


@pytest.fixture
def other() -> Iterator[Place]:
    place = Place()
    yield place
    place.server.shutdown()
    place.server.server_close()


def configure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Path:
    path = tmp_path / "config.toml"
    path.write_text(text)
    monkeypatch.setenv("DCA_CONFIG", str(path))
    return path


def test_without_a_file_each_place_is_asked_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DCA_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert mirrors.config_file() == tmp_path / "dca/config.toml"
    assert places("https://github.com/a/b.git").asked == ("https://github.com/a/b.git",)
    (tmp_path / "dca").mkdir()
    (tmp_path / "dca/config.toml").write_text('[mirrors]\n"https://github.com/" = ["https://git.corp/hub/"]\n')
    assert places("https://github.com/a/b.git").asked == ("https://git.corp/hub/a/b.git", "https://github.com/a/b.git")


def test_the_longest_beginning_decides_and_the_place_itself_comes_last_unless_it_is_named() -> None:
    config = Config(
        mirrors={
            "https://github.com/": ("https://one/", "https://two/x/"),
            "https://github.com/own/": ("https://github.com/own/", "https://three/"),
        }
    )
    assert places("https://github.com/a", settings=config).asked == (
        "https://one/a",
        "https://two/x/a",
        "https://github.com/a",
    )
    assert places("https://github.com/own/a", settings=config).asked == ("https://github.com/own/a", "https://three/a")
    assert places("https://github.company/a", settings=config).asked == ("https://github.company/a",)


@pytest.mark.parametrize(
    "mirror",
    [
        "http://mirror.example/",
        "https://user:geheim@mirror.example/",
        "https://mirror.example",
        "ext::sh -c geheim/",
        "file:///srv/",
        "https://mirror.example/?token=geheim/",
        "https://mirror.example/#x/",
        "-oProxyCommand=geheim/",
        "https://mirror.example/\\n/",
        "",
        "https:///x/",
        "git@mirror.example:x/",
    ],
)
def test_a_mirror_that_anybody_could_play_is_refused_with_its_line(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, f'# mine\n[mirrors]\n"https://github.com/" = ["{mirror}"]\n')
    with pytest.raises(DcaError) as refused:
        mirrors.config()
    assert refused.value.code == "DCA-202"
    assert "line 3" in refused.value.what
    assert "user:geheim" not in str(refused.value)
    assert "token=geheim" not in str(refused.value)


def test_a_wrong_key_is_told_with_the_right_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(tmp_path, monkeypatch, "[mirors]\n")
    with pytest.raises(DcaError, match="mirors") as refused:
        mirrors.config()
    assert "`mirrors`" in refused.value.remedy


def test_a_named_file_that_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCA_CONFIG", str(tmp_path / "nothing.toml"))
    with pytest.raises(DcaError) as refused:
        mirrors.config()
    assert refused.value.code == "DCA-204"


# --- files ---------------------------------------------------------------------------------------------------


def test_a_mirror_with_another_file_is_passed_over_and_the_pin_decides(
    place: Place, other: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, f'[mirrors]\n"{place.url}/" = ["{other.url}/mirror/"]\n')
    place.pages["/file"] = ("x/y", BODY)
    other.pages["/mirror/file"] = ("x/y", BODY[:-1] + b"?")
    assert index.fetch_url(places(f"{place.url}/file"), sha(BODY), tmp_path / "kept").read_bytes() == BODY
    assert (other.asked, place.asked) == (["/mirror/file"], ["/file"])


def test_a_mirror_that_has_it_is_the_only_one_that_is_asked(
    place: Place, other: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, f'[mirrors]\n"{place.url}/" = ["{other.url}/"]\n')
    other.pages["/file"] = ("x/y", BODY)
    assert index.fetch_url(places(f"{place.url}/file"), sha(BODY), tmp_path / "kept").read_bytes() == BODY
    assert place.asked == []


def test_when_no_place_has_it_each_is_told(
    place: Place, other: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(tmp_path, monkeypatch, f'[mirrors]\n"{place.url}/" = ["{other.url}/", "http://127.0.0.1:9/"]\n')
    place.pages["/file"] = ("x/y", b"another")
    with pytest.raises(DcaError) as refused:
        index.fetch_url(places(f"{place.url}/file"), sha(BODY), tmp_path / "kept")
    assert refused.value.code == "DCA-401"
    for named in (other.url, "127.0.0.1:9", sha(b"another")):
        assert named in refused.value.why
    assert not (tmp_path / "kept").exists()


def test_an_sdist_that_the_index_does_not_give_comes_from_where_its_recipe_says(
    place: Place, other: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{place.url}/simple/")
    other.pages["/releases/thing-1.0.tar.gz"] = ("x/y", BODY)
    gone = f"{other.url}/gone/thing-1.0.tar.gz"
    source = SdistSource.model_construct(
        kind="sdist",
        package="thing",
        version="1.0",
        file="thing-1.0.tar.gz",
        sha256=sha(BODY),
        urls=(gone, f"{other.url}/releases/thing-1.0.tar.gz"),
    )
    cache = store.Store(tmp_path / "cache")
    assert index.download(source, cache).read_bytes() == BODY
    assert [path for path in other.asked if "thing" in path] == ["/gone/thing-1.0.tar.gz", "/releases/thing-1.0.tar.gz"]
    assert index.probe_file(places(gone)) == "it answers with status 404"
    assert index.probe_file(places(source.urls[1])) == ""


def test_archives_of_nvidia_come_from_the_first_of_several_places_that_has_them(
    place: Place, other: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DCA_REDIST_URL", raising=False)
    component = Component(name="nvcc", version="1", relative_path="a/nvcc.tar.xz", sha256=sha(BODY), size=len(BODY))
    many = Redist(
        url=("https://one.invalid/redist", "https://two.invalid/redist/"),
        label="1",
        manifest="m.json",
        sha256=sha(BODY),
        components=(component,),
    )
    assert redist.endpoints(many) == ("https://one.invalid/redist/", "https://two.invalid/redist/")
    configure(
        tmp_path,
        monkeypatch,
        (f'[mirrors]\n"https://one.invalid/" = ["{place.url}/"]\n"https://two.invalid/" = ["{other.url}/"]\n'),
    )
    other.pages["/redist/a/nvcc.tar.xz"] = other.pages["/redist/m.json"] = ("x/y", BODY)
    assert redist.probe(many) == ""
    assert redist.download(component, many, store.Store(tmp_path / "cache")).read_bytes() == BODY
    monkeypatch.setenv("DCA_REDIST_URL", place.url)
    assert redist.endpoints(many) == (f"{place.url}/",)


# --- git -----------------------------------------------------------------------------------------------------


@pytest.fixture
def kit(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """The folder that a git server's repositories are in, and the commit of the one that it has."""
    repository = Repository(tmp_path / "served/group/kit.git")
    repository.write("a", b"a")
    commit = repository.commit()
    with served(tmp_path / "served") as url:
        yield url, commit


def test_a_commit_comes_from_a_mirror_of_its_repository(
    kit: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, commit = kit
    configure(tmp_path, monkeypatch, f'[mirrors]\n"https://hub.invalid/" = ["http://127.0.0.1:9/", "{url}"]\n')
    clone = "https://hub.invalid/group/kit.git/.git"
    assert git.probe(places(clone)) == ""
    assert git.branch_head(places(clone), "main") == commit
    started = time.monotonic()
    repository = git.fetch(places(clone), commit, store.Store(tmp_path / "cache").open(), tmp_path / "log")
    assert time.monotonic() - started < 20
    assert git.has_commit(repository, commit)


def test_a_mirror_without_the_commit_is_passed_over(
    kit: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, commit = kit
    old = Repository(tmp_path / "served/old/kit.git")
    old.write("a", b"older")
    old.commit()
    configure(tmp_path, monkeypatch, f'[mirrors]\n"https://hub.invalid/group/" = ["{url}old/", "{url}group/"]\n')
    clone = "https://hub.invalid/group/kit.git/.git"
    repository = git.fetch(places(clone), commit, store.Store(tmp_path / "cache").open(), tmp_path / "log")
    git.export(repository, commit, tmp_path / "tree")
    assert (tmp_path / "tree/a").read_bytes() == b"a"


@pytest.mark.proof
def test_a_git_server_that_stalls_is_left_for_the_next_one_in_time(
    kit: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scale: Callable[[int], int]
) -> None:
    """It answers when asked for its refs, and then sends nothing; with the real deadline in `make prove`."""
    url, commit = kit
    if scale(50) != 50:
        monkeypatch.setattr(git, "STALL", ("-c", "http.lowSpeedLimit=10", "-c", "http.lowSpeedTime=1"))
    requests: list[bytes] = []

    class Stalling(GitHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if b"command=fetch" in body:
                requests.append(body)
                time.sleep(60)
            real, self.rfile = self.rfile, io.BytesIO(body)
            super().answer()
            self.rfile = real

        do_GET = do_POST = answer  # noqa: N815 - the server's names

    with served(tmp_path / "served", Stalling) as slow:
        configure(tmp_path, monkeypatch, f'[mirrors]\n"https://hub.invalid/" = ["{slow}", "{url}"]\n')
        started = time.monotonic()
        place = "https://hub.invalid/group/kit.git/.git"
        repository = git.fetch(places(place), commit, store.Store(tmp_path / "cache").open(), tmp_path / "log")
        spent = time.monotonic() - started
        print(f"a git server that stalls: left after {spent:.1f} s")
        assert git.has_commit(repository, commit)
        assert spent < 20
        assert len(requests) == 1
