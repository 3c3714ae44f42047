"""Entries of untrusted zip archives."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from dca.foundation import archives, zips


def make(path: Path, entries: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_entry_is_read_in_blocks(tmp_path: Path, method: int) -> None:
    content = bytes(range(256)) * 10_000
    with zips.opened(make(tmp_path / "a.zip", {"a": content, "b": b""}, method)) as archive:
        blocks = list(zips.blocks(archive, archive.getinfo("a")))
        assert b"".join(blocks) == zips.read(archive, "a") == content
        assert max(map(len, blocks)) <= 1 << 20
        assert zips.read(archive, "b") == b""


def test_an_entry_larger_than_the_limit_is_not_read(tmp_path: Path) -> None:
    with zips.opened(make(tmp_path / "a.zip", {"a": b"12345"})) as archive:
        assert zips.read(archive, "a", 5) == b"12345"
        with pytest.raises(zips.LimitError, match="a has 5 bytes, more than the 4 that are read"):
            zips.read(archive, "a", 4)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_an_entry_compressed_in_another_way_is_not_read(tmp_path: Path, method: int) -> None:
    with zips.opened(make(tmp_path / "a.zip", {"a": b"12345"}, method)) as archive, pytest.raises(zips.MethodError):
        zips.read(archive, "a")


def test_an_archive_of_too_many_entries_is_refused_before_they_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make(tmp_path / "a.zip", {f"{number:0100}": b"" for number in range(100)})
    monkeypatch.setattr(zips, "MOST_ENTRIES", 99)
    with pytest.raises(zips.LimitError, match="100 entries"), zips.opened(path):
        pass
    monkeypatch.setattr(zips, "MOST_LISTED", 10_000)
    with pytest.raises(zips.LimitError, match="list of entries has 1"), zips.opened(path):
        pass


def test_an_archive_that_would_unpack_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive, archive.open("a", "w") as stream:
        for _ in range(30):
            stream.write(bytes(1 << 20))
    with zips.opened(path):
        pass
    monkeypatch.setattr(archives, "SMALL_UNPACKED", 1 << 20)
    with pytest.raises(zips.LimitError, match="would unpack to 30 MiB"), zips.opened(path):
        pass
