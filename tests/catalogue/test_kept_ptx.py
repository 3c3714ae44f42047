"""Kept PTX: its file is the same for the same texts, and what is damaged or foreign is not read."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from dca.binaries.fatbin import PTX, Code
from dca.catalogue import kept_ptx
from dca.catalogue.kept_ptx import Text
from dca.foundation import store
from dca.foundation.errors import DcaError

MODULE = "package/_C.abi3.so"


def ptx(arch: str, *entries: str, body: str = "") -> Code:
    kernels = "\n".join(f".visible .entry {name}()\n{{\n{body}ret;\n}}" for name in entries)
    target = arch.replace(".", "")
    return Code(PTX, arch, f".version 8.4\n.target sm_{target}\n.address_size 64\n{kernels}\n\0\0".encode())


TEXTS = {
    "a.cu": [ptx("8.0", "scale", "same"), ptx("9.0", "scale", "same"), ptx("9.0a", "scale", "same", body="wgmma;")],
    "b.cu": [ptx("8.0", "other"), ptx("9.0", "other")],
    "c.cu": [ptx("8.0", "hidden", "c"), ptx("8.0", "hidden", "same")],
    "d.cu": [ptx("8.0", "hidden", "d")],
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    module = tmp_path / "site-packages" / MODULE
    store.write_bytes(module, b"a module")
    return write(tmp_path / "wheel.ptx.zip", store.sha256_file(module))


def write(file: Path, sha256: str) -> Path:
    texts = [
        (Text.of(code, MODULE, source, "12.4.131"), kept_ptx.content(code))
        for source, codes in TEXTS.items()
        for code in codes
    ]
    record = kept_ptx.write(file, {MODULE: sha256}, texts)
    assert (record.texts, record.archs) == (8, ("8.0", "9.0", "9.0a"))
    assert record.sha256 == store.sha256_file(file)
    return file


@pytest.mark.parametrize(
    ("entry", "arch", "kernels", "expected"),
    [
        ("scale", "8.0", (), TEXTS["a.cu"][0]),
        ("scale", "8.9", (), TEXTS["a.cu"][0]),
        ("other", "9.0", (), TEXTS["b.cu"][1]),
        ("other", "12.0", (), TEXTS["b.cu"][1]),
        ("other", "7.5", (), None),
        ("missing", "9.0", (), None),
        ("hidden", "8.0", ("d", "hidden"), TEXTS["d.cu"][0]),
        ("same", "8.0", ("same", "hidden"), TEXTS["c.cu"][1]),
        ("same", "8.0", ("same", "scale"), TEXTS["a.cu"][0]),
        ("hidden", "8.0", ("hidden", "other"), None),
    ],
)
def test_a_kernel_is_found(written: Path, entry: str, arch: str, kernels: tuple[str, ...], expected: Code) -> None:
    kept = kept_ptx.read(written)
    lists = (frozenset(kernels), frozenset({entry, "of another arch"})) if kernels else ()
    found = kept.find(MODULE, entry, arch, lists)
    assert found == (kept_ptx.content(expected) if expected else None)
    assert found == kept.find(written.parent / "site-packages" / MODULE, entry, arch, lists)
    assert kept.find("package/_D.abi3.so", entry, arch) is None


def test_the_texts_in_another_order_give_the_same_bytes(written: Path, tmp_path: Path) -> None:
    kept = kept_ptx.read(written)
    texts = [(text, kept.read(text)) for text in reversed(kept.manifest.texts)]
    again = kept_ptx.write(tmp_path / "again.zip", kept.manifest.modules, texts)
    assert again.sha256 == store.sha256_file(written)


def test_one_of_several_kernels_of_a_name_is_not_guessed(written: Path) -> None:
    kept = kept_ptx.read(written)
    with pytest.raises(DcaError) as error:
        kept.find(MODULE, "hidden", "8.0")
    assert error.value.code == "DCA-839"
    assert "several kernels hidden: in c.cu, c.cu, d.cu" in error.value.why


def changed(file: Path, names: dict[str, bytes | None]) -> None:
    """Write an archive again with other entries; None leaves one out."""
    with zipfile.ZipFile(file) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()} | names
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            if content is not None:
                archive.writestr(name, content)


def read_all(file: Path) -> None:
    kept = kept_ptx.read(file)
    kept.find(file.parent / "site-packages" / MODULE, "scale", "8.0")
    for text in kept.manifest.texts:
        kept.read(text)


def text_of(file: Path) -> str:
    with zipfile.ZipFile(file) as archive:
        return next(name for name in archive.namelist() if name != "ptx.json")


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.unlink(), "no such file"),
        (lambda file: file.write_bytes(b""), "not a zip file"),
        (lambda file: file.write_bytes(file.read_bytes()[:-300]), "zip file"),
        (lambda file: changed(file, {"ptx.json": None}), "ptx.json"),
        (lambda file: changed(file, {"ptx.json": b"{}"}), "schema"),
        (lambda file: changed(file, {"ptx.json": b'{"schema": "dca.ptx/2"}'}), "dca.ptx/1"),
        (lambda file: changed(file, {"ptx.json": b"[" * 100_000}), "recursion"),
        (lambda file: changed(file, {text_of(file): None}), "lacks texts/"),
        (lambda file: changed(file, dict.fromkeys([text_of(file)], b".version 8.4")), "another hash"),
        (lambda file: write(file, "0" * 64), "belongs to another wheel"),
    ],
)
def test_a_damaged_or_foreign_file_ends_with_one_error(written: Path, damage: object, says: str) -> None:
    assert callable(damage)
    damage(written)
    with pytest.raises(DcaError) as error:
        read_all(written)
    assert error.value.code == "DCA-839"
    assert says in error.value.why
