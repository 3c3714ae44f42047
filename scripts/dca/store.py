"""The only room that writes: atomic files and folders, locks, hashes, and the layout of the cache."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

CACHEDIR_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Made by dca; safe to delete when no build is running.\n"


def sha256_bytes(data: bytes) -> str:
    """sha256 of bytes, as hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, as hexadecimal, without holding the file in memory."""
    seen = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            seen.update(block)
    return seen.hexdigest()


def has_hash(path: Path, sha256: str) -> bool:
    """Whether a kept file is still what it was; one that is not is removed, so that it is fetched again."""
    if not path.is_file():
        return False
    if sha256_file(path) == sha256:
        return True
    path.unlink()
    return False


def tree_hash(root: Path, *, skip: Callable[[str], bool] = lambda _: False) -> str:
    """sha256 over the sorted paths, executable bits, link targets and contents below a folder.

    Times, owners and the folder's own name do not count, so two copies of the same tree have the same hash.

    Args:
        root: the folder.
        skip: whether a path (relative, with `/`) is left out; a folder left out is left out whole.
    """
    seen = hashlib.sha256()
    for relative, path in walk(root, skip=skip):
        if path.is_symlink():
            fields = ("link", relative, str(path.readlink()))
        elif path.is_file():
            fields = ("exec" if path.stat().st_mode & 0o100 else "file", relative, sha256_file(path))
        else:
            raise OSError(errno.EINVAL, "neither a file, a folder nor a link", str(path))
        # NUL is the one character that no name can have, so no two trees are spelt the same.
        seen.update("\0".join((*fields, "")).encode("utf-8", "surrogateescape"))
    return seen.hexdigest()


def walk(root: Path, *, skip: Callable[[str], bool] = lambda _: False) -> Iterator[tuple[str, Path]]:
    """Files and links below a folder, sorted, as (relative path, path); folders themselves are not named."""
    pending = [("", root)]
    found: list[tuple[str, Path]] = []
    while pending:
        prefix, folder = pending.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                relative = prefix + entry.name
                if skip(relative):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    pending.append((relative + "/", Path(entry.path)))
                else:
                    found.append((relative, Path(entry.path)))
    yield from sorted(found)


def leads_out(link: Path, root: Path) -> bool:
    """Whether a link leads out of a folder, also by way of other links, or in a circle."""
    try:
        return not link.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return True


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file beside its final name and move it there: afterwards the old or the new file stands, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with incoming(path) as part:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(mode)
        part.replace(path)


def write_if_changed(path: Path, data: bytes) -> bool:
    """Write a file only when its content differs, so that ninja sees no change where there is none."""
    if path.is_file() and path.read_bytes() == data:
        return False
    write_bytes(path, data)
    return True


@contextlib.contextmanager
def incoming(path: Path) -> Iterator[Path]:
    """A name beside `path` for a file under way; whatever is left there on an error is removed."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".part")
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def incoming_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` when the block ends well, and disappears when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".part"))
    part.chmod(0o755)
    try:
        yield part
        if path.exists():
            # Moved aside before it is removed: half a folder never stands under the final name.
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name[:60]}.", suffix=".part"))
            path.rename(aside / "old")
            part.rename(path)
            remove(aside)
        else:
            part.rename(path)
    finally:
        if part.exists():
            remove(part)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, also where folders were made read-only."""

    def unlock(function: Callable[..., object], name: str, _: object) -> None:
        for folder in (Path(name).parent, Path(name)):
            if folder.is_dir() and not folder.is_symlink():
                folder.chmod(0o755)
        if function in (os.unlink, os.rmdir):
            function(name)
        else:
            shutil.rmtree(name)

    shutil.rmtree(path, onerror=unlock)


@dataclass(frozen=True)
class Store:
    """The cache folder and what lies where in it.

    Args:
        root: the cache folder; made with a CACHEDIR.TAG so that backups leave it out.
    """

    root: Path

    def open(self) -> Store:
        """Make the folder where it is missing."""
        self.root.mkdir(parents=True, exist_ok=True)
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            write_bytes(tag, CACHEDIR_TAG)
        return self

    def download(self, sha256: str, name: str) -> Path:
        """Where a download with this hash lies."""
        return self.root / "downloads" / sha256 / name

    def folder(self, kind: str, key: str) -> Path:
        """Where something made by the tool lies: kind is tree, toolkit, env, build, run or lock."""
        return self.root / kind / key

    @property
    def uv(self) -> Path:
        """Uv's own cache: one for all environments, so that they share their files."""
        return self.root / "uv"

    @contextlib.contextmanager
    def lock(self, kind: str, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of one folder; `waiting` is called once when somebody else holds it."""
        import filelock

        path = self.root / "locks" / f"{kind}-{key}.lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path)
        try:
            lock.acquire(timeout=0)
        except filelock.Timeout:
            waiting()
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def sweep(folder: Path) -> None:
    """Remove what a killed run left under way in a folder; called while its lock is held."""
    for part in folder.parent.glob(f".{folder.name[:60]}.*.part"):
        if part.is_dir():
            remove(part)
        else:
            part.unlink(missing_ok=True)
