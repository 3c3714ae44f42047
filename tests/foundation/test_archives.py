"""Archives that somebody else wrote: what is unpacked, and what is refused."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from dca.foundation import archives
from dca.foundation.errors import DcaError

CONTENT = os.urandom(700_000)


# --- unpacking an sdist --------------------------------------------------------------------------------------


def member(name: str, content: bytes = b"x", *, mode: int = 0o644) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    info.mode = mode
    return info, content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info, b""


def sdist(folder: Path, *members: tuple[tarfile.TarInfo, bytes]) -> Path:
    path = folder / "thing-1.0.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.usefixtures("each_tarfile")
def test_an_sdists_single_folder_becomes_the_folder(tmp_path: Path) -> None:
    archive = sdist(
        tmp_path,
        member("thing-1.0/setup.py", b"code"),
        member("thing-1.0/tool.sh", b"#!", mode=0o755),
        link("thing-1.0/inner/link", "../setup.py"),
    )
    out = tmp_path / "out"
    out.mkdir()
    archives.unpack_sdist(archive, out / "source")
    assert (out / "source" / "setup.py").read_bytes() == b"code"
    assert (out / "source" / "tool.sh").stat().st_mode & 0o100
    assert (out / "source" / "inner" / "link").read_bytes() == b"code"
    assert [path.name for path in out.iterdir()] == ["source"]


GOOD = member("thing-1.0/setup.py")


@pytest.mark.usefixtures("each_tarfile")
@pytest.mark.parametrize(
    "members",
    [
        pytest.param([GOOD, member("thing-1.0/../../escaped")], id="a path that leaves"),
        pytest.param([member("../escaped")], id="a path that begins outside"),
        pytest.param([GOOD, member("/tmp/escaped")], id="an absolute path beside others"),
        pytest.param([member("/thing-1.0/escaped")], id="an absolute path alone"),
        pytest.param([GOOD, link("thing-1.0/link", "/etc")], id="a link to an absolute path"),
        pytest.param([GOOD, link("thing-1.0/link", "../../escaped")], id="a link that leaves the archive"),
        pytest.param([GOOD, link("thing-1.0/link", "../escaped")], id="a link that leaves the top folder"),
        pytest.param([GOOD, link("thing-1.0/link", "../../escaped", tarfile.LNKTYPE)], id="a hard link that leaves"),
        pytest.param(
            [GOOD, link("thing-1.0/dir", "../.."), member("thing-1.0/dir/escaped")], id="a file through a link"
        ),
        pytest.param([GOOD, link("thing-1.0/device", "", tarfile.CHRTYPE)], id="a device"),
        pytest.param([GOOD, member("other/file")], id="two top folders"),
        pytest.param([member("thing-1.0")], id="a file and no folder"),
        pytest.param([], id="nothing"),
    ],
)
def test_an_sdist_that_is_not_one_folder_of_its_own_files_is_refused(
    members: list[tuple[tarfile.TarInfo, bytes]], tmp_path: Path
) -> None:
    archive = sdist(tmp_path, *members)
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with pytest.raises(DcaError) as refused:
        archives.unpack_sdist(archive, out / "source")
    assert refused.value.code == "DCA-404"
    assert archive.name in refused.value.what
    assert list(out.iterdir()) == []
    assert [path.name for path in tmp_path.rglob("escaped*")] == []


def damaged(content: bytes, how: str) -> bytes:
    middle = len(content) // 2
    if how == "cut":
        return content[:middle]
    if how == "flipped":
        return content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 64]) + content[middle + 64 :]
    return {"empty": b"", "junk": b"junk " * 100}[how]


@pytest.mark.usefixtures("each_tarfile")
@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "junk"])
def test_a_damaged_sdist_is_refused(how: str, tmp_path: Path) -> None:
    text = b"".join(b"%d " % number for number in range(20_000))
    archive = sdist(tmp_path, member("thing-1.0/a", text), member("thing-1.0/b", CONTENT), member("thing-1.0/c", text))
    archive.write_bytes(damaged(archive.read_bytes(), how))
    (tmp_path / "out").mkdir()
    with pytest.raises(DcaError) as refused:
        archives.unpack_sdist(archive, tmp_path / "out" / "source")
    assert refused.value.code == "DCA-404"
    assert "damaged" in refused.value.what
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.slow
@pytest.mark.usefixtures("each_tarfile")
def test_an_sdist_of_compressed_text_that_is_damaged_is_refused(tmp_path: Path) -> None:
    text = b"".join(b"%d " % number for number in range(200_000))
    archive = sdist(tmp_path, member("thing-1.0/a", text), member("thing-1.0/b", text))
    archive.write_bytes(damaged(archive.read_bytes(), "flipped"))
    (tmp_path / "out").mkdir()
    with pytest.raises(DcaError) as refused:
        archives.unpack_sdist(archive, tmp_path / "out" / "source")
    assert refused.value.code == "DCA-404"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_python_without_filters_takes_those_of_the_backport() -> None:
    backport = pytest.importorskip("backports.tarfile")
    hidden = "import tarfile; vars(tarfile).pop('data_filter', 0)"
    probe = f"{hidden}; from dca.foundation import archives; print(archives.tarfile.__file__)"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    output = subprocess.run([sys.executable, "-c", probe], env=env, text=True, capture_output=True, check=True).stdout
    assert output.strip() == backport.__file__


# --- unpacking a wheel ---------------------------------------------------------------------------------------


def zipped(folder: Path, members: dict[str, tuple[bytes, int]]) -> Path:
    path = folder / "thing-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, (content, mode) in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            archive.writestr(info, content)
    return path


FILE = stat.S_IFREG | 0o644


def test_a_wheels_files_and_their_executable_bits_are_unpacked(tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"thing/__init__.py": (b"code", FILE), "thing/bin/tool": (b"#!", stat.S_IFREG | 0o755)})
    archives.unpack_wheel(archive, tmp_path / "out")
    assert (tmp_path / "out/thing/__init__.py").read_bytes() == b"code"
    assert not (tmp_path / "out/thing/__init__.py").stat().st_mode & 0o100
    assert (tmp_path / "out/thing/bin/tool").stat().st_mode & 0o100


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param("../escaped", FILE, id="a path that begins outside"),
        pytest.param("thing/../../escaped", FILE, id="a path that leaves"),
        pytest.param("/escaped", FILE, id="an absolute path"),
        pytest.param("..\\escaped", FILE, id="a path with backslashes"),
        pytest.param("thing/link", stat.S_IFLNK | 0o777, id="a link"),
    ],
)
def test_a_wheel_with_a_path_that_leaves_or_a_link_is_refused_before_anything_is_written(
    name: str, mode: int, tmp_path: Path
) -> None:
    archive = zipped(tmp_path, {"thing/good.py": (b"x", FILE), name: (b"../../escaped", mode)})
    with pytest.raises(DcaError) as refused:
        archives.unpack_wheel(archive, tmp_path / "out")
    assert refused.value.code == "DCA-404"
    assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.rglob("escaped*")] == []


@pytest.mark.parametrize("how", ["cut", "flipped", "empty", "junk"])
def test_a_damaged_wheel_is_refused_and_leaves_nothing(how: str, tmp_path: Path) -> None:
    archive = zipped(tmp_path, {"thing/a.so": (CONTENT, FILE), "thing/b.so": (CONTENT, FILE)})
    archive.write_bytes(damaged(archive.read_bytes(), how))
    with pytest.raises(DcaError) as refused:
        archives.unpack_wheel(archive, tmp_path / "out")
    assert refused.value.code == "DCA-404"
    assert archive.name in refused.value.what
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [archive]
