"""Writes files and folders atomically; locks, hashes, and the layout of the cache."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from dca.foundation import environment, together
from dca.foundation.errors import DcaError

# Errors of `flock` on a file system without locks, or without its lock server.
_NO_LOCKS = frozenset((errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK))
CACHEDIR_TAG = b"Signature: 8a477f597d28d172789f06886806bc55\n# Made by dca; safe to delete when no build is running.\n"
# Name of the temporary folders that `scratch` makes.
SCRATCH = "dca-scratch"


def sha256_bytes(data: bytes) -> str:
    """sha256 of bytes, as hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """sha256 of a file, as hexadecimal, without holding the file in memory."""
    seen = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(1 << 20):
            together.check()
            seen.update(block)
    return seen.hexdigest()


def has_hash(path: Path, sha256: str) -> bool:
    """Whether a file has this hash; one with another hash is removed, so that it is downloaded again."""
    if not path.is_file():
        return False
    if sha256_file(path) == sha256:
        return True
    path.unlink(missing_ok=True)
    return False


def tree_hash(root: Path, *, skip: Callable[[str], bool] = lambda _: False) -> str:
    """sha256 over the sorted paths, executable bits, link targets and contents below a folder.

    Times, owners and the folder's own name do not count, so copies of a tree have the same hash.

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
        # No name can contain NUL, so no two trees are encoded the same.
        seen.update("\0".join((*fields, "")).encode("utf-8", "surrogateescape"))
    return seen.hexdigest()


def walk(root: Path, *, skip: Callable[[str], bool] = lambda _: False) -> Iterator[tuple[str, Path]]:
    """Files and links below a folder, sorted, as (relative path, path); folders themselves are not named."""
    pending = [("", root)]
    files: list[tuple[str, Path]] = []
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
                    files.append((relative, Path(entry.path)))
    yield from sorted(files)


def leads_out(link: Path, root: Path) -> bool:
    """Whether a link leads out of a folder, directly or through other links, or in a circle."""
    try:
        return not link.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):
        return True


def write_bytes(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write a file atomically: beside its final name, then moved there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with incoming(path) as part:
        with part.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        part.chmod(mode)
        part.replace(path)


def write_link(path: Path, target: str) -> None:
    """Make a link atomically; an existing link is replaced, not followed."""
    # In a folder, because a link itself cannot be locked, and one that a killed run leaves would stay.
    part, descriptor = _claim(path, folder=True)
    try:
        link = part / "link"
        link.symlink_to(target)
        link.replace(path)
    finally:
        remove(part)
        _release(descriptor, part)


@contextlib.contextmanager
def folder_lock(folder: Path, seconds: float) -> Iterator[bool]:
    """Lock a folder against other runs of dca, without a file in it.

    Args:
        folder: an existing folder.
        seconds: how long to wait for another run.

    Yields:
        Whether it is locked; True on a file system without locks.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _flock(descriptor, time.monotonic() + seconds)
    finally:
        os.close(descriptor)


def _flock(descriptor: int, end: float) -> bool:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # noqa: PERF203 - expected while another run holds it
            if time.monotonic() > end:
                return False
            time.sleep(0.02)
        except OSError:
            return True
        else:
            return True


def write_if_changed(path: Path, data: bytes, *, mode: int = 0o644) -> bool:
    """Write a file only when its content differs, so that ninja does not rebuild."""
    if path.is_file() and path.read_bytes() == data:
        return False
    write_bytes(path, data, mode=mode)
    return True


@contextlib.contextmanager
def incoming(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which is removed at the end unless it was moved.

    Leftovers of killed runs for the same `path` are removed first.
    """
    part, descriptor = _claim(path, folder=False)
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)
        os.close(descriptor)


@contextlib.contextmanager
def incoming_folder(path: Path) -> Iterator[Path]:
    """A folder that becomes `path` when the block succeeds, and is removed otherwise.

    Leftovers of killed runs for the same `path` are removed first.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part, descriptor = _claim(path, folder=True)
    part.chmod(0o755)
    try:
        yield part
        if path.exists() and not exchanged(part, path):
            # Moved aside before it is removed, so that no incomplete folder ever has the final name.
            aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=".part"))
            path.rename(aside / "old")
            part.rename(path)
            remove(aside)
        elif not path.exists():
            part.rename(path)
    finally:
        if part.exists():
            # After an exchange this is the old folder, which another run may have removed meanwhile.
            with contextlib.suppress(FileNotFoundError):
                remove(part)
        _release(descriptor, part)


def exchanged(new: Path, other: Path) -> bool:
    """Exchange the names of two folders atomically; whether the system supports it."""
    import ctypes

    if other.is_symlink() or not other.is_dir():
        return False
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    # AT_FDCWD, and RENAME_EXCHANGE of linux/fs.h.
    return bool(call(-100, os.fsencode(new), -100, os.fsencode(other), ctypes.c_uint(2)) == 0)


@contextlib.contextmanager
def scratch(parent: Path | None = None) -> Iterator[Path]:
    """A temporary folder for the time of the block; those of killed runs are removed first.

    Args:
        parent: folder in which it is made; the system's temporary folder by default.

    Raises:
        DcaError: DCA-215 when TMPDIR names no folder for that.
    """
    if parent is None:
        environment.check_temporary()
    part, descriptor = _claim((parent or Path(tempfile.gettempdir())) / SCRATCH, folder=True)
    try:
        yield part
    finally:
        remove(part)
        _release(descriptor, part)


def _prefix(path: Path) -> str:
    return f".{path.name[:60]}."


def _claim(path: Path, *, folder: bool) -> tuple[Path, int]:
    """A new file or folder beside `path`, and a descriptor whose lock shows that its owner is alive."""
    together.check()
    sweep(path)
    while True:
        if folder:
            name = tempfile.mkdtemp(dir=path.parent, prefix=_prefix(path), suffix=".part")
            try:
                descriptor = os.open(name, os.O_RDONLY)
            except FileNotFoundError:
                continue
        else:
            descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=_prefix(path), suffix=".part")
        # On a file system without locks this fails here and in `sweep`, which then removes nothing.
        with contextlib.suppress(OSError):
            descriptor = _locked(descriptor, Path(name))
        # Another run may have removed it before it was locked.
        if Path(name).exists():
            return Path(name), descriptor
        _release(descriptor, Path(name))


def _locked(descriptor: int, part: Path, flags: int = 0) -> int:
    """Lock an open temporary file or folder, and return the descriptor that holds the lock.

    NFS locks only what is open for writing, which a folder cannot be: there a file beside it is locked.

    Raises:
        OSError: without locks, or when another process has this one.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | flags)
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
    else:
        return descriptor
    beside = os.open(_beside(part), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(beside, fcntl.LOCK_EX | flags)
    except OSError:
        os.close(beside)
        raise
    os.close(descriptor)
    return beside


def _beside(part: Path) -> Path:
    """The file that is locked in place of a folder."""
    return part.with_name(f"{part.name}.lock")


def _release(descriptor: int, part: Path) -> None:
    """Release the lock of a temporary file or folder that is gone."""
    if (beside := _beside(part)).exists():
        beside.unlink(missing_ok=True)
    os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a folder with everything in it, also read-only folders."""

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
    """The cache folder and its layout.

    Args:
        root: the cache folder; has a CACHEDIR.TAG so that backups skip it.
        offline: whether downloads are forbidden.
    """

    root: Path
    offline: bool = False

    def must_fetch(self, what: str) -> None:
        """Called before the network is asked for something that is not in the cache.

        Raises:
            DcaError: DCA-409 for an offline cache.
        """
        if self.offline:
            raise DcaError(
                "DCA-409",
                f"{what} is not in the cache, and --offline forbids to download it.",
                remedy="run `dca fetch --bundle FILE` on a machine with a network, copy FILE here, "
                "then run `dca wheel --bundle FILE --offline`.",
            )

    def open(self) -> Store:
        """Create the folder if it is missing, and remove leftovers of killed runs.

        Raises:
            DcaError: DCA-102 on a file system that cannot hold a cache.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        _check_file_system(self.root, self.root.stat().st_dev)
        sweep(self.root / SCRATCH)
        tag = self.root / "CACHEDIR.TAG"
        if not tag.exists():
            write_bytes(tag, CACHEDIR_TAG)
        return self

    def download(self, sha256: str, name: str) -> Path:
        """The path of a download with this hash."""
        return self.root / "downloads" / sha256 / name

    def folder(self, kind: str, key: str) -> Path:
        """The folder of something that dca made: kind is tree, toolkit, env, build, pure, schemas, run or lock."""
        return self.root / kind / key

    @property
    def uv(self) -> Path:
        """The cache of uv, which all environments share."""
        return self.root / "uv"

    @contextlib.contextmanager
    def lock(self, kind: str, key: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold the lock of one folder; `waiting` is called once when another run holds it.

        The programs that run meanwhile share it (`held`): when this process is killed, the lock is released once they
        have ended too.

        Raises:
            DcaError: DCA-102 on a file system without locks, where two runs could collide.
        """
        with self._lock_file(kind, key) as descriptor:
            if not self._take(descriptor):
                waiting()
                while not self._take(descriptor):
                    together.check()
                    time.sleep(together.LOOK_SECONDS)
            with _holding(descriptor):
                yield

    @contextlib.contextmanager
    def try_lock(self, kind: str, key: str) -> Iterator[bool]:
        """Hold the lock of one folder as `lock` does, unless another run holds it; whether it is held."""
        with self._lock_file(kind, key) as descriptor:
            if not self._take(descriptor):
                yield False
                return
            with _holding(descriptor):
                yield True

    @contextlib.contextmanager
    def _lock_file(self, kind: str, key: str) -> Iterator[int]:
        path = self._lock(kind, key)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _take(self, descriptor: int) -> bool:
        """Lock an open file; False when another run has."""
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            why = f"flock says: {error.strerror}. Two runs could spoil each other's work there."
            raise _unsuitable(self.root, "locks", why) from None
        return True

    def holder(self, kind: str, key: str) -> str:
        """Who holds a lock, as words of a message."""
        with contextlib.suppress(OSError, ValueError):
            process = int(self._lock(kind, key).read_text())
            if Path(f"/proc/{process}").exists():
                return f"another run (process {process})"
        return "another run, or a leftover of a killed one,"

    def _lock(self, kind: str, key: str) -> Path:
        return self.root / "locks" / f"{kind}-{key}.lock"


@functools.cache
def _check_file_system(root: Path, device: int) -> None:  # noqa: ARG001 - another device is another file system
    """Check that the file system of the cache has what environments, toolkits and builds need, besides locks.

    Raises:
        DcaError: DCA-102.
    """
    with scratch(root) as folder:
        program = folder / "program"
        program.write_bytes(b"#!/bin/sh\n")
        program.chmod(0o755)
        if not os.access(program, os.X_OK):
            raise _unsuitable(root, "programs", "Programs there cannot be started; it may be mounted with noexec.")
        if program.with_name("PROGRAM").exists():
            raise _unsuitable(root, "capital letters", "Names that differ in capital letters only are one file there.")
        try:
            program.with_name("link").symlink_to(program.name)
        except OSError as error:
            raise _unsuitable(root, "symbolic links", f"symlink says: {error.strerror}.") from None


def _unsuitable(root: Path, lacking: str, why: str) -> DcaError:
    kind, mounted = _mounted(root)
    return DcaError(
        "DCA-102",
        f"the cache folder {root} is on a file system without {lacking}"
        + (f" ({kind}, mounted at {mounted})." if kind else "."),
        why=why,
        remedy="put the cache on a local disk: --cache-dir DIR (DCA_CACHE_DIR), or make CACHE=DIR.",
    )


def _mounted(path: Path) -> tuple[str, str]:
    """The kind of file system that has a folder, and where it is mounted; empty if the system does not say."""
    found = ("", "")
    try:
        # The last mount of a place hides earlier ones.
        for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            fields, _, after = line.partition(" - ")
            place = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split()[4])
            if path.resolve().is_relative_to(place) and len(place) >= len(found[1]):
                found = (after.split()[0], place)
    except (OSError, IndexError):
        pass
    return found


# Descriptors of the locks that this process holds.
_HELD: list[int] = []
# Held while a program is started, so that no other thread closes a lock that the program inherits.
_INHERITING = threading.Lock()


@contextlib.contextmanager
def _holding(descriptor: int) -> Iterator[None]:
    """Hold a taken lock: its file names this process, and the programs that it runs share it."""
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    _HELD.append(descriptor)
    try:
        yield
    finally:
        with _INHERITING:
            _HELD.remove(descriptor)
        os.ftruncate(descriptor, 0)
        # Closing it would not release it while a program has inherited the descriptor.
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def held() -> Iterator[tuple[int, ...]]:
    """Descriptors of the locks that this process holds, for a program that shares them; open during the block."""
    with _INHERITING:
        yield tuple(_HELD)


def sweep(path: Path) -> None:
    """Remove leftovers of killed runs for a file or folder; those of living runs are kept."""
    try:
        names = [entry.name for entry in os.scandir(path.parent)]
    except FileNotFoundError:
        return
    for name in names:
        if name.startswith(_prefix(path)) and name.endswith(".part"):
            part = path.parent / name
            with contextlib.suppress(OSError):
                descriptor = os.open(part, os.O_NOFOLLOW | (os.O_RDONLY if part.is_dir() else os.O_RDWR))
                try:
                    descriptor = _locked(descriptor, part, fcntl.LOCK_NB)
                    if part.is_dir():
                        remove(part)
                        if _beside(part).exists():
                            _beside(part).unlink(missing_ok=True)
                    else:
                        part.unlink()
                finally:
                    os.close(descriptor)
