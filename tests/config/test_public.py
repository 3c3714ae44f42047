"""Public models' config.json, byte for byte: no errors, edits that keep their shape, readers that agree."""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dca.config import asking, classes, config_rules, edit, layout, readers, rotary, text
from dca.config.config_rules import Subject
from dca.config.edit import YarnSetting
from dca.config.layout import LENGTH, ORIGINAL, PARAMETERS, SCALING, STRUCTURAL, THETA, Layout
from dca.config.text import Json
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from tests.support import ROOT

CASES = ROOT / "tests/cases/config"
FILES = sorted(CASES.glob("*.json"))
EVERYONE = readers.load_all()
FORM = edit.form_for([reader for reader in EVERYONE if reader.shown])
# No YaRN is written for models whose class states rope_theta, for those that scale compressed layers alone, and for
# those that do not rotate positions.
NOT_EDITED = 20
# Edits that a reader cannot rotate with, which DCA-217 refuses where that reader is installed: one class takes every
# scaling for llama3, one multiplies a head_dim that its file does not state, and one wants an object per layer type.
REFUSED = {
    "transformers-4": {
        "meta-llama--Llama-4-Maverick-17B-128E-Instruct",
        "meta-llama--Llama-4-Scout-17B-16E-Instruct",
        "mistralai--Mixtral-8x22B-v0.1",
        "mistralai--Mixtral-8x7B-v0.1",
    },
    "transformers-5": {
        "XiaomiMiMo--MiMo-V2-Flash",
        "mistralai--Mixtral-8x22B-v0.1",
        "mistralai--Mixtral-8x7B-v0.1",
    },
}
# Folders of one process; a process takes a minute to start on a busy machine.
AT_ONCE = 12


def read(path: Path) -> Json:
    return text.parse(path.read_bytes(), path.name)


def fixed(found: Layout) -> bool:
    """Whether a file has nothing that YaRN can scale."""
    unrotated = not found.rotates or found.text_type in classes.load().unrotated
    return unrotated or found.rotary[0].base is None or edit.COMPRESSED in found.text


def wanted(found: Layout) -> YarnSetting:
    """Twice the model's length."""
    own = found.rotary[0]
    factor = own.factor if own.type == "yarn" and own.factor else 1.0
    return YarnSetting(factor=2 * factor, original=own.original or found.length or 4096)


def edited() -> Iterator[tuple[str, Json, Json]]:
    """Every file that YaRN can be written into, before and after."""
    for path in FILES:
        source = read(path)
        found = layout.read(source.plain())
        if not fixed(found):
            yield path.stem, source, edit.set_yarn(source, wanted(found), FORM, replace=True)


def test_the_files_are_those_of_the_table() -> None:
    with (CASES / "index.tsv").open(encoding="utf-8", newline="") as stream:
        rows = {row["file"]: row["sha256"] for row in csv.DictReader(stream, delimiter="\t")}
    assert {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in FILES} == rows
    assert len(rows) >= 60


def test_an_original_has_no_errors_and_a_known_layout() -> None:
    found: dict[str, list[str]] = {}
    for path in FILES:
        source = read(path)
        told = layout.read(source.plain())
        assert told.unknown == "", path.name
        assert None not in (told.count("num_hidden_layers"), told.count("hidden_size"), told.length), path.name
        wrong = [one.what for one in config_rules.check(Subject(source, others=EVERYONE)) if one.severity == "error"]
        found |= {path.name: wrong} if wrong else {}
    assert found == {}


@pytest.mark.slow
def test_a_scaling_of_the_models_own_is_not_replaced_unasked() -> None:
    refused = 0
    for path in FILES:
        source = read(path)
        found = layout.read(source.plain())
        if fixed(found):
            with pytest.raises(DcaError, match="DCA-208"):
                edit.set_yarn(source, wanted(found), FORM)
        elif found.rotary[0].scaled or found.rotary[0].type != "default":
            with pytest.raises(DcaError, match="DCA-216"):
                edit.set_yarn(source, wanted(found), FORM)
            refused += 1
        else:
            edit.set_yarn(source, wanted(found), FORM)
    assert refused >= 10


def flat(value: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Every value that is no object, by its path."""
    if not isinstance(value, dict):
        return {path: value}
    return {where: one for name, part in value.items() for where, one in flat(part, (*path, name)).items()}


@pytest.mark.slow
def test_an_edit_changes_the_scaling_and_the_length_and_nothing_else() -> None:
    seen = 0
    for name, before, after in edited():
        old, new = layout.read(before.plain()), layout.read(after.plain())
        changed = {
            path
            for path in flat(before.plain()).keys() | flat(after.plain()).keys()
            if flat(before.plain()).get(path, path) != flat(after.plain()).get(path, path)
        }
        kept = {path for path in changed if path[-1] in STRUCTURAL - {THETA}}
        assert kept == set(), name
        for path in changed:
            here = path[len(old.path) :]
            assert path[: len(old.path)] == old.path, (name, path)
            assert here[0] in (SCALING, PARAMETERS) or here in ((LENGTH,), (ORIGINAL,), (THETA,)), (name, path)
        setting, own = wanted(old), new.rotary[0]
        assert (own.type, own.factor, own.original) == ("yarn", setting.factor, setting.original), name
        assert (own.base, own.partial, new.length) == (old.rotary[0].base, old.rotary[0].partial, setting.length), name
        assert new.rotary[1:] == old.rotary[1:], name
        assert edit.set_yarn(after, setting, FORM) is after, name
        seen += 1
    assert seen == len(FILES) - NOT_EDITED


@pytest.mark.whole
@pytest.mark.parametrize("name", ["transformers-4", "transformers-5", "vllm-0.32"])
def test_readers_load_every_edit_and_rotate_as_asked(name: str, cache: store.Store, tmp_path: Path) -> None:
    installed = readers.install(readers.find(name, EVERYONE), cache, [], Silent(), tmp_path / "log")
    cases = list(edited())
    folders = []
    for key, before, after in cases:
        for kind, file in (("before", before), ("after", after)):
            folder = tmp_path / kind / key
            folder.mkdir(parents=True)
            (folder / "config.json").write_bytes(file.data)
            folders.append(folder)
    readings = []
    for start in range(0, len(folders), AT_ONCE):
        readings += readers.ask(installed, folders[start : start + AT_ONCE], tmp_path)
    wrong, refused, compared = [], set(), 0
    for (key, _, after), old, new in zip(cases, readings[::2], readings[1::2], strict=True):
        assert readers.TOO_LONG not in (old.why, new.why)
        if asking.worse(old, new):
            refused.add(key)
        if not new.read:
            continue
        found = layout.read(after.plain()).rotary[0]
        dim = 2 * len(new.inverse_frequencies)
        numbers = {key: float(found.parameters[key]) for key in ("beta_fast", "beta_slow") if key in found.parameters}
        yarn = rotary.Yarn(
            factor=found.factor or 0.0,
            original=found.original or 0.0,
            truncate=found.parameters.get("truncate") is not False,
            **numbers,
        )
        formula = rotary.scaled(dim, found.base or 0.0, yarn)
        most = max(abs(one - other) for one, other in zip(new.inverse_frequencies, formula, strict=True))
        compared += 1
        if most > 1e-6:
            wrong.append(f"{key}: frequencies differ by {most:g}")
    assert wrong == []
    assert refused == REFUSED.get(name, set())
    assert compared >= 20
