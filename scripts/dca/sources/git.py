"""Git sources: probing and fetching with the git program, reading the pinned commit with GitPython."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dca.catalogue import mirrors
from dca.catalogue.mirrors import Places
from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact

if TYPE_CHECKING:
    import git

PROBE_SECONDS = 5.0
FETCH_SECONDS = 900.0
# git gives up on a server that sends almost nothing for 12 s; then the next one is asked. A server that is still
# counting objects reports progress, which is enough.
STALL = ("-c", "http.lowSpeedLimit=10", "-c", "http.lowSpeedTime=12")
# Objects are kept in one pack, which is complete or absent. If they were unpacked as they arrive, a transfer that is
# cut off could leave a commit without its files.
WHOLE = ("-c", "fetch.unpackLimit=1", "-c", "transfer.unpackLimit=1")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def _environment(url: str) -> dict[str, str]:
    # No prompt for a password, and no transport that can run a program (ext::, ssh options). Plain http is for this
    # machine itself, and never where https leads to.
    allowed = "https" if url.startswith("https://") else "http"
    return runner.environment(
        {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": allowed, "GIT_PROTOCOL_FROM_USER": "0"}, network=True
    )


def _refused(url: str) -> str:
    """Why a URL is not handed to git, or nothing; recipes and mirrors are checked when they are read, too."""
    if mirrors.is_safe(url):
        return ""
    return "it is not an https:// URL without user, password, spaces and control characters"


def probe(places: Places) -> str:
    """Why a repository cannot be reached at any of its places; empty when it can."""
    reasons = [_probe(url) for url in places.asked]
    return "" if "" in reasons else reasons[-1]


def _probe(url: str) -> str:
    if refusal := _refused(url):
        return refusal
    done = runner.run(
        [runner.which("git"), "ls-remote", "--exit-code", "--quiet", "--end-of-options", url, "HEAD"],
        env=_environment(url),
        timeout=PROBE_SECONDS,
    )
    if done.timed_out:
        return f"no answer within {PROBE_SECONDS:g} s"
    if done.ok:
        return ""
    lines = [line for line in done.tail if line.startswith(("fatal:", "error:"))] or list(done.tail)
    return redact(lines[0].removeprefix("fatal: ")) if lines else f"git ended with status {done.returncode}"


def kept(urls: Sequence[str], commit: str, cache: store.Store, only: Sequence[str] = ()) -> Path | None:
    """The repository of the cache that has what is needed of a commit, if there is one.

    Args:
        urls: where it is fetched from.
        commit: the pinned one.
        cache: where repositories lie.
        only: the files and folders that are needed; all when empty.
    """
    for folder in (cache.folder("git", _own(urls)), part_folder(commit, only, cache)):
        if _is_whole(folder) and has_commit(folder, commit):
            return folder
    return None


def part_folder(commit: str, only: Sequence[str], cache: store.Store) -> Path:
    """Where a repository lies that has one commit and only some of its files, as they came out of a bundle.

    It is apart from those that were fetched, and named after what it has, so that nobody looks there for more.
    """
    return cache.folder("git", f"part-{store.sha256_bytes(' '.join((commit, *only)).encode())[:16]}")


def _own(urls: Sequence[str]) -> str:
    return store.sha256_bytes(urls[0].encode())[:16]


def fetch(places: Places, commit: str, cache: store.Store, log: Path, only: Sequence[str] = ()) -> Path:
    """The repository that has a commit: the user's own, or the cache's, fetched from the first place that has it.

    Args:
        places: where the repository is taken from.
        commit: the pinned commit.
        cache: where the repository is kept.
        log: of git.
        only: as in `kept`.

    Raises:
        DcaError: DCA-405 when none has it, DCA-409 when it may not be fetched.
    """
    if places.local is not None:
        return places.local
    if not _COMMIT.fullmatch(commit):
        raise DcaError("DCA-405", f"{commit[:60]!r} is not a commit.", remedy="pin all 40 digits of its hash.")
    if (repository := kept(places.urls, commit, cache, only)) is not None:
        return repository
    cache.must_fetch(f"commit {commit[:12]} of {redact(places.urls[0])}")
    with cache.lock("git", _own(places.urls)):
        # Another run may have fetched it in the meantime.
        return kept(places.urls, commit, cache, only) or _fetch(places, commit, cache, log)


def _fetch(places: Places, commit: str, cache: store.Store, log: Path) -> Path:
    repository = make_empty(cache.folder("git", _own(places.urls)), log)
    reasons: list[str] = []
    output: tuple[str, ...] = ()
    for url in places.asked:
        # git has no timeout for connecting; `_probe` has one, so it goes first where there is another place to try.
        if reason := _refused(url) or (len(places.asked) > 1 and _probe(url)):
            reasons.append(f"{url}: {reason}")
            continue
        done = runner.run(
            [
                runner.which("git"),
                "-C",
                str(repository),
                *STALL,
                *WHOLE,
                "fetch",
                "--progress",
                "--depth",
                "1",
                "--no-tags",
                "--no-recurse-submodules",
                "--no-write-fetch-head",
                "--end-of-options",
                url,
                commit,
            ],
            env=_environment(url),
            log=log,
            timeout=FETCH_SECONDS,
        )
        if done.ok and has_commit(repository, commit):
            return repository
        lines = [line for line in done.tail if line.startswith(("fatal:", "error:"))] or list(done.tail[-1:])
        reasons.append(f"{url}: {lines[0] if lines else 'no answer'}")
        output = done.tail
    raise DcaError(
        "DCA-405",
        f"commit {commit} could not be fetched.",
        why=redact("\n".join(reasons)),
        output=output,
        remedy="check the network, or name a local clone with --source or --companion.",
    )


def make_empty(repository: Path, log: Path) -> Path:
    """A bare repository, made where there is none, without what the user's template would put into it.

    Raises:
        DcaError: DCA-405 when git cannot make it.
    """
    if _is_whole(repository):
        return repository
    # git writes it file by file, and would leave an unusable repository when it is killed in between.
    with store.incoming_folder(repository) as part:
        init(part, log)
    return repository


def init(folder: Path, log: Path) -> None:
    """A bare repository in a folder that is there and empty.

    Raises:
        DcaError: DCA-405 when git cannot make it.
    """
    done = runner.run(
        [runner.which("git"), "init", "--quiet", "--bare", "--template=", "--", str(folder)],
        env=runner.environment(),
        log=log,
        timeout=60.0,
    )
    if not done.ok:
        raise DcaError(
            "DCA-405", f"{folder} could not be made.", why=done.text[-400:], output=done.tail, remedy=f"see {log}."
        )


def _is_whole(repository: Path) -> bool:
    """Whether a bare repository of the cache is one, as git itself decides it."""
    return (repository / "HEAD").is_file() and (repository / "objects").is_dir() and (repository / "refs").is_dir()


def branch_head(places: Places, branch: str) -> str:
    """The commit that a branch is at; empty when it is unknown, which is no error, because builds use the pin.

    Args:
        places: where the repository is; in the user's own clone, its branches come before those of its remotes.
        branch: its name.
    """
    import git

    if "\0" in branch:
        return ""
    if places.local is None:
        for url in places.asked:
            if _refused(url):
                continue
            done = runner.run(
                [runner.which("git"), "ls-remote", "--quiet", "--end-of-options", url, f"refs/heads/{branch}"],
                env=_environment(url),
                timeout=PROBE_SECONDS,
            )
            lines = [re.match(r"([0-9a-f]{40})\t(.*)", line) for line in done.tail] if done.ok else []
            # git takes the name for a pattern and may list other branches too.
            if head := next((line[1] for line in lines if line and line[2] == f"refs/heads/{branch}"), ""):
                return head
        return ""
    try:
        with _open(places.local) as repo:
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
        GIT_CONFIG_COUNT="1",
        GIT_CONFIG_KEY_0="safe.directory",
        GIT_CONFIG_VALUE_0="*",
        GIT_NO_LAZY_FETCH="1",
        GIT_ALLOW_PROTOCOL="",
        GIT_NO_REPLACE_OBJECTS="1",
        GIT_ALTERNATE_OBJECT_DIRECTORIES="",
        GIT_OBJECT_DIRECTORY=str(Path(repo.common_dir) / "objects"),
        GIT_DIR=str(repo.git_dir),
        GIT_COMMON_DIR=str(repo.common_dir),
    )
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
            blobs = [item for item in _reachable(repo, commit, only) if isinstance(item, git.Blob)]
            # Links are written last, so that no file is ever written through one.
            links = [blob for blob in blobs if blob.mode == git.Blob.link_mode]
            for blob in blobs:
                if blob.mode != git.Blob.link_mode:
                    _write(blob, folder)
            for blob in links:
                _link(blob, folder)
            _check_links([folder / str(blob.path) for blob in links], folder)
    except (git.exc.GitError, KeyError, ValueError) as error:
        raise _unreadable(path, commit, error) from None


def objects(path: Path, commit: str, only: Sequence[str] = ()) -> dict[str, tuple[str, bytes]]:
    """A commit and everything that `export` reads of it: type and content by hash, each content checked against it.

    Args:
        path: the repository.
        commit: the pinned commit.
        only: as in `export`.

    Raises:
        DcaError: DCA-405 when an object is missing or damaged.
    """
    import git

    try:
        with _open(path) as repo:
            items = (repo.commit(commit), *_reachable(repo, commit, only))
            return {item.hexsha: (item.type, repo.odb.stream(item.binsha).read()) for item in items}
    except (git.exc.GitError, KeyError, ValueError) as error:
        raise _unreadable(path, commit, error) from None


def _reachable(repo: git.Repo, commit: str, only: Sequence[str]) -> list[Any]:
    """The trees and blobs that are wanted of a commit, and the trees above them; submodules are none of them."""
    root = _verified(repo, repo.commit(commit)).tree
    chosen = [_entry(root, name, commit) for name in only] if only else [root]
    above = [root / name for path in only for name in _parents(path)]
    for item in (root, *above, *chosen):
        _verified(repo, item)
    trees = [item for item in chosen if item.type == "tree"]
    items = [_verified(repo, item) for tree in trees for item in tree.traverse() if item.type != "submodule"]
    return [*({item.binsha: item for item in (root, *above) if item not in chosen}.values()), *chosen, *items]


def _unreadable(path: Path, commit: str, error: Exception) -> DcaError:
    return DcaError(
        "DCA-405",
        f"commit {commit} of {path} cannot be read.",
        why=str(error),
        remedy="the clone may be shallow or damaged: fetch it again.",
    )


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
    digest = hashlib.sha1(f"{item.type} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    if digest != item.hexsha:
        raise ValueError(f"the object {item.hexsha} has the content of {digest}")
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
