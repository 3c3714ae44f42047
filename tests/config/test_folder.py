"""Folders: what is written and what is left alone, links, permissions, undo, and a new folder beside the old one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dca import config as api
from dca.config import DualChunkSetting, YarnSetting, folder
from dca.foundation import store
from dca.foundation.errors import DcaError
from tests.support import ROOT
from tests.support.model_configs import DOCUMENTED, MILLION, MOE, config, listing, table, write

YARN = YarnSetting(factor=4, original=32768)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = write(tmp_path / "model", config())
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def content(path: Path) -> bytes:
    return (path / "config.json").read_bytes()


def test_undo_gives_back_the_same_bytes_and_mode(model: Path) -> None:
    (model / "config.json").chmod(0o640)
    before, names = content(model), listing(model)
    done = api.set_yarn(model, YARN)
    assert done.change is not None
    assert done.change.written
    assert (model / "config.json").stat().st_mode & 0o777 == 0o640
    again = api.set_yarn(model, YARN)
    assert again.change is not None
    assert not again.change.changed
    assert len(json.loads((model / ".dca-undo.json").read_text())["steps"]) == 1
    assert api.undo(model).undone == "set-yarn"
    assert content(model) == before
    assert listing(model) == names
    with pytest.raises(DcaError) as nothing:
        api.undo(model)
    assert nothing.value.code == "DCA-209"


def test_changes_are_undone_one_by_one(model: Path) -> None:
    states = [content(model)]
    for factor in (2, 4, 8):
        api.set_yarn(model, YarnSetting(factor=factor, original=32768))
        states.append(content(model))
    api.set_dca(model, model=MILLION, sparse=(30, 800))
    for before in reversed(states):
        api.undo(model)
        assert content(model) == before
    assert not (model / ".dca-undo.json").exists()


def test_a_dry_run_changes_nothing(model: Path) -> None:
    names = listing(model)
    change = api.set_yarn(model, YARN, dry_run=True).change
    assert change is not None
    assert change.changed
    assert not change.written
    assert '+    "rope_type": "yarn"' in change.diff
    assert (content(model), listing(model)) == (content(write(model.parent / "same", config())), names)


def test_the_link_of_a_hub_cache_is_replaced_and_comes_back(tmp_path: Path) -> None:
    blob = tmp_path / "blobs/0123"
    write(tmp_path / "blobs", config(), "0123")
    snapshot = tmp_path / "snapshots/a"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    before, names = blob.read_bytes(), listing(snapshot)
    api.set_yarn(snapshot, YARN)
    assert blob.read_bytes() == before
    assert not (snapshot / "config.json").is_symlink()
    api.undo(snapshot)
    assert listing(snapshot) == names
    assert content(snapshot) == before


def test_a_blob_that_has_changed_is_not_linked_to_again(tmp_path: Path) -> None:
    write(tmp_path, config(), "blob")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").symlink_to("../blob")
    api.set_yarn(folder, YARN)
    (tmp_path / "blob").write_text("{}")
    with pytest.raises(DcaError) as refused:
        api.undo(folder)
    assert refused.value.code == "DCA-209"
    assert not (folder / "config.json").is_symlink()


def test_what_somebody_else_changed_is_undone_only_by_force(model: Path) -> None:
    before = content(model)
    api.set_yarn(model, YARN)
    (model / "config.json").write_text("not JSON at all")
    with pytest.raises(DcaError) as refused:
        api.undo(model)
    assert refused.value.code == "DCA-209"
    assert content(model) == b"not JSON at all"
    api.undo(model, force=True)
    assert content(model) == before


def refused(path: Path) -> str:
    with pytest.raises(DcaError) as error:
        api.set_yarn(path, YARN)
    assert error.value.remedy
    return error.value.code


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    assert refused(folder) == "DCA-204"
    folder.mkdir()
    assert refused(folder) == "DCA-204"
    (folder / "config.json").mkdir()
    assert refused(folder) == "DCA-207"
    (folder / "config.json").rmdir()
    os.mkfifo(folder / "config.json")
    assert refused(folder) == "DCA-207"
    (folder / "config.json").unlink()
    for target, code in (("/dev/zero", "DCA-207"), ("/dev/null", "DCA-207"), ("nowhere", "DCA-204"), (".", "DCA-207")):
        (folder / "config.json").symlink_to(target)
        assert refused(folder) == code
        (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("config.json")
    assert refused(folder) == "DCA-207"
    assert refused(folder / "config.json") in ("DCA-204", "DCA-102")
    assert [name for name, _ in listing(folder)] == ["config.json"]


@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_read_only_is_refused_also_for_root(model: Path, what: str) -> None:
    path = model if what == "folder" else model / "config.json"
    before, mode = content(model), path.stat().st_mode
    path.chmod(0o555 if what == "folder" else 0o444)
    names = listing(model)
    assert refused(model) == "DCA-207"
    assert (content(model), listing(model)) == (before, names)
    path.chmod(mode)


def test_a_new_folder_links_to_everything_else(model: Path, tmp_path: Path) -> None:
    (model / "sub").mkdir()
    before, names = content(model), listing(model)
    out = tmp_path / "long"
    for turn in range(2):
        done = api.set_yarn(model, YARN, out=out).change
        assert done is not None
        assert done.changed == (turn == 0)
    assert (content(model), listing(model)) == (before, names)
    assert json.loads(content(out)) == config(
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
        max_position_embeddings=131072,
    )
    for name in ("model.safetensors", "sub"):
        assert (out / name).readlink() == model / name
    assert [name for name, _ in listing(out)] == ["config.json", "model.safetensors", "sub"]
    # Another setting does not go into the same folder.
    with pytest.raises(DcaError) as refusal:
        api.set_yarn(model, YarnSetting(factor=2, original=32768), out=out)
    assert refusal.value.code == "DCA-207"


def test_a_new_folder_inside_of_the_old_one_is_refused(model: Path) -> None:
    names = listing(model)
    for out in (model / "new", model):
        with pytest.raises(DcaError) as inside:
            api.set_yarn(model, YARN, out=out)
        assert inside.value.code == "DCA-207"
    with pytest.raises(DcaError) as nowhere:
        api.set_yarn(model, YARN, out=model.parent / "a/b")
    assert nowhere.value.code == "DCA-204"
    assert listing(model) == names


@pytest.mark.slow
def test_weights_are_never_opened(model: Path) -> None:
    """Every file that the interpreter opens is told by its audit hook."""
    script = f"""
import sys
from pathlib import Path
from dca import config
opened = []
sys.addaudithook(lambda name, given: opened.append(str(given[0])) if name == "open" else None)
path = Path({str(model)!r})
config.check(path)
config.set_yarn(path, config.YarnSetting(factor=4, original=32768))
config.undo(path)
config.set_dca(path, model={MILLION!r}, sparse=(30, 800), out=path.parent / "out")
assert any(one.endswith("config.json") for one in opened)
print([one for one in opened if "safetensors" in one])
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_another_run_that_holds_the_folder_is_waited_for_and_named(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folder, "WAIT_SECONDS", 0.1)
    with store.folder_lock(model, 1.0) as held:
        assert held
        assert refused(model) == "DCA-210"
    api.set_yarn(model, YARN)


def test_a_step_that_was_noted_and_not_made_is_dropped(model: Path) -> None:
    """What kill -9 leaves between the note and the change, and between an undo and striking it out."""
    before = content(model)
    api.set_yarn(model, YARN)
    (model / "config.json").write_bytes(before)
    with pytest.raises(DcaError) as nothing:
        api.undo(model)
    assert nothing.value.code == "DCA-209"
    api.set_yarn(model, YarnSetting(factor=2, original=32768))
    api.undo(model)
    assert content(model) == before
    assert not (model / ".dca-undo.json").exists()


@pytest.mark.slow
def test_the_models_own_file_for_a_million_tokens_to_the_byte(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", config(MOE))
    own = {
        **config(MOE, max_position_embeddings=1010000),
        "dual_chunk_attention_config": {
            "chunk_size": 131072,
            "local_size": 4096,
            "original_max_position_embeddings": 131072,
            "sparse_attention_config": table(48, 32),
            "sparse_attention_enabled": True,
        },
    }
    before = content(folder)
    with pytest.raises(DcaError) as missing:
        api.use_1m(folder)
    assert missing.value.code == "DCA-204"
    write(folder, own, "config_1m.json", indent=4)
    api.use_1m(folder)
    assert content(folder) == (folder / "config_1m.json").read_bytes()
    assert not api.check(folder).errors
    api.undo(folder)
    assert content(folder) == before
    dropped = api.drop_dca(folder)
    assert dropped.change is not None
    assert not dropped.change.changed


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["list", "config"])
def test_a_sparse_table_from_a_file(tmp_path: Path, kind: str) -> None:
    folder = write(tmp_path / "m", config(MILLION))
    rows = table(28, 28, 30, 800)
    inside: Any = {"dual_chunk_attention_config": {"sparse_attention_config": rows}}
    write(tmp_path, rows if kind == "list" else inside, "table.json")
    api.set_dca(folder, sparse=tmp_path / "table.json")
    assert json.loads(content(folder))["dual_chunk_attention_config"]["sparse_attention_config"] == rows
    assert api.check(folder).findings == ()


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
def test_a_hubs_name_is_found_in_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv(variable, str(tmp_path))
    kept = tmp_path / ("hub" * (variable == "HF_HOME")) / "models--Org--Model-7B"
    wanted = write(kept / "snapshots/abc", config())
    write(kept / "snapshots/newer", config())
    (kept / "refs").mkdir()
    (kept / "refs/main").write_text("abc")
    assert api.located(Path("Org/Model-7B")) == wanted
    assert api.located(wanted) == wanted
    with pytest.raises(DcaError, match="hf download Org/Other"):
        api.located(Path("Org/Other"))
    assert api.located(Path("Model-7B")) == Path("Model-7B")


def test_a_file_with_other_names_is_restored_itself(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", config())
    other = tmp_path / "other.json"
    other.hardlink_to(folder / "config.json")
    names, before, inode = listing(folder), content(folder), other.stat().st_ino
    api.set_yarn(folder, YARN)
    api.set_yarn(folder, YarnSetting(factor=2, original=32768))
    assert other.read_bytes() == before
    api.undo(folder)
    api.undo(folder)
    assert (listing(folder), content(folder)) == (names, before)
    assert (folder / "config.json").stat().st_ino == inode
    assert other.stat().st_nlink == 2


def test_another_name_that_was_written_through_does_not_spoil_the_undo(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", config())
    other = tmp_path / "other.json"
    other.hardlink_to(folder / "config.json")
    names, before = listing(folder), content(folder)
    api.set_yarn(folder, YARN)
    other.write_text("{}")
    api.undo(folder)
    assert (listing(folder), content(folder)) == (names, before)
    assert other.read_text() == "{}"


@pytest.mark.parametrize(
    "given",
    [
        "[]",
        "{}",
        "[1]",
        '{"dual_chunk_attention_config": 1}',
        "x",
        "",
        "[NaN]",
        "[" * 9999,
        "[[1]",
        "[1]}",
        '[{}], "a": 1',
    ],
)
def test_a_file_without_a_sparse_table_is_refused(tmp_path: Path, given: str) -> None:
    folder = write(tmp_path / "m", config(MILLION))
    names, before = listing(folder), content(folder)
    (tmp_path / "table.json").write_text(given)
    with pytest.raises(DcaError) as wrong:
        api.set_dca(folder, sparse=tmp_path / "table.json")
    assert wrong.value.code in ("DCA-206", "DCA-213")
    assert (listing(folder), content(folder)) == (names, before)


def test_numbers_by_hand(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", config(rope_scaling=DOCUMENTED))
    api.set_dca(folder, DualChunkSetting(chunk_size=8192, local_size=1024, original=32768, length=65536))
    assert json.loads(content(folder)) == config(
        max_position_embeddings=65536,
        dual_chunk_attention_config={"chunk_size": 8192, "local_size": 1024, "original_max_position_embeddings": 32768},
    )
    unknown = write(tmp_path / "u", config(num_hidden_layers=27))
    with pytest.raises(DcaError) as wrong:
        api.set_dca(unknown)
    assert wrong.value.code == "DCA-214"


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("adapter_config.json", b'{"base_model_name_or_path": "org/base"}', "an adapter of org/base"),
        ("adapter_config.json", b"{", "an adapter, not"),
        ("model-Q4_K_M.gguf", b"GGUF", "GGUF files"),
        ("params.json", b"{}", "params.json"),
        ("model_index.json", b"{}", "diffusers"),
        ("model.safetensors.index.json", b"{}", "weights alone"),
        ("snapshots", b"", "a hub's cache"),
    ],
)
def test_a_folder_without_a_config_is_called_what_it_is(name: str, data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    for look in (api.check, lambda path: api.set_yarn(path, YARN)):
        with pytest.raises(DcaError) as refused:
            look(tmp_path)
        assert refused.value.code == "DCA-204"
        assert told in refused.value.what


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS"),
        (b"<!DOCTYPE html><html></html>", "a web page"),
        (b"GGUF\x03\x00\x00\x00\xff\xfe", "a GGUF file"),
        (b"\x10\x00\x00\x00\x00\x00\x00\x00\xff\xfe{}", "a binary file"),
    ],
)
def test_a_file_that_is_something_else_is_called_that(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(DcaError) as refused:
        api.check(tmp_path)
    assert refused.value.code == "DCA-206"
    assert told in refused.value.why
