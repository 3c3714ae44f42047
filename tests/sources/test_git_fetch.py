"""Fetching a pinned commit over https, from a real git server on loopback."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from dca.catalogue.mirrors import places
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.sources import git
from tests.support.repositories import Repository, served
from tests.support.web import Place


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str]]:
    """The URL of a repository and the commit pinned in it, which is not the head of its branch."""
    work = Repository(tmp_path / "work")
    work.write("a.txt", b"pinned\n")
    pinned = work.commit()
    work.write("a.txt", b"newer\n")
    work.commit()
    bare = tmp_path / "served/repository.git"
    work("clone", "--quiet", "--bare", ".", str(bare))
    work("--git-dir", str(bare), "config", "uploadpack.allowAnySHA1InWant", "true")
    for name in ("GIT_SSL_CAINFO", "SSL_CERT_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "certificate.pem"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with served(tmp_path / "served", tls=tmp_path) as url:
        yield f"{url}repository.git", pinned


def test_the_pinned_commit_is_fetched_and_exported_not_the_head(server: tuple[str, str], tmp_path: Path) -> None:
    url, pinned = server
    cache = store.Store(tmp_path / "cache").open()
    assert git.probe(places(url)) == ""
    repository = git.fetch(places(url), pinned, cache, tmp_path / "log")
    git.export(repository, pinned, tmp_path / "tree")
    assert (tmp_path / "tree/a.txt").read_text() == "pinned\n"


def test_the_head_of_a_branch_is_told_from_the_server_and_from_clones(server: tuple[str, str], tmp_path: Path) -> None:
    url, pinned = server
    head = git.branch_head(places(url), "main")
    assert len(head) == 40
    assert head != pinned
    assert git.branch_head(places(local=tmp_path / "work"), "main") == head
    subprocess.run(["git", "clone", "--quiet", "--no-checkout", tmp_path / "work", tmp_path / "clone"], check=True)
    for words in (["checkout", "--quiet", "--detach", pinned], ["branch", "--quiet", "-D", "main"]):
        subprocess.run(["git", *words], cwd=tmp_path / "clone", check=True)
    assert git.branch_head(places(local=tmp_path / "clone"), "main") == head


def test_a_branch_that_cannot_be_told_is_no_error(server: tuple[str, str], tmp_path: Path) -> None:
    url, _ = server
    assert git.branch_head(places(url), "gone") == ""
    assert git.branch_head(places(url.replace("repository", "nothing")), "main") == ""
    assert git.branch_head(places(local=tmp_path / "work"), "gone") == ""
    assert git.branch_head(places(local=tmp_path), "main") == ""


def test_the_next_url_is_tried_when_one_does_not_have_it(server: tuple[str, str], tmp_path: Path) -> None:
    url, pinned = server
    cache = store.Store(tmp_path / "cache").open()
    repository = git.fetch(places(url.replace("repository", "gone"), url), pinned, cache, tmp_path / "log")
    assert git.has_commit(repository, pinned)


def test_a_commit_that_nobody_has_is_an_error_with_each_url(server: tuple[str, str], tmp_path: Path) -> None:
    url, _ = server
    with pytest.raises(DcaError) as refused:
        git.fetch(places(url), "0" * 40, store.Store(tmp_path / "cache").open(), tmp_path / "log")
    assert refused.value.code == "DCA-405"
    assert url in refused.value.why


# --- the user's own configuration of git ---------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration of git."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / ".gitconfig"


@pytest.mark.parametrize(
    "text",
    [
        '[url "ssh://git@127.0.0.1/"]\ninsteadOf = {url}',
        '[url "https://127.0.0.1:9/"]\ninsteadOf = {url}',
        "[transfer]\nfsckObjects = true\n[fetch]\nrecurseSubmodules = true\n[fetch.fsck]\nbadTimezone = error",
        "[protocol]\nallow = never",
        "[http]\nsslVerify = true\nuserAgent = none\nsslCAPath =",
        "no configuration [",
    ],
)
def test_the_users_configuration_does_not_change_where_git_fetches_from(
    text: str, server: tuple[str, str], settings: Path, tmp_path: Path
) -> None:
    url, pinned = server
    settings.write_text(text.format(url=url.removesuffix("repository.git")))
    assert git.probe(places(url)) == ""
    repository = git.fetch(places(url), pinned, store.Store(tmp_path / "cache").open(), tmp_path / "log")
    git.export(repository, pinned, tmp_path / "tree")
    assert (tmp_path / "tree/a.txt").read_text() == "pinned\n"


def test_a_certificate_that_the_user_trusts_by_configuration_is_trusted(
    server: tuple[str, str], settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, _ = server
    for name in ("GIT_SSL_CAINFO", "SSL_CERT_FILE"):
        monkeypatch.delenv(name)
    assert "certificate" in git.probe(places(url))
    settings.write_text(f'[http "{url.removesuffix("/repository.git")}"]\nsslCAInfo = {tmp_path / "certificate.pem"}\n')
    assert git.probe(places(url)) == ""
    settings.write_text("[http]\nsslVerify = false\n")
    assert "certificate" in git.probe(places(url))


@pytest.mark.parametrize("table", ["http", 'http "{url}"'])
def test_a_proxy_that_the_user_configured_for_git_is_asked(
    table: str, server: tuple[str, str], settings: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    settings.write_text(f"[{table.format(url=server[0])}]\nproxy = {place.url}\n")
    # The server is no proxy.
    assert "501" in git.probe(places(server[0]))
