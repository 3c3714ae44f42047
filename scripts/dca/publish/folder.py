"""An index in a folder that any web server serves: files are placed whole, and last before anything names them."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dca.foundation import documents, store
from dca.foundation.errors import DcaError
from dca.publish import layout
from dca.publish.place import inside
from dca.publish.values import Settings

# The folders that an operator may keep elsewhere, as symbolic links.
MAY_BE_LINKS = (layout.FILES, layout.EVIDENCE, layout.RECORDS)


class Folder:
    """An index in a folder.

    `files`, `evidence` and `records` may be symbolic links to other folders. Files are read and written there, but only
    those with the hash that a record names are deleted there. No other symbolic link is followed.

    Args:
        root: the folder; made by the first command that writes.
        waiting: called once when another command holds the lock, with words for whoever waits.
    """

    alone = True

    def __init__(self, root: Path, waiting: Callable[[str], None] = lambda _: None) -> None:
        self.root = root
        self.name = str(root)
        self._waiting = waiting
        self._touched: set[Path] = set()

    @contextlib.contextmanager
    def writing(self, *, new: bool = False) -> Iterator[None]:
        """Hold the index's lock; readers of the folder are not kept waiting.

        Args:
            new: whether the folder may become an index now.

        Raises:
            DcaError: DCA-904 when the folder holds something else, or symbolic links where it must not.
        """
        self._check_links()
        if new:
            self._claim()
        self.check()
        locks = store.Store(self.root / layout.OWN)

        def waiting() -> None:
            self._waiting(f"{locks.holder('publish', 'index')} writes this index; waiting for it.")

        with locks.lock("publish", "index", waiting):
            # Whoever left something here is gone: only the holder of the lock writes.
            if (staging := self.root / layout.STAGING).exists():
                store.remove(staging)
            _make(staging)
            self._touched.clear()
            try:
                yield
            finally:
                store.remove(staging)

    def check(self) -> None:
        """Whether the folder is an index.

        Raises:
            DcaError: DCA-904.
        """
        if not (self.root / layout.SETTINGS).is_file():
            names = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
            raise DcaError(
                "DCA-904",
                f"{self.root} is not an index that this tool made.",
                why=f"it has no {layout.SETTINGS}"
                + (f", and holds {', '.join(names[:3])}." if names else "; it is empty or not there."),
                remedy="name the folder of an index; to publish, an empty one or one that does not exist yet.",
            )

    def _check_links(self) -> None:
        """Refuse links where files are written or deleted by names that others may have too."""
        own = [layout.OWN, layout.STAGING, f"{layout.OWN}/locks", f"{layout.OWN}/locks/publish-index.lock"]
        views = (
            [path.name for path in self.root.iterdir() if layout.VIEW.fullmatch(path.name)]
            if self.root.is_dir()
            else []
        )
        for path in (*own, *sorted(views)):
            if (self.root / path).is_symlink():
                raise linked(self.root, path)

    def _claim(self) -> None:
        """Make an empty folder an index; anything else is left as it is."""
        if self.root.is_dir() and {path.name for path in self.root.iterdir()} - {layout.OWN}:
            return
        if not self.root.exists() or self.root.is_dir():
            _make(self.root / layout.OWN)
            if not (self.root / layout.SETTINGS).exists():
                store.write_bytes(self.root / layout.SETTINGS, documents.dumps(Settings()))

    def signatures(self) -> dict[str, str]:
        """The records; a signature is told by the file system alone."""
        signatures = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / layout.RECORDS) as entries:
            for entry in entries:
                if entry.name.endswith(".whl.json"):
                    # A link is refused when it is read; a broken one hides none of the others.
                    signatures[entry.name.removesuffix(".json")] = _signature(entry.stat(follow_symlinks=False))
        return signatures

    def pages(self) -> set[str]:
        """The pages: those of all views, and the page for people."""
        paths = {name for name in (layout.FRONT, layout.AS_IT_IS) if (self.root / name).is_file()}
        for view in self.root.iterdir():
            if layout.VIEW.fullmatch(view.name) and view.is_dir() and not view.is_symlink():
                paths |= {f"{view.name}/{relative}" for relative, _ in store.walk(view) if layout.is_plain(relative)}
        return paths

    def strays(self, wanted: set[str]) -> dict[str, int]:
        """Files that belong to no wheel; in a folder behind a link, nobody knows whose they are."""
        sizes = {}
        for top in (layout.FILES, layout.EVIDENCE):
            if (self.root / top).is_dir() and not (self.root / top).is_symlink():
                for relative, path in store.walk(self.root / top):
                    # Not a name that no message could show; `dca verify` of the index reports it.
                    if f"{top}/{relative}" not in wanted and layout.is_plain(relative):
                        sizes[f"{top}/{relative}"] = path.lstat().st_size
        if (self.root / layout.ROWS).is_file():
            sizes[layout.ROWS] = (self.root / layout.ROWS).lstat().st_size
        return sizes

    def read(self, path: str) -> bytes:
        """A file's content."""
        return to_read(self.root, path).read_bytes()

    def put(self, path: str, content: bytes | Path, sha256: str) -> None:
        """A file by its hash: no record names another content under this path, so what is there may be replaced."""
        target = to_write(self.root, path)
        if target.is_file() and not target.is_symlink() and store.sha256_file(target) == sha256:
            return
        if isinstance(content, bytes):
            self._write(target, content)
            return
        with store.incoming(self._staged(target)) as part:
            if not _linked(content, part):
                shutil.copyfile(content, part)
                part.chmod(0o644)
            _sync(part)
            # Of a link the bytes may have been changed since they were looked at.
            if (afterwards := store.sha256_file(part)) != sha256:
                raise DcaError(
                    "DCA-901",
                    f"{content.name} was changed while it was being published; it was not published.",
                    why=f"sha256 before {sha256},\nafterwards {afterwards}.",
                    remedy="wait until whatever writes it is done, and run the command again.",
                )
            self._move(part, target)

    def put_record(self, name: str, content: bytes, was: str | None) -> str:  # noqa: ARG002 - nobody else writes
        """A record; the lock keeps others from changing it."""
        target = to_write(self.root, layout.record(name))
        self._write(target, content)
        return _signature(target.stat())

    def put_page(self, path: str, content: bytes) -> None:
        """A page, written only when it differs."""
        target = to_write(self.root, path)
        with contextlib.suppress(FileNotFoundError):
            if not target.is_symlink() and target.stat().st_size == len(content) and target.read_bytes() == content:
                return
        self._write(target, content)

    def barrier(self) -> None:
        """Make the names last, too: a file that was moved is safe only when its folder is."""
        for folder in sorted(self._touched):
            if folder.is_dir():
                _sync(folder)
        self._touched.clear()

    def delete(self, paths: list[str], hashes: Mapping[str, str] | None = None) -> None:
        """Delete files, and the folders that are empty then."""
        files = [to_write(self.root, path) for path in paths]
        for path, file in zip(paths, files, strict=True):
            if (self.root / path.split("/")[0]).is_symlink() and "/" in path and file.is_file():
                sha256 = (hashes or {}).get(path)
                if file.is_symlink() or sha256 is None or store.sha256_file(file) != sha256:
                    raise DcaError(
                        "DCA-904",
                        f"{path} was not deleted: another file is in its place.",
                        why=f"{path.split('/')[0]} is a symbolic link, and what is there may not belong to the index.",
                        remedy="delete the file yourself or move it away, then run the command again.",
                    )
        for file in files:
            file.unlink(missing_ok=True)
            self._touched.add(file.parent)
            for folder in file.parents:
                if folder == self.root or not _removed(folder):
                    break
                self._touched.add(folder.parent)

    def _write(self, target: Path, data: bytes) -> None:
        with store.incoming(self._staged(target)) as part:
            with part.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            part.chmod(0o644)
            self._move(part, target)

    def _staged(self, target: Path) -> Path:
        # Not beside its final name: looking for leftovers among ten thousand files would take longer than writing one.
        return self.root / layout.STAGING / target.name

    def _move(self, part: Path, target: Path) -> None:
        folder = target.parent
        while not folder.exists():
            self._touched.add(folder.parent)
            folder = folder.parent
        _make(target.parent)
        part.replace(target)
        self._touched.add(target.parent)


def to_write(root: Path, path: str) -> Path:
    """Where a file of an index is written or deleted; a link in its place is replaced or deleted itself.

    Raises:
        DcaError: DCA-908 when its path leads out of the index, DCA-904 when a symbolic link does.
    """
    top, *more = inside(path).split("/")
    folder = root / top
    for number, part in enumerate(more):
        if folder.is_symlink() and (number or top not in MAY_BE_LINKS):
            raise linked(root, str(folder.relative_to(root)))
        folder /= part
    return folder


def to_read(root: Path, path: str) -> Path:
    """Where a file of an index is read.

    Raises:
        DcaError: DCA-908 when its path leads out of the index, DCA-904 when a symbolic link does.
    """
    file = to_write(root, path)
    if file.is_symlink():
        raise linked(root, path)
    return file


def linked(root: Path, path: str, why: str = "") -> DcaError:
    """The error for a symbolic link that is not followed."""
    return DcaError(
        "DCA-904",
        f"{path} in the index {root} is a symbolic link; it was not followed.",
        why=why or f"only {', '.join(MAY_BE_LINKS)} may be links.",
        remedy="replace the link with the files that it leads to, or remove it.",
    )


def _make(folder: Path) -> None:
    """A folder that the web server may read, whatever this user's umask is."""
    for path in [*reversed(folder.parents), folder]:
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            path.chmod(0o755)


def _signature(status: os.stat_result) -> str:
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


def _linked(source: Path, part: Path) -> bool:
    """Whether a file could be linked in the place of `part`: on one file system no byte of a wheel is copied."""
    status = source.stat()
    # A link shares its owner and mode, and the web server must be able to read it.
    if status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) != 0o644:
        return False
    link = part.with_name(f"{part.name}.link")
    try:
        os.link(source.resolve(), link)
    except OSError:
        return False
    link.replace(part)
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except OSError:
        return False
    return True
