"""Git sources: what a commit holds, read from real repositories, and URLs that must start nothing."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from dca.catalogue.mirrors import places
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.sources import git
from tests.support.repositories import ENV, Repository

BINARY = bytes(range(256)) * 5


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    repository = Repository(tmp_path / "repository")
    repository.write("README", b"read me\n")
    repository.write("csrc/kernel.cu", b"// kernel\r\n")
    repository.write("csrc/inner/data.bin", BINARY)
    repository.write("tools/run.sh", b"#!/bin/sh\n", 0o755)
    repository.write(".gitattributes", b"* text eol=lf\nREADME export-ignore\n*.bin filter=none\n")
    repository.write("with space/gr\u00fc\u00df.txt", b"x")
    (repository.path / "link").symlink_to("csrc/kernel.cu")
    (repository.path / "tools" / "up").symlink_to("../README")
    return repository


def listed(folder: Path) -> list[str]:
    return [name for name, _ in store.walk(folder)]


# --- repositories --------------------------------------------------------------------------------------------


def test_a_folder_with_a_work_tree_and_a_bare_one_are_repositories(repository: Repository, tmp_path: Path) -> None:
    repository.commit()
    repository("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    repository("worktree", "add", "--quiet", str(tmp_path / "second"))
    assert git.is_repository(repository.path)
    assert git.is_repository(tmp_path / "bare.git")
    assert git.is_repository(tmp_path / "second")


def test_a_folder_inside_of_a_repository_is_none(repository: Repository, tmp_path: Path) -> None:
    assert not git.is_repository(repository.path / "csrc")
    assert not git.is_repository(tmp_path)
    assert not git.is_repository(tmp_path / "missing")


def test_a_commit_is_there_or_not_and_the_branch_has_no_say(repository: Repository) -> None:
    first = repository.commit()
    repository("checkout", "--quiet", "--orphan", "other")
    second = repository.commit()
    assert git.has_commit(repository.path, first)
    assert git.has_commit(repository.path, second)
    assert not git.has_commit(repository.path, "1" * 40)


def test_what_is_no_commit_is_not_one(repository: Repository) -> None:
    commit = repository.commit()
    assert not git.has_commit(repository.path, repository("rev-parse", f"{commit}^{{tree}}"))
    assert not git.has_commit(repository.path, repository("rev-parse", f"{commit}:README"))


def test_packed_and_borrowed_objects_are_found(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    repository("gc", "--quiet")
    repository("clone", "--quiet", "--shared", "--bare", ".", str(tmp_path / "borrower"))
    assert git.has_commit(repository.path, commit)
    assert git.has_commit(tmp_path / "borrower", commit)


@pytest.mark.parametrize("name", ["GIT_DIR", "GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE", "GIT_INDEX_FILE"])
def test_a_repository_that_the_environment_names_has_no_say(
    name: str, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = repository.commit()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv(name, str(tmp_path / "elsewhere"))
    assert git.has_commit(repository.path, commit)


def test_a_path_is_taken_as_it_is_written(tmp_path: Path) -> None:
    odd = Repository(tmp_path / "$HOME ~ ${USER}")
    odd.write("README", b"x")
    assert git.has_commit(odd.path, odd.commit())


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_a_folder_that_is_no_repository_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DcaError) as refused:
        git.has_commit(tmp_path / name, "0" * 40)
    assert refused.value.code == "DCA-405"
    assert name in refused.value.what


def test_a_folder_inside_of_another_repository_is_refused(repository: Repository) -> None:
    commit = repository.commit()
    with pytest.raises(DcaError) as refused:
        git.has_commit(repository.path / "csrc", commit)
    assert refused.value.code == "DCA-405"


# --- export --------------------------------------------------------------------------------------------------

FILES = [
    ".gitattributes",
    "README",
    "csrc/inner/data.bin",
    "csrc/kernel.cu",
    "link",
    "tools/run.sh",
    "tools/up",
    "with space/gr\u00fc\u00df.txt",
]


@pytest.mark.parametrize("packed", [False, True])
def test_exactly_the_files_of_the_commit_are_written(packed: bool, repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    repository.write("README", b"changed later\n")
    repository.write("new", b"new")
    (repository.path / "csrc/kernel.cu").unlink()
    if packed:
        repository("gc", "--quiet")
    git.export(repository.path, commit, tmp_path / "out")
    out = tmp_path / "out"
    assert listed(out) == FILES
    assert (out / "README").read_bytes() == b"read me\n"
    assert (out / "csrc/inner/data.bin").read_bytes() == BINARY
    assert (out / "link").readlink() == Path("csrc/kernel.cu")
    assert (out / "tools/up").read_bytes() == b"read me\n"


def test_executable_bits_are_those_of_the_commit(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    (repository.path / "tools/run.sh").chmod(0o644)
    before = os.umask(0o077)
    try:
        git.export(repository.path, commit, tmp_path / "out")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out/tools/run.sh").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "out/README").stat().st_mode) == 0o644


def test_settings_and_filters_of_the_clone_have_no_say(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    plain = repository("cat-file", "blob", f"{commit}:README")
    for name, value in (
        ("core.autocrlf", "true"),
        ("core.hooksPath", str(tmp_path)),
        ("core.fsmonitor", f"touch {tmp_path}/canary"),
        ("filter.none.smudge", f"touch {tmp_path}/canary"),
        ("core.pager", f"touch {tmp_path}/canary"),
    ):
        repository("config", name, value)
    git.export(repository.path, commit, tmp_path / "out")
    assert (tmp_path / "out/README").read_bytes() == plain.encode() + b"\n"
    assert not (tmp_path / "canary").exists()


def test_a_bare_repository_gives_the_same_tree(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    repository("clone", "--quiet", "--bare", ".", str(tmp_path / "bare.git"))
    git.export(repository.path, commit, tmp_path / "left")
    git.export(tmp_path / "bare.git", commit, tmp_path / "right")
    assert store.tree_hash(tmp_path / "left") == store.tree_hash(tmp_path / "right")


def test_only_the_folders_asked_for_are_written(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    git.export(repository.path, commit, tmp_path / "out", ["csrc/inner", "tools"])
    assert listed(tmp_path / "out") == ["csrc/inner/data.bin", "tools/run.sh", "tools/up"]


def test_a_single_file_can_be_asked_for(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    git.export(repository.path, commit, tmp_path / "out", ["tools/run.sh", "csrc/inner"])
    assert listed(tmp_path / "out") == ["csrc/inner/data.bin", "tools/run.sh"]


def test_a_folder_that_the_commit_lacks_is_refused(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    with pytest.raises(DcaError) as refused:
        git.export(repository.path, commit, tmp_path / "out", ["include"])
    assert refused.value.code == "DCA-405"
    assert refused.value.what == f"commit {commit} has no include."


def test_a_clone_that_lacks_an_object_is_refused(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    blob = repository("rev-parse", f"{commit}:README")
    (repository.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(DcaError) as refused:
        git.export(repository.path, commit, tmp_path / "out")
    assert refused.value.code == "DCA-405"


def test_a_clone_that_lacks_an_object_starts_nothing_to_get_it(repository: Repository, tmp_path: Path) -> None:
    helper = tmp_path / "helper.sh"
    helper.write_text(f"#!/bin/sh\ntouch '{tmp_path}/canary'\n")
    helper.chmod(0o755)
    commit = repository.commit()
    repository("clone", "--quiet", "--bare", ".", str(tmp_path / "remote"))
    for name, value in (
        ("core.repositoryFormatVersion", "1"),
        ("extensions.partialClone", "origin"),
        ("remote.origin.promisor", "true"),
        ("remote.origin.uploadPack", str(helper)),
        ("remote.origin.url", f"file://{tmp_path}/remote"),
        ("remote.origin.fetch", "+refs/heads/*:refs/x/*"),
    ):
        repository("config", name, value)
    blob = repository("rev-parse", f"{commit}:README")
    (repository.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(DcaError) as refused:
        git.export(repository.path, commit, tmp_path / "out")
    assert refused.value.code == "DCA-405"
    assert not (tmp_path / "canary").exists()
    # git itself, with nothing switched off, would have started it.
    subprocess.run(
        ["git", "-C", str(repository.path), "cat-file", "blob", blob], env=ENV, capture_output=True, check=False
    )
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("what", ["README", "csrc", ""])
def test_an_object_that_the_clone_replaces_by_another_is_not_taken(
    what: str, repository: Repository, tmp_path: Path
) -> None:
    first = repository.commit()
    repository.write("README", b"replaced\n")
    repository.write("csrc/kernel.cu", b"// replaced\n")
    second = repository.commit()
    old, new = (repository("rev-parse", f"{commit}:{what}" if what else commit) for commit in (first, second))
    repository("replace", old, new)
    git.export(repository.path, first, tmp_path / "out")
    assert (tmp_path / "out/README").read_bytes() == b"read me\n"
    assert (tmp_path / "out/csrc/kernel.cu").read_bytes() == b"// kernel\n"


@pytest.mark.parametrize("what", ["README", "csrc", ""])
def test_an_object_whose_content_is_not_what_its_name_says_is_refused(
    what: str, repository: Repository, tmp_path: Path
) -> None:
    first = repository.commit()
    repository.write("README", b"tampered\n")
    repository.write("csrc/kernel.cu", b"// tampered\n")
    second = repository.commit()
    old, new = (
        repository.path / ".git/objects" / name[:2] / name[2:]
        for name in (repository("rev-parse", f"{commit}:{what}" if what else commit) for commit in (first, second))
    )
    old.chmod(0o644)
    old.write_bytes(new.read_bytes())
    with pytest.raises(DcaError) as refused:
        git.export(repository.path, first, tmp_path / "out")
    assert refused.value.code == "DCA-405"


@pytest.mark.parametrize(
    "links",
    [
        pytest.param({"link": b"/etc/passwd"}, id="absolute"),
        pytest.param({"link": b"../outside"}, id="above the tree"),
        pytest.param({"a/b/link": b"../../../outside"}, id="above the tree from further down"),
        pytest.param({"a/link": b"x/../../../outside"}, id="with a detour"),
        pytest.param({"link": b".."}, id="the folder above"),
        pytest.param({"a/b/top": b"../..", "link": b"a/b/top/../outside"}, id="by way of another link"),
    ],
)
def test_a_link_that_leaves_the_tree_is_refused(
    links: dict[str, bytes], repository: Repository, tmp_path: Path
) -> None:
    (tmp_path / "outside").write_bytes(b"secret")
    commit = repository.commit_tree([("120000", target, name) for name, target in links.items()])
    with pytest.raises(DcaError) as refused:
        git.export(repository.path, commit, tmp_path / "out")
    assert refused.value.code == "DCA-404"
    assert "link" in refused.value.what


def test_links_in_a_circle_are_refused(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit_tree([("120000", b"two", "one"), ("120000", b"one", "two")])
    with pytest.raises(DcaError) as refused:
        git.export(repository.path, commit, tmp_path / "out")
    assert refused.value.code == "DCA-404"


def test_a_link_to_a_name_that_begins_with_dots_is_kept(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit_tree([("100644", b"x", "..dots"), ("120000", b"..dots", "link")])
    git.export(repository.path, commit, tmp_path / "out")
    assert (tmp_path / "out/link").read_bytes() == b"x"


def test_a_submodule_is_left_out_and_its_commit_known(repository: Repository, tmp_path: Path) -> None:
    inner = "1234567890" * 4
    repository("update-index", "--add", "--cacheinfo", f"160000,{inner},third/party")
    repository.write("third/readme", b"x")
    repository("add", "third/readme")
    repository("commit", "--quiet", "--message", "x")
    commit = repository("rev-parse", "HEAD")
    git.export(repository.path, commit, tmp_path / "out")
    assert listed(tmp_path / "out") == ["third/readme"]
    assert git.submodule_commit(repository.path, commit, "third/party") == inner
    assert git.submodule_commit(repository.path, commit, "third/readme") == ""
    assert git.submodule_commit(repository.path, commit, "third/missing") == ""
    assert git.submodule_commit(repository.path, commit, "missing/party") == ""
    assert git.submodule_commit(repository.path, commit, "third") == ""


# --- URLs ----------------------------------------------------------------------------------------------------


def canaries(tmp_path: Path) -> list[str]:
    canary = tmp_path / "canary"
    helper = tmp_path / "helper.sh"
    helper.write_text(f"#!/bin/sh\ntouch '{canary}'\n")
    helper.chmod(0o755)
    shutil.copytree(tmp_path / "repository" / ".git", tmp_path / "hooked" / ".git")
    return [
        f"ext::{helper}",
        f"ext::sh -c touch% {canary}",
        f"--upload-pack={helper}",
        f"-u{helper}",
        f"--exec={helper}",
        f"file://{tmp_path}/repository",
        f"{tmp_path}/repository",
        "../repository",
        f"ssh://-oProxyCommand={helper}/x",
        f"git://127.0.0.1:1/x\next::{helper}",
        f"https://127.0.0.1:1/x\n--upload-pack={helper}",
        "http://127.0.0.1:1/x",
        f"fd::17/{helper}",
        "",
        "\n",
    ]


def test_no_url_starts_a_program_or_reads_a_local_repository(
    repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository.commit()
    monkeypatch.chdir(repository.path)
    # Even where the user allows such transports for themselves.
    (tmp_path / ".gitconfig").write_text('[protocol]\n\tallow = always\n[protocol "ext"]\n\tallow = always\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    for url in canaries(tmp_path):
        assert git.probe(places(url)), f"{url!r} is said to be reachable"
    assert not (tmp_path / "canary").exists()


def test_the_canary_would_sing(repository: Repository, tmp_path: Path) -> None:
    repository.commit()
    url = canaries(tmp_path)[0]
    subprocess.run(
        ["git", "-c", "protocol.ext.allow=always", "ls-remote", url], env=ENV, capture_output=True, check=False
    )
    assert (tmp_path / "canary").exists()


def test_a_repository_that_does_not_answer_is_told_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    why = git.probe(places("https://user:secret@127.0.0.1:1/x.git"))
    assert why
    assert "secret" not in why


# --- fetching ------------------------------------------------------------------------------------------------

URL = "https://127.0.0.1:1/x.git"


def test_a_commit_that_is_in_the_cache_is_not_fetched(repository: Repository, tmp_path: Path) -> None:
    commit = repository.commit()
    cache = store.Store(tmp_path / "cache")
    kept = cache.folder("git", store.sha256_bytes(URL.encode())[:16])
    repository("clone", "--quiet", "--bare", ".", str(kept))
    assert git.fetch(places(URL), commit, cache, tmp_path / "log") == kept
    assert not (tmp_path / "log").exists()


def test_a_commit_that_no_place_gives_is_an_error_that_names_every_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DcaError) as refused:
        git.fetch(places(URL, "https://127.0.0.1:2/y.git"), "1" * 40, store.Store(tmp_path / "cache"), tmp_path / "log")
    assert refused.value.code == "DCA-405"
    assert URL in refused.value.why
    assert "127.0.0.1:2" in refused.value.why
    assert "1" * 40 in refused.value.what
