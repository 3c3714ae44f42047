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
from dca.foundation import environment, runner, store, user_config
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact

if TYPE_CHECKING:
    import git

PROBE_SECONDS = 5.0
FETCH_SECONDS = 900.0
# git gives up on a server that sends almost nothing for 12 s; then the next one is asked. The progress that a server
# reports while it counts objects is enough to keep the connection.
STALL = ("-c", "http.lowSpeedLimit=10", "-c", "http.lowSpeedTime=12")
# Keep objects in one pack, which is complete or absent. If git unpacked them as they arrive, an interrupted transfer
# could leave a commit without its files.
WHOLE = ("-c", "fetch.unpackLimit=1", "-c", "transfer.unpackLimit=1")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def _environment(url: str) -> dict[str, str]:
    # No prompt for a password, and no transport that can run a program (ext::, ssh options). Plain http is for servers
    # on this machine only, and https never redirects to it.
    allowed = "https" if url.startswith("https://") else "http"
    fixed = {"GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": allowed, "GIT_PROTOCOL_FROM_USER": "0"}
    return environment.of("git", {**user_config.git_network(), **fixed})


def _refused(url: str) -> str:
    """Why git must not get a URL, or nothing. Recipes and mirrors are also checked when they are read."""
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
    """The repository in the cache that has a commit and the files that are needed of it, if there is one.

    Args:
        urls: of the repository.
        commit: the pinned commit.
        cache: where repositories are kept.
        only: the files and folders that are needed; all when empty.
    """
    for folder in (cache.folder("git", _own(urls)), part_folder(commit, only, cache)):
        if _is_whole(folder) and has_commit(folder, commit):
            return folder
    return None


def part_folder(commit: str, only: Sequence[str], cache: store.Store) -> Path:
    """The cache's repository for one commit out of a bundle, which may have only some of its files.

    Its name is made of the commit and these files, so that it is never used for others.
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
        DcaError: DCA-405 when no place has it, DCA-409 when --offline forbids fetching it.
    """
    if places.local is not None:
        return places.local
    if not _COMMIT.fullmatch(commit):
        raise DcaError("DCA-405", f"{commit[:60]!r} is not a commit.", remedy="pin the full hash of 40 digits.")
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
        # git has no timeout for connecting, `_probe` has: probe first when there is another place to try.
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
        remedy="check the network, or give a local clone with --source or --companion.",
    )


def make_empty(repository: Path, log: Path) -> Path:
    """Create a bare repository unless it exists, without the user's template.

    Raises:
        DcaError: DCA-405 when git cannot create it.
    """
    if _is_whole(repository):
        return repository
    # git writes it file by file; killed in between, it would leave an unusable repository.
    with store.incoming_folder(repository) as part:
        init(part, log)
    return repository


def init(folder: Path, log: Path) -> None:
    """Create a bare repository in an existing empty folder.

    Raises:
        DcaError: DCA-405 when git cannot create it.
    """
    done = runner.run(
        [runner.which("git"), "init", "--quiet", "--bare", "--template=", "--", str(folder)],
        env=environment.of("git"),
        log=log,
        timeout=60.0,
    )
    if not done.ok:
        raise DcaError(
            "DCA-405",
            f"the git repository {folder} could not be created.",
            why=done.text[-400:],
            output=done.tail,
            remedy=f"see {log}.",
        )


def _is_whole(repository: Path) -> bool:
    """Whether a folder of the cache is a bare repository, by the criteria of git itself."""
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
            # git treats the name as a pattern and may list other branches too.
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
            remedy="give the folder of a clone.",
        ) from None
    except (git.exc.ODBError, git.exc.GitCommandError, ValueError):
        return False


def _open(path: Path) -> git.Repo:
    """Open a repository to read objects from it.

    The user gave it or this tool made it, so git reads it even when another user owns it (a mounted volume, a
    container's root). A clone could make git fetch missing objects from a remote while reading; that is disabled.
    """
    import git

    repo = git.Repo(path, expand_vars=False)
    repo.git.update_environment(
        **environment.FIXED["git"],
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
    """The commit that a parent repository records for a submodule; empty when it has no such submodule."""
    with _open(path) as repo:
        try:
            entry = repo.commit(commit).tree / submodule
        except KeyError:
            return ""
        return entry.hexsha if entry.type == "submodule" else ""


def export(path: Path, commit: str, folder: Path, only: Sequence[str] = ()) -> None:
    """Write a commit's files to a folder, ignoring the repository's work tree and its filters.

    Args:
        path: the repository.
        commit: the pinned commit.
        folder: to write to; created when missing.
        only: files and folders of the tree to write; all when empty.

    Raises:
        DcaError: DCA-404 for a link that leaves the tree, DCA-405 when an object is missing.
    """
    import git

    try:
        with _open(path) as repo:
            blobs = [item for item in _reachable(repo, commit, only) if isinstance(item, git.Blob)]
            # Write links last, so that no file is written through one.
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
    """A commit and every object that `export` reads: type and content by hash, each content checked against its hash.

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
    """The requested trees and blobs of a commit, and the trees above them; submodules are left out."""
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
        remedy="fetch the clone again; it may be shallow or damaged.",
    )


def _entry(root: git.Tree, name: str, commit: str) -> Any:
    try:
        return root / name
    except KeyError:
        raise DcaError(
            "DCA-405",
            f"commit {commit} has no {name}.",
            remedy="correct `only` or the commit of this source in the recipe.",
        ) from None


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:size]) for size in range(1, len(parts))]


def _verified(repo: git.Repo, item: Any) -> Any:
    """Check that an object's content has the hash that names it, which git does not do when it reads."""
    content = repo.odb.stream(item.binsha).read()
    digest = hashlib.sha1(f"{item.type} {len(content)}\0".encode() + content, usedforsecurity=False).hexdigest()
    if digest != item.hexsha:
        raise ValueError(f"the content of the object {item.hexsha} has the hash {digest}")
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
    """Reject links that lead out of the tree, directly or through other links."""
    for link in links:
        if store.leads_out(link, folder):
            raise _leaves(f"{link.relative_to(folder)} -> {link.readlink()}")


def _leaves(what: str) -> DcaError:
    return DcaError("DCA-404", f"the tree has a path that leads out of its folder: {what}.", remedy="do not use it.")
