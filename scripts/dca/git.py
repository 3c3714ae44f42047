"""Git sources: probing and fetching with the git program, reading the pinned commit with GitPython."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dca import runner, store
from dca.errors import DcaError
from dca.index import redact

if TYPE_CHECKING:
    import git

PROBE_SECONDS = 5.0
FETCH_SECONDS = 900.0


def _environment() -> dict[str, str]:
    # No prompt for a password, and no transport that can run a program (ext::, ssh options).
    return runner.environment({"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "https"}, network=True)


def probe(url: str) -> str:
    """Why a repository cannot be reached, or nothing when it can."""
    done = runner.run(
        [runner.which("git"), "ls-remote", "--exit-code", "--quiet", "--end-of-options", url, "HEAD"],
        env=_environment(), timeout=PROBE_SECONDS,
    )  # fmt: skip
    if done.timed_out:
        return f"no answer within {PROBE_SECONDS:g} s"
    if done.ok:
        return ""
    lines = [line for line in done.tail if line.startswith(("fatal:", "error:"))] or list(done.tail)
    return redact(lines[0].removeprefix("fatal: ")) if lines else f"git ended with status {done.returncode}"


def fetch(urls: Sequence[str], commit: str, cache: store.Store, log: Path) -> Path:
    """A bare repository in the cache that has the commit, fetched from the first URL that gives it.

    Raises:
        DcaError: DCA-405 when none has it.
    """
    repository = cache.folder("git", store.sha256_bytes(urls[0].encode())[:16])
    git = runner.which("git")
    env = _environment()
    if not (repository / "HEAD").is_file():
        runner.run([git, "init", "--quiet", "--bare", "--", str(repository)], env=env, log=log, timeout=60.0)
    if has_commit(repository, commit):
        return repository
    told = []
    for url in urls:
        done = runner.run(
            [git, "-C", str(repository), "fetch", "--quiet", "--depth", "1", "--no-tags", "--end-of-options",
             url, commit],
            env=env, log=log, timeout=FETCH_SECONDS,
        )  # fmt: skip
        if done.ok and has_commit(repository, commit):
            return repository
        told.append(f"{url}: {done.tail[-1] if done.tail else 'no answer'}")
    raise DcaError(
        "DCA-405",
        f"commit {commit} could not be fetched.",
        why=redact("\n".join(told)),
        remedy="check the network, or name a local clone with --source or --companion.",
    )


def branch_head(place: str, branch: str, *, local: bool) -> str:
    """The commit that a branch is at; nothing when it cannot be told, which is no error: the pin decides.

    Args:
        place: a URL, or the path of a clone, whose own branch comes before those of its remotes.
        branch: its name.
        local: whether `place` is a path.
    """
    import git

    if not local:
        done = runner.run(
            [runner.which("git"), "ls-remote", "--quiet", "--end-of-options", place, f"refs/heads/{branch}"],
            env=_environment(), timeout=PROBE_SECONDS,
        )  # fmt: skip
        found = re.match(r"([0-9a-f]{40})\t", done.tail[-1]) if done.ok and done.tail else None
        return found[1] if found else ""
    try:
        with _open(Path(place)) as repo:
            refs = {ref.path: str(ref.commit.hexsha) for ref in repo.refs if ref.path.endswith(f"/{branch}")}
    except (git.exc.GitError, ValueError):
        return ""
    own = refs.get(f"refs/heads/{branch}")
    return own or next((refs[path] for path in sorted(refs) if path.startswith("refs/remotes/")), "")


def is_repository(path: Path) -> bool:
    """Whether a folder is a git repository itself, with a work tree or bare."""
    return (path / ".git").exists() or ((path / "HEAD").is_file() and (path / "objects").is_dir())


def has_commit(path: Path, commit: str) -> bool:
    """Whether a repository has a commit.

    Raises:
        DcaError: DCA-405 when the folder cannot be read as a repository.
    """
    import git

    try:
        with _open(path) as repo:
            return bool(repo.odb.info(bytes.fromhex(commit)).type == b"commit")
    except (git.exc.InvalidGitRepositoryError, git.exc.NoSuchPathError) as error:
        raise DcaError(
            "DCA-405",
            f"{path} is not a git repository.",
            why=str(error),
            remedy="name the folder of a clone.",
        ) from None
    except (git.exc.ODBError, git.exc.GitCommandError, ValueError):
        return False


def _open(path: Path) -> git.Repo:
    """A repository to read objects from.

    The user named it or this tool made it, so it is read also when somebody else owns it (a mounted volume, a
    container's root). What such a clone could make git do while reading, fetching missing objects from a remote of
    its own choice, is switched off.
    """
    import git

    repo = git.Repo(path, expand_vars=False)
    repo.git.update_environment(
        GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*", GIT_NO_LAZY_FETCH="1",
        GIT_ALLOW_PROTOCOL="", GIT_NO_REPLACE_OBJECTS="1", GIT_ALTERNATE_OBJECT_DIRECTORIES="",
        GIT_OBJECT_DIRECTORY=str(Path(repo.common_dir) / "objects"), GIT_DIR=str(repo.git_dir),
        GIT_COMMON_DIR=str(repo.common_dir),
    )  # fmt: skip
    return repo


def submodule_commit(path: Path, commit: str, submodule: str) -> str:
    """The commit that a parent records for a submodule; nothing when there is none."""
    with _open(path) as repo:
        try:
            entry = repo.commit(commit).tree / submodule
        except KeyError:
            return ""
        return entry.hexsha if entry.type == "submodule" else ""


def export(path: Path, commit: str, folder: Path, only: Sequence[str] = ()) -> None:
    """Write a commit's files below a folder; the repository's work tree and its filters have no say.

    Args:
        path: the repository.
        commit: the pinned commit.
        folder: where to write; made when missing.
        only: files and folders of the tree to write; all when empty.

    Raises:
        DcaError: DCA-404 for a link that leaves the tree, DCA-405 when an object is missing.
    """
    import git

    try:
        with _open(path) as repo:
            root = _verified(repo, repo.commit(commit)).tree
            wanted = [_entry(root, name, commit) for name in only] if only else [root]
            above = [root / name for path_ in only for name in _parents(path_)]
            for item in (root, *above, *wanted):
                _verified(repo, item)
            trees = [item for item in wanted if item.type == "tree"]
            items = [_verified(repo, item) for tree in trees for item in tree.traverse() if item.type != "submodule"]
            blobs = [item for item in (*wanted, *items) if isinstance(item, git.Blob)]
            # Links last: no file is then ever written through one.
            links = [blob for blob in blobs if blob.mode == git.Blob.link_mode]
            for blob in blobs:
                if blob.mode != git.Blob.link_mode:
                    _write(blob, folder)
            for blob in links:
                _link(blob, folder)
            _check_links([folder / str(blob.path) for blob in links], folder)
    except (git.exc.GitError, KeyError, ValueError) as error:
        raise DcaError(
            "DCA-405",
            f"commit {commit} of {path} cannot be read.",
            why=str(error),
            remedy="the clone may be shallow or damaged: fetch it again.",
        ) from None


def _entry(root: git.Tree, name: str, commit: str) -> Any:
    try:
        return root / name
    except KeyError:
        raise DcaError(
            "DCA-405",
            f"commit {commit} has no {name}.",
            remedy="correct what the recipe needs of this source (`only`), or its commit.",
        ) from None


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:size]) for size in range(1, len(parts))]


def _verified(repo: git.Repo, item: Any) -> Any:
    """An object whose content has the hash that names it; git itself does not look when it reads."""
    content = repo.odb.stream(item.binsha).read()
    found = hashlib.sha1(f"{item.type} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    if found != item.hexsha:
        raise ValueError(f"the object {item.hexsha} has the content of {found}")
    return item


def _target(blob: git.Blob, folder: Path) -> Path:
    name = str(blob.path)
    if name.startswith("/") or ".." in name.split("/") or ".git" in name.lower().split("/"):
        raise _leaves(name)
    target = folder / name
    target.parent.mkdir(parents=True, exist_ok=True)
    return target


def _write(blob: git.Blob, folder: Path) -> None:
    target = _target(blob, folder)
    target.write_bytes(blob.data_stream.read())
    target.chmod(0o755 if blob.mode == blob.executable_mode else 0o644)


def _link(blob: git.Blob, folder: Path) -> None:
    text = os.fsdecode(blob.data_stream.read())
    if text.startswith("/"):
        raise _leaves(f"{blob.path} -> {text}")
    _target(blob, folder).symlink_to(text)


def _check_links(links: list[Path], folder: Path) -> None:
    """Refuse links that lead out of the tree, also by way of other links."""
    for link in links:
        if store.leads_out(link, folder):
            raise _leaves(f"{link.relative_to(folder)} -> {link.readlink()}")


def _leaves(what: str) -> DcaError:
    return DcaError("DCA-404", f"the tree holds a path that leaves its folder: {what}.", remedy="do not use it.")
