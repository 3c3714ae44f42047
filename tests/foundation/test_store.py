"""Atomic files and folders, hashes, locks."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.foundation import data, store
from dca.foundation.errors import DcaError


def fail_on_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- files ---------------------------------------------------------------------------------------------------


def test_a_written_file_is_whole_readable_and_alone(tmp_path: Path) -> None:
    store.write_bytes(tmp_path / "new" / "file", b"content")
    assert (tmp_path / "new" / "file").read_bytes() == b"content"
    assert stat.S_IMODE((tmp_path / "new" / "file").stat().st_mode) == 0o644
    assert names(tmp_path / "new") == ["file"]


def test_a_file_is_replaced_with_the_mode_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "tool"
    store.write_bytes(path, b"old")
    store.write_bytes(path, b"new", mode=0o755)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert names(tmp_path) == ["tool"]


def test_a_reader_keeps_the_old_content_of_a_file_that_is_replaced(tmp_path: Path) -> None:
    store.write_bytes(tmp_path / "file", b"old")
    with (tmp_path / "file").open("rb") as reader:
        store.write_bytes(tmp_path / "file", b"new")
        assert reader.read() == b"old"


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_bytes(tmp_path / "file", b"old")
    fail_on_fsync(monkeypatch)
    with pytest.raises(OSError, match="No space") as refused:
        store.write_bytes(tmp_path / "file", b"new")
    assert refused.value.errno == errno.ENOSPC
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_write_that_the_system_cuts_short_leaves_the_old_file(tmp_path: Path) -> None:
    store.write_bytes(tmp_path / "file", b"old")
    program = (
        "import resource, sys; from pathlib import Path; from dca.foundation import store;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "store.write_bytes(Path(sys.argv[1]), b'n' * 5000)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "file")],
        env={**os.environ, "PYTHONPATH": str(data.PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "File too large" in done.stderr
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_file_whose_content_is_the_same_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert store.write_if_changed(path, b"content")
    os.utime(path, ns=(1, 1))
    assert not store.write_if_changed(path, b"content")
    assert path.stat().st_mtime_ns == 1


def test_a_file_whose_content_differs_is_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    os.utime(path, ns=(1, 1))
    assert store.write_if_changed(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mtime_ns > 1


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_file_under_way_is_removed_on_an_error(kind: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")

    def write() -> None:
        with store.incoming(tmp_path / "file") as part:
            part.write_bytes(b"half")
            assert part.parent == tmp_path
            raise kind

    with pytest.raises(kind):
        write()
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


def test_a_long_name_of_wide_letters_can_be_written(tmp_path: Path) -> None:
    store.write_bytes(tmp_path / ("語" * 80), b"content")
    assert names(tmp_path) == ["語" * 80]


# --- folders -------------------------------------------------------------------------------------------------


def test_a_folder_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with store.incoming_folder(target) as part:
        (part / "file").write_bytes(b"content")
        assert not target.exists()
    assert (target / "file").read_bytes() == b"content"
    assert stat.S_IMODE(target.stat().st_mode) == 0o755
    assert names(target.parent) == ["target"]


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()
    with store.incoming_folder(tmp_path / "target") as part:
        (part / "new").touch()
        assert names(tmp_path / "target") == ["old"]
    assert names(tmp_path / "target") == ["new"]
    assert names(tmp_path) == ["target"]


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_a_folder_under_way_disappears_on_an_error(kind: type[BaseException], tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "old").touch()

    def make() -> None:
        with store.incoming_folder(tmp_path / "target") as part:
            (part / "half").touch()
            raise kind

    with pytest.raises(kind):
        make()
    assert names(tmp_path / "target") == ["old"]
    assert names(tmp_path) == ["target"]


def test_a_folder_with_read_only_folders_is_removed(tmp_path: Path) -> None:
    deep = tmp_path / "target" / "a" / "b"
    deep.mkdir(parents=True)
    (deep / "file").touch()
    for folder in (deep, deep.parent):
        folder.chmod(0o555)
    store.remove(tmp_path / "target")
    assert names(tmp_path) == []


@pytest.mark.slow
def test_what_a_killed_run_left_under_way_is_swept_and_nothing_else(tmp_path: Path) -> None:
    left = (
        "import os, sys; from pathlib import Path; from dca.foundation import store\n"
        "with store.incoming_folder(Path(sys.argv[1])) as part, store.incoming(Path(sys.argv[1])):\n"
        "    (part / 'half').touch(); os._exit(0)"
    )
    env = {**os.environ, "PYTHONPATH": str(data.PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    for name in ("mine", "other"):
        subprocess.run([sys.executable, "-c", left, str(tmp_path / name)], env=env, check=True)
    assert len(names(tmp_path)) == 4
    (tmp_path / "mine").mkdir()
    store.sweep(tmp_path / "mine")
    assert [name.split(".")[1] or name for name in names(tmp_path) if name != "mine"] == ["other", "other"]
    assert (tmp_path / "mine").is_dir()


def test_what_a_living_run_makes_is_not_swept(tmp_path: Path) -> None:
    with store.incoming_folder(tmp_path / "folder") as folder, store.incoming(tmp_path / "file") as file:
        (folder / "half").touch()
        for name in ("folder", "file"):
            store.sweep(tmp_path / name)
        assert (folder / "half").exists()
        # A second writer of the same name neither.
        store.write_bytes(tmp_path / "file", b"second")
        assert file.exists()
        file.write_bytes(b"first")
        file.replace(tmp_path / "file")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "file").read_bytes() == b"first"


def test_opening_a_cache_removes_what_a_killed_run_left_and_not_what_a_living_one_uses(tmp_path: Path) -> None:
    left = tmp_path / f".{store.SCRATCH}.killed.part"
    (left / "source").mkdir(parents=True)
    with store.scratch(tmp_path) as used:
        (left / "source").mkdir(parents=True, exist_ok=True)
        store.Store(tmp_path).open()
        assert not left.exists()
        assert used.is_dir()


@pytest.mark.slow
@pytest.mark.parametrize("write", ["incoming", "incoming_folder", "scratch"])
def test_the_next_writer_removes_what_a_killed_one_left(write: str, tmp_path: Path) -> None:
    target = tmp_path if write == "scratch" else tmp_path / "target"
    left = (
        "import os, sys; from pathlib import Path; from dca.foundation import store\n"
        f"with store.{write}(Path(sys.argv[1])): os._exit(0)"
    )
    env = {**os.environ, "PYTHONPATH": str(data.PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", left, str(target)], env=env, check=True)
    (before,) = names(tmp_path)
    with getattr(store, write)(target):
        (under_way,) = names(tmp_path)
        assert under_way != before


@pytest.mark.slow
def test_the_next_writer_of_a_link_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    left = (
        "import os, sys; from pathlib import Path; from dca.foundation import store\n"
        "Path.replace = lambda *_: os._exit(0)\n"
        "store.write_link(Path(sys.argv[1]), 'blob')"
    )
    env = {**os.environ, "PYTHONPATH": str(data.PACKAGE.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", left, str(tmp_path / "link")], env=env, check=True)
    (before,) = names(tmp_path)
    assert before.endswith(".part")
    store.write_link(tmp_path / "link", "blob")
    assert names(tmp_path) == ["link"]
    assert (tmp_path / "link").readlink() == Path("blob")


# --- hashes --------------------------------------------------------------------------------------------------


def make_tree(root: Path) -> Path:
    (root / "a" / "b").mkdir(parents=True)
    (root / "a" / "b" / "file").write_bytes(b"content")
    (root / "a" / "tool").write_bytes(b"#!/bin/sh\n")
    (root / "a" / "tool").chmod(0o755)
    (root / "link").symlink_to("a/b/file")
    (root / "nowhere").symlink_to("missing")
    return root


def test_the_hash_of_a_file_is_its_sha256(tmp_path: Path) -> None:
    content = os.urandom((1 << 20) + 17)
    (tmp_path / "file").write_bytes(content)
    assert store.sha256_file(tmp_path / "file") == hashlib.sha256(content).hexdigest() == store.sha256_bytes(content)


def test_a_copy_made_later_elsewhere_under_another_umask_has_the_same_hash(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    before = os.umask(0o077)
    try:
        other = make_tree(tmp_path / "elsewhere" / "copy")
        (other / "a" / "tool").chmod(0o700)
    finally:
        os.umask(before)
    os.utime(other / "a" / "b" / "file", ns=(1, 1))
    assert stat.S_IMODE((other / "a" / "b" / "file").stat().st_mode) == 0o600
    assert store.tree_hash(other) == store.tree_hash(tree)
    shutil.copytree(tree, tmp_path / "third", symlinks=True)
    assert store.tree_hash(tmp_path / "third") == store.tree_hash(tree)


def relink(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


CHANGES: dict[str, Callable[[Path], object]] = {
    "content": lambda root: (root / "a/b/file").write_bytes(b"Content"),
    "name": lambda root: (root / "a/b/file").rename(root / "a/b/File"),
    "folder's name": lambda root: (root / "a/b").rename(root / "a/c"),
    "executable bit": lambda root: (root / "a/tool").chmod(0o644),
    "one more file": lambda root: (root / "a/empty").touch(),
    "one file less": lambda root: (root / "a/tool").unlink(),
    "link target": lambda root: relink(root / "link", "a/tool"),
    "target of a link to nothing": lambda root: relink(root / "nowhere", "gone"),
    "link instead of file": lambda root: relink(root / "a/tool", "b/file"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_hash_of_a_tree_changes_with(change: str, tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    before = store.tree_hash(tree)
    CHANGES[change](tree)
    assert store.tree_hash(tree) != before


def test_names_with_spaces_do_not_make_two_trees_look_the_same(tmp_path: Path) -> None:
    for folder, name, target in (("left", "a b", "c"), ("right", "a", "b c")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).symlink_to(target)
    assert store.tree_hash(tmp_path / "left") != store.tree_hash(tmp_path / "right")


def test_a_name_with_a_line_break_does_not_make_two_trees_look_the_same(tmp_path: Path) -> None:
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    (tmp_path / "two" / "a").write_bytes(b"1")
    (tmp_path / "two" / "b").write_bytes(b"2")
    (tmp_path / "one" / f"a {store.sha256_bytes(b'1')}\nfile b").write_bytes(b"2")
    assert store.tree_hash(tmp_path / "one") != store.tree_hash(tmp_path / "two")


def test_what_is_skipped_has_no_say_in_the_hash(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    before = store.tree_hash(tree)
    (tree / "a" / ".git").mkdir()
    (tree / "a" / ".git" / "HEAD").touch()
    assert store.tree_hash(tree, skip=lambda name: name.endswith("/.git")) == before
    assert store.tree_hash(tree) != before


def test_links_are_named_and_not_followed(tmp_path: Path) -> None:
    tree = make_tree(tmp_path / "tree")
    (tree / "loop").symlink_to(".")
    assert [name for name, _ in store.walk(tree)] == ["a/b/file", "a/tool", "link", "loop", "nowhere"]


# --- locks and the cache -------------------------------------------------------------------------------------


def test_a_lock_waits_for_its_holder_and_says_so_once(tmp_path: Path) -> None:
    cache = store.Store(tmp_path)
    told = threading.Semaphore(0)
    order: list[str] = []

    def second() -> None:
        with cache.lock("tree", "key", told.release):
            order.append("second")

    with cache.lock("tree", "key"):
        thread = threading.Thread(target=second)
        thread.start()
        assert told.acquire(timeout=20)
        order.append("first")
    thread.join(timeout=20)
    assert order == ["first", "second"]
    assert not told.acquire(blocking=False)


def test_the_holder_of_a_lock_is_named_while_it_lives(tmp_path: Path) -> None:
    cache = store.Store(tmp_path)
    with cache.lock("tree", "key"):
        assert cache.holder("tree", "key") == f"another run (process {os.getpid()})"
    assert cache.holder("tree", "key") == "another run, or a leftover of a killed one,"


def test_another_key_is_not_waited_for(tmp_path: Path) -> None:
    cache = store.Store(tmp_path)
    with cache.lock("tree", "one"), cache.lock("tree", "two", lambda: pytest.fail("waited")):
        pass


def test_a_lock_is_free_again_after_an_error(tmp_path: Path) -> None:
    cache = store.Store(tmp_path)
    with pytest.raises(ValueError, match="x"), cache.lock("tree", "key"):
        raise ValueError("x")
    with cache.lock("tree", "key", lambda: pytest.fail("waited")):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK])
def test_a_file_system_without_locks_is_named_and_not_worked_on(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", unknown)
    cache = store.Store(tmp_path / "cache")
    with pytest.raises(DcaError) as refused, cache.lock("tree", "key"):
        pytest.fail("went on without a lock")
    with store.held() as held:
        assert held == ()
    assert refused.value.code == "DCA-102"
    assert str(tmp_path / "cache") in refused.value.what
    assert os.strerror(number) in refused.value.why
    assert "--cache-dir" in refused.value.remedy
    assert "CACHE=DIR" in refused.value.remedy


def test_the_cache_is_marked_so_that_backups_leave_it_out(tmp_path: Path) -> None:
    store.Store(tmp_path / "cache").open()
    tag = tmp_path / "cache" / "CACHEDIR.TAG"
    assert tag.read_bytes().startswith(b"Signature: 8a477f597d28d172789f06886806bc55\n")
    os.utime(tag, ns=(1, 1))
    store.Store(tmp_path / "cache").open()
    assert tag.stat().st_mtime_ns == 1
