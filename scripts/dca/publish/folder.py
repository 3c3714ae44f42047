"""An index in a folder that any web server serves. Each file is written completely, then moved to its name."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from dca.foundation import documents, store
from dca.foundation.errors import DcaError, disk_full
from dca.publish import layout
from dca.publish.place import inside
from dca.publish.values import Settings

# The folders that may be symbolic links to folders elsewhere.
MAY_BE_LINKS = (layout.FILES, layout.EVIDENCE, layout.RECORDS)


class Folder:
    """An index in a folder.

    `files`, `evidence` and `records` may be symbolic links to other folders. Files are read and written there, but only
    files with the hash that a record names are deleted there. No other symbolic link is followed.

    Args:
        root: the folder; the first `dca publish` creates it.
        waiting: called once with a message if another command holds the lock.
    """

    alone = True

    def __init__(self, root: Path, waiting: Callable[[str], None] = lambda _: None) -> None:
        self.root = root
        self.name = str(root)
        self._waiting = waiting
        self._touched: set[Path] = set()

    @contextlib.contextmanager
    def writing(self, *, new: bool = False) -> Iterator[None]:
        """Hold the index's lock; readers need not wait.

        Args:
            new: whether an empty or missing folder becomes an index.

        Raises:
            DcaError: DCA-904 if the folder holds something else, or has a symbolic link that is not allowed.
        """
        self._check_links()
        if new:
            self._claim()
        self.check()
        locks = store.Store(self.root / layout.OWN)

        def waiting() -> None:
            self._waiting(f"{locks.holder('publish', 'index')} is writing to this index; waiting for it.")

        with locks.lock("publish", "index", waiting):
            # Only the holder of the lock writes here, so this is a leftover of a killed command.
            if (staging := self.root / layout.STAGING).exists():
                store.remove(staging)
            _make(staging)
            self._touched.clear()
            try:
                yield
            finally:
                store.remove(staging)

    def check(self) -> None:
        """Check that the folder is an index.

        Raises:
            DcaError: DCA-904 if it is not.
        """
        if not (self.root / layout.SETTINGS).is_file():
            names = sorted(path.name for path in self.root.iterdir()) if self.root.is_dir() else []
            raise DcaError(
                "DCA-904",
                f"{self.root} is not an index that this tool made.",
                why=f"it has no {layout.SETTINGS}"
                + (f", and holds {', '.join(names[:3])}." if names else "; it is empty or does not exist."),
                remedy="name the folder of an index; to publish, an empty folder or one that does not exist yet.",
            )

    def _check_links(self) -> None:
        """Reject links in folders where files are deleted by name, without a check of their hashes."""
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
        """Make an empty or missing folder an index; leave anything else unchanged."""
        if self.root.is_dir() and {path.name for path in self.root.iterdir()} - {layout.OWN}:
            return
        if not self.root.exists() or self.root.is_dir():
            _make(self.root / layout.OWN)
            if not (self.root / layout.SETTINGS).exists():
                store.write_bytes(self.root / layout.SETTINGS, documents.dumps(Settings()))

    def signatures(self) -> dict[str, str]:
        """The records' signatures, from the file system's metadata."""
        signatures = {}
        with contextlib.suppress(FileNotFoundError), os.scandir(self.root / layout.RECORDS) as entries:
            for entry in entries:
                if entry.name.endswith(".whl.json"):
                    # Reading a link is rejected later; a broken link must not hide the other records.
                    signatures[entry.name.removesuffix(".json")] = _signature(entry.stat(follow_symlinks=False))
        return signatures

    def pages(self) -> set[str]:
        """Paths of the pages: those of all views, and the front page."""
        paths = {name for name in (layout.FRONT, layout.AS_IT_IS) if (self.root / name).is_file()}
        for view in self.root.iterdir():
            if layout.VIEW.fullmatch(view.name) and view.is_dir() and not view.is_symlink():
                paths |= {f"{view.name}/{relative}" for relative, _ in store.walk(view) if layout.is_plain(relative)}
        return paths

    def strays(self, wanted: set[str]) -> dict[str, int]:
        """Sizes of files that belong to no wheel; folders behind links are skipped, they may hold other files."""
        sizes = {}
        for top in (layout.FILES, layout.EVIDENCE):
            if (self.root / top).is_dir() and not (self.root / top).is_symlink():
                for relative, path in store.walk(self.root / top):
                    # `dca verify` reports files whose names are not plain.
                    if f"{top}/{relative}" not in wanted and layout.is_plain(relative):
                        sizes[f"{top}/{relative}"] = path.lstat().st_size
        if (self.root / layout.ROWS).is_file():
            sizes[layout.ROWS] = (self.root / layout.ROWS).lstat().st_size
        return sizes

    def read(self, path: str) -> bytes:
        """A file's content."""
        return to_read(self.root, path).read_bytes()

    def has(self, path: str, sha256: str) -> bool:
        """Whether there is a file with that hash, which no other name shares and which the web server can read."""
        target = to_write(self.root, path)
        if target.is_symlink() or not target.is_file():
            return False
        status = target.stat()
        own = status.st_nlink == 1 and status.st_mode & 0o444 == 0o444
        return own and store.sha256_file(target) == sha256

    def check_room(self, size: int) -> None:
        """Check that the disk has so many bytes left."""
        folder = next(
            path for path in (self.root / layout.FILES, self.root, *self.root.absolute().parents) if path.exists()
        )
        if (free := shutil.disk_usage(folder).free) < size:
            raise disk_full(f"at {folder}", f"{size:,} bytes are needed, and {free:,} are left.")

    def put(self, path: str, content: bytes | Path, sha256: str, *, heal: bool = False) -> None:  # noqa: ARG002 - locked
        """Write a file; no record names this path with another hash, so an existing file may be replaced."""
        target = to_write(self.root, path)
        if self.has(path, sha256):
            return
        if isinstance(content, bytes):
            self._write(target, content)
            return
        with store.incoming(self._staged(target)) as part:
            # A copy of its own: what changes the wheel where it was built does not change it here.
            shutil.copyfile(content, part)
            part.chmod(0o644)
            _sync(part)
            # The file may have been changed since it was inspected.
            if (afterwards := store.sha256_file(part)) != sha256:
                raise DcaError(
                    "DCA-901",
                    f"{content.name} is not published: it was changed meanwhile.",
                    why=f"sha256 before {sha256},\nafterwards {afterwards}.",
                    remedy="wait until the program that writes it has finished, and run the command again.",
                )
            self._move(part, target)

    def put_record(self, name: str, content: bytes, was: str | None) -> str:  # noqa: ARG002 - nobody else writes
        """Write a record; the lock prevents concurrent changes."""
        target = to_write(self.root, layout.record(name))
        self._write(target, content)
        return _signature(target.stat())

    def put_page(self, path: str, content: bytes) -> None:
        """Write a page if it differs."""
        target = to_write(self.root, path)
        with contextlib.suppress(FileNotFoundError):
            if not target.is_symlink() and target.stat().st_size == len(content) and target.read_bytes() == content:
                return
        self._write(target, content)

    def put_pages(self, pages: Mapping[str, bytes]) -> None:
        """Write all pages; those of a view are replaced at once, so that no two forms of a page differ at any time."""
        views: dict[str, dict[str, bytes]] = {}
        for path, content in pages.items():
            # Also for the error that a link among the folders is.
            view, slash, _ = to_write(self.root, path).relative_to(self.root).as_posix().partition("/")
            if slash:
                views.setdefault(view, {})[path.removeprefix(f"{view}/")] = content
        for view, inside_view in views.items():
            if not self._replaced(view, inside_view):
                for path, content in inside_view.items():
                    self.put_page(f"{view}/{path}", content)
        self.barrier()
        for path, content in pages.items():
            if "/" not in path:
                self.put_page(path, content)
        self.barrier()
        for folder in [path for path in self.root.iterdir() if layout.VIEW.fullmatch(path.name)]:
            if folder.name not in views and folder.is_dir() and not folder.is_symlink():
                aside = self._staged(folder)
                folder.rename(aside)
                self._drop(aside)

    def _replaced(self, view: str, pages: Mapping[str, bytes]) -> bool:
        """Replace a view's folder by a new one; whether the file system can do that.

        Args:
            view: its name.
            pages: all of its pages by their paths in it.
        """
        folder = self.root / view
        now = dict(store.walk(folder)) if folder.is_dir() else {}
        same = {
            path
            for path, content in pages.items()
            if path in now and not now[path].is_symlink() and now[path].read_bytes() == content
        }
        if same == set(pages) == set(now):
            return True
        new = self._staged(folder)
        for path, content in pages.items():
            target = new / path
            _make(target.parent)
            if path in same:
                try:
                    target.hardlink_to(now[path])
                except OSError:
                    return False
            else:
                self._write_new(target, content)
        for inner in {(new / path).parent for path in pages} | {new}:
            _sync(inner)
        if not folder.exists():
            new.rename(folder)
            self._touched.add(self.root)
            return True
        if not store.exchanged(new, folder):
            return False
        self._drop(new)
        return True

    def _drop(self, aside: Path) -> None:
        """Delete a folder that was moved aside; only when its name is durably another's, so that a crash loses none."""
        self._touched |= {self.root, aside.parent}
        self.barrier()
        store.remove(aside)

    def barrier(self) -> None:
        """Sync the folders: a moved file is durable only when its folder is."""
        for folder in sorted(self._touched):
            if folder.is_dir():
                _sync(folder)
        self._touched.clear()

    def delete(self, paths: list[str], hashes: Mapping[str, str] | None = None) -> None:
        """Delete files, and the folders that become empty."""
        files = [to_write(self.root, path) for path in paths]
        for path, file in zip(paths, files, strict=True):
            if (self.root / path.split("/")[0]).is_symlink() and "/" in path and file.is_file():
                sha256 = (hashes or {}).get(path)
                if file.is_symlink() or sha256 is None or store.sha256_file(file) != sha256:
                    raise DcaError(
                        "DCA-904",
                        f"{path} was not deleted: it is not the file that its record names.",
                        why=f"{path.split('/')[0]} is a symbolic link, so the file may not belong to the index.",
                        remedy="delete or move the file yourself, then run the command again.",
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
            self._write_new(part, data)
            self._move(part, target)

    @staticmethod
    def _write_new(path: Path, data: bytes) -> None:
        with path.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        path.chmod(0o644)

    def _staged(self, target: Path) -> Path:
        # In one folder, not beside the final name: a search for leftovers among 10,000 files would be slow.
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
    """The path to write or delete a file of an index; a link at that path is itself replaced or deleted.

    Raises:
        DcaError: DCA-908 if its path leads out of the index, DCA-904 if one of its folders is a symbolic link.
    """
    top, *more = inside(path).split("/")
    folder = root / top
    for number, part in enumerate(more):
        if folder.is_symlink() and (number or top not in MAY_BE_LINKS):
            raise linked(root, str(folder.relative_to(root)))
        folder /= part
    return folder


def to_read(root: Path, path: str) -> Path:
    """The path to read a file of an index.

    Raises:
        DcaError: DCA-908 if its path leads out of the index, DCA-904 if it or one of its folders is a symbolic link.
    """
    file = to_write(root, path)
    if file.is_symlink():
        raise linked(root, path)
    return file


def linked(root: Path, path: str) -> DcaError:
    """The error for a symbolic link that is not followed."""
    return DcaError(
        "DCA-904",
        f"{path} in the index {root} is a symbolic link, which was not followed.",
        why=f"only {', '.join(MAY_BE_LINKS)} may be links.",
        remedy="replace the link with the files that it points to, or remove it.",
    )


def _make(folder: Path) -> None:
    """Create a folder that the web server can read, regardless of the umask."""
    for path in [*reversed(folder.parents), folder]:
        if not path.is_dir():
            path.mkdir(exist_ok=True)
            path.chmod(0o755)


def _signature(status: os.stat_result) -> str:
    return f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"


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
