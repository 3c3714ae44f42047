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
