"""What is said of a release of the engine that moved something the plugin needs."""

from __future__ import annotations

import io
import json
import tarfile
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest

from dca import cli, contract
from dca.catalogue import recipes
from dca.catalogue.recipes import IndexFile
from dca.contract import checking, engine, values
from dca.contract.reading import Source
from dca.contract.values import Contract, Family, Fields, Moved, Proven, Relied
from dca.engines.values import load_all
from dca.foundation import archives, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.sources import index
from tests.support import RunDca
from vllm_dca import refusals

PLUGIN = """
from engine.base import Backend, Kind
from engine.tools import attend


class Ours(Backend):
    def __init__(self, heads, scale=1.0):
        super().__init__(heads)

    def forward(self, query, key):
        return attend(query, key, causal=True)

    @classmethod
    def sizes(cls, spec=None):
        return Backend.sizes(spec)


def chosen():
    return Kind.FIRST
"""
ENGINE = {
    "engine/__init__.py": "",
    "engine/base.py": """
from abc import ABC, abstractmethod

from .tools import Kind


class Root(ABC):
    @abstractmethod
    def forward(self, query, key):
        ...


class Backend(Root):
    limit: int = 3

    def __init__(self, heads):
        self.heads = heads

    @staticmethod
    def sizes(spec=None):
        # Of a block.
        return [16]
""",
    "engine/tools.py": """
from enum import Enum


class Kind(Enum):
    FIRST = 1


def attend(q, k, *, causal=False, window=None):
    \"\"\"Attend.\"\"\"
    return q @ k
""",
}
EDITS: dict[str, tuple[str, str, str, str, str]] = {
    "a module is gone": ("engine/tools.py", "", "", "gone", "there is no such module"),
    "an import is gone": ("engine/tools.py", "def attend(", "def attends(", "gone", "it has no attend"),
    "a member is gone": ("engine/tools.py", "FIRST", "SECOND", "gone", "there is no Kind.FIRST"),
    "a call has an unknown argument": ("engine/tools.py", "causal", "masked", "arguments", "has no parameter causal"),
    "a call lacks an argument": ("engine/tools.py", "(q, k, *", "(q, k, v, *", "arguments", "also requires v"),
    "a call has too many arguments": (
        "engine/tools.py",
        "(q, k, *",
        "(q, *",
        "arguments",
        "takes 1 arguments by place",
    ),
    "a call of the base class": ("engine/base.py", "(self, heads)", "(self, heads, dim)", "arguments", "requires dim"),
    "a static method": ("engine/base.py", "(spec=None)", "()", "arguments", "takes 0 arguments by place, and gets 1"),
    "a method gets more": ("engine/base.py", "query, key)", "query, key, value)", "arguments", "also takes value"),
    "a method gets another order": ("engine/base.py", "query, key)", "key, query)", "arguments", "another order"),
    "a method gets less": ("engine/base.py", "query, key)", "query)", "arguments", "no longer takes key"),
    "a method to define": (
        "engine/base.py",
        "def forward(self, query, key):",
        "def go(self):",
        "abstract",
        "Backend.go must be",
    ),
    "a field": ("engine/base.py", "self.heads = heads", "self.head = heads", "gone", "Backend has no heads"),
    "a class": ("engine/base.py", "class Root(", "class Base(", "gone", "it has no Root"),
    "code": ("engine/base.py", "[16]", "[32]", "changed", "Backend.sizes is not as in 1.0"),
    "code that is gone": ("engine/tools.py", "def attend(", "def attends(", "gone", "it has no attend"),
    "no Python": ("engine/tools.py", "class Kind", "klass Kind", "unreadable", "invalid syntax"),
}


def written(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def small(folder: Path) -> Contract:
    """A contract of the small plugin, with the hashes of the small engine's code."""
    source = Source(written(folder / "proven", ENGINE))

    def relied(module: str, name: str) -> Relied:
        found = checking.named(source, module, name)
        assert found is not None
        return Relied(module=module, name=name, why="it is called", code={"1.0": source.code(found)})

    return Contract(
        schema="dca.contract/1",
        package="ours",
        engine="engine",
        proven=(Proven(version="1.0", file="engine-1.0.tar.gz", sha256="0" * 64),),
        model=Family(architectures=("One",), model_type="one"),
        fields=(
            Fields(module="engine/base.py", of="Backend", names=("limit", "heads"), why="they are read"),
            Fields(module="engine/base.py", of="Root", names=("forward",), why="it is overridden"),
        ),
        relied=(relied("engine/base.py", "Backend.sizes"), relied("engine/tools.py", "attend")),
    )


def found(folder: Path, files: dict[str, str]) -> tuple[Moved, ...]:
    plugin = written(folder / "plugin", {"ours/__init__.py": PLUGIN})
    counts, moved = checking.compared(small(folder), plugin, written(folder / "release", files))
    assert counts == {"imports": 3, "members and calls": 4, "base classes": 3, "fields": 3, "code": 2}
    return moved


def test_nothing_moved_in_the_same_source(tmp_path: Path) -> None:
    assert found(tmp_path, ENGINE) == ()


def test_comments_docstrings_and_blank_lines_are_no_change(tmp_path: Path) -> None:
    other = {
        name: text.replace("# Of a block.", "# Of one.\n\n").replace("Attend.", "It.") for name, text in ENGINE.items()
    }
    assert other != ENGINE
    assert found(tmp_path, other) == ()


@pytest.mark.parametrize(("file", "old", "new", "kind", "what"), EDITS.values(), ids=EDITS)
def test_each_thing_that_moved_is_said(tmp_path: Path, file: str, old: str, new: str, kind: str, what: str) -> None:
    files = dict(ENGINE)
    if old:
        assert old in files[file]
        files[file] = files[file].replace(old, new)
    else:
        del files[file]
    plugin = written(tmp_path / "plugin", {"ours/__init__.py": PLUGIN})
    _, moved = checking.compared(small(tmp_path), plugin, written(tmp_path / "release", files))
    assert [each for each in moved if each.kind == kind and what in each.what], moved


def test_the_contract_is_of_the_releases_that_the_plugin_serves() -> None:
    known = values.load()
    versions = [each.version for each in known.proven]
    assert sorted(versions) == sorted(refusals.PROVEN)
    engines = [each.recipe.engine for each in recipes.load_all() if each.recipe.engine]
    assert {(each.package, each.version) for each in engines} == {(known.engine, version) for version in versions}
    for relied in known.relied:
        assert list(relied.code) == versions, relied.name
    assert (values.plugin_folder() / known.package / "__init__.py").is_file()


def sdist(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"release/{name}")
            entry.size = len(text.encode())
            tar.addfile(entry, io.BytesIO(text.encode()))
    return path


@pytest.mark.slow
def test_the_command_says_what_an_archive_lacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = sdist(tmp_path / "vllm-9.9.tar.gz", {"vllm/__init__.py": "__version__ = '9.9'\n"})
    words = ["plugin", "check", "vllm==9.9", "--sdist", str(file), "--cache-dir", str(tmp_path / "cache")]
    assert cli.run([*words, "--json"]) == 1
    checked = values.Checked.model_validate_json(capsys.readouterr().out)
    assert not checked.proven
    assert checked.counts["imports"] > 20
    assert "vllm.config" in {moved.where for moved in checked.moved}
    # `__version__` is there.
    assert not any(moved.where == "vllm/__init__.py" for moved in checked.moved)
    assert cli.run(words) == 1
    shown = capsys.readouterr()
    assert "DCA-166" in shown.err
    assert "gone  vllm.config: there is no such module" in shown.out


@pytest.mark.parametrize("text", ["vllm", "vllm>=0.33", "vllm==0.33.*", "torch==2.0", "vllm==0.1,==0.2", "=="])
def test_only_one_release_is_checked(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["plugin", "check", text]) == 2
    assert "names no release" in capsys.readouterr().err


def test_an_archive_of_something_else_is_rejected(tmp_path: Path) -> None:
    run = Run(store.Store(tmp_path / "cache").open(), Silent(), tmp_path / "log")
    with pytest.raises(DcaError, match="has no package vllm") as caught:
        contract.check(contract.Asked("9.9", sdist(tmp_path / "other.tar.gz", {"other/__init__.py": ""})), run)
    assert caught.value.code == "DCA-404"


def test_a_release_is_run_by_its_own_engine_or_the_newest_older_one() -> None:
    known = values.load()
    newest = load_all()[0]
    assert engine.of_release(known, newest.version, trusted=False) == newest
    assert engine.of_release(known, "99.0", trusted=True) == newest
    for version, trusted, why in (("99.0", False, "not pinned"), ("0.31.0", True, "no engine of it")):
        with pytest.raises(DcaError) as caught:
            engine.of_release(known, version, trusted)
        assert (caught.value.code, why in caught.value.why) == ("DCA-167", True)


@pytest.mark.parametrize(
    ("changed", "right"),
    [
        ({}, True),
        ({"implementations": ("vllm.v1.attention.backends.cpu_attn",)}, False),
        ({"implementations": ("vllm_dca.cpu", "vllm.v1.attention.backends.cpu_attn")}, False),
        ({"cached": 0}, False),
        ({"wrong_words": 1}, False),
        ({"worst": 2e-4}, False),
        ({"worst": float("nan")}, False),
    ],
)
def test_answers_are_right_only_if_the_plugin_gave_them(changed: dict[str, Any], right: bool) -> None:
    usual: dict[str, Any] = {
        "engine": "an engine",
        "borrowed": (),
        "version": "1.0",
        "torch": "2.0",
        "implementations": ("vllm_dca.cpu",),
        "prompts": 5,
        "cached": 900,
        "wrong_words": 0,
        "worst": 1e-5,
    }
    assert values.Answered.model_validate(usual | changed).right("vllm_dca") is right


def test_the_engine_finds_the_plugin_by_its_entry_point(tmp_path: Path) -> None:
    engine.write_distribution(tmp_path, "vllm_dca", "0", engine.entry_points())
    (found,) = Distribution.discover(name="vllm_dca", path=[str(tmp_path)])
    (point,) = found.entry_points
    assert (point.group, point.value) == ("vllm.general_plugins", "vllm_dca:register")


@pytest.mark.whole
@pytest.mark.network
@pytest.mark.parametrize("version", ["0.33.0", "0.32.0"])
def test_the_engine_of_a_real_release_answers(dca: RunDca, version: str) -> None:
    done = dca("plugin", "check", f"vllm=={version}", "--engine", "--json", timeout=7200.0)
    assert done.returncode == 0, done.stderr[-3000:]
    checked = values.Checked.model_validate_json(done.stdout)
    assert checked.right
    assert checked.answered
    assert (checked.answered.version, bool(checked.answered.borrowed)) == (version, version == "0.33.0")


@pytest.mark.whole
@pytest.mark.network
def test_real_releases(dca: RunDca, cache: store.Store, tmp_path: Path) -> None:
    said = {}
    for version in ("0.33.0", "0.32.0", "0.31.0"):
        done = dca("plugin", "check", f"vllm=={version}", "--json", timeout=1200.0)
        said[version] = values.Checked.model_validate(json.loads(done.stdout))
    for proven in ("0.33.0", "0.32.0"):
        assert (said[proven].proven, said[proven].moved) == (True, ())
    # There, a backend had no name of its own.
    assert [moved.what for moved in said["0.31.0"].broken] == ["AttentionBackendEnum has no register"]
    assert not said["0.31.0"].proven
    assert "get_rope is not as in 0.33.0, 0.32.0" in {moved.what for moved in said["0.31.0"].moved}
    # What moves in a copy of the real source is found there, too.
    known = values.load()
    newest = known.proven[0]
    file = IndexFile(package="vllm", version=newest.version, file=newest.file, sha256=newest.sha256)
    archives.unpack_sdist(index.download(file, cache), tmp_path / "release")
    for name, old, new, what in (
        ("v1/attention/backend.py", "    rswa_prefix_lens: torch", "    prefix_lens: torch", "has no rswa_prefix_lens"),
        ("v1/attention/backend.py", "class MultipleOf", "class Multiple", "it has no MultipleOf"),
        ("vllm_flash_attn/flash_attn_interface.py", "block_table", "table", "has no parameter block_table"),
        ("v1/kv_cache_interface.py", "spec.num_heads,", "1,", "compute_layer_kv_cache_shape_bytes is not as in"),
        (
            "_custom_ops.py",
            "slot_mapping: torch.Tensor,\n    kv_cache_dtype",
            "kv_cache_dtype",
            "takes 7 arguments by place",
        ),
    ):
        path = tmp_path / "release/vllm" / name
        text = path.read_text()
        assert old in text, old
        path.write_text(text.replace(old, new))
        _, moved = checking.compared(known, values.plugin_folder(), tmp_path / "release")
        assert [each for each in moved if what in each.what], (what, moved)
        path.write_text(text)
