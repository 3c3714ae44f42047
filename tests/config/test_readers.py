"""The patched folders as the real readers take them: the formulas of the paper, and the lengths that follow.

DCA_TEST_WHEEL_QWEN_FORK names a wheel of the fork, and DCA_TEST_PYTHON_VLLM_CURRENT the Python of an environment with
a current vLLM; without them these two are left out.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dca import config as api
from dca.cli.config import command as cli_config
from dca.cli.config import render_show
from dca.config import Reading, YarnSetting, compare, readers, rotary
from dca.config.readers import Installed
from dca.config.rotary import Yarn
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.serve import shape
from dca.toolchain import environments
from tests.support.model_configs import DCA, DOCUMENTED, MILLION, MOE, ORDINARY, config, table, write

KNOWN = {reader.name: reader for reader in readers.load_all()}
EXAMPLE = Yarn(factor=4, original=32768)
LONG = 1.1386294361119891
# Versions that know no mixture of experts of this family.
BEFORE_MOE = ("qwen-fork", "transformers-4.45", "transformers-4.48")


@dataclass(frozen=True)
class Case:
    """A folder, and what every reader that it is meant for must take from it.

    Args:
        yarn: that is in effect.
        attention: factor.
        base: rope_theta.
        length: that vLLM derives.
        readers: that it is meant for; all when empty.
    """

    folder: Path
    length: int
    yarn: Yarn | None = None
    attention: float = 1.0
    base: float = 1e6
    readers: tuple[str, ...] = ()
    dca: bool = False
    shape: tuple[int, int] = (28, 28)


def cases(place: Path) -> dict[str, Case]:
    """Folders, most of them made by the commands."""
    yarn = YarnSetting(factor=4, original=32768)
    scaled: dict[str, Any] = {"length": 131072, "yarn": EXAMPLE, "attention": LONG}
    most = tuple(name for name in KNOWN if KNOWN[name].wants.length == "either")
    made = {
        "ordinary": Case(write(place / "ordinary", config()), 32768),
        "documented": Case(write(place / "documented", config(rope_scaling=DOCUMENTED)), readers=most, **scaled),
        "million": Case(write(place / MILLION, config(MILLION)), 1010000, base=1e7, dca=True),
        "smaller": Case(write(place / "smaller", config("Qwen1.5-7B-Chat")), 32768, shape=(32, 32)),
    }

    def setting(name: str, value: dict[str, Any] | None = None) -> Path:
        return write(place / name, value or config())

    folder = setting("yarn")
    api.set_yarn(folder, yarn)
    made["set-yarn"] = Case(folder, readers=most, **scaled)
    folder = setting("attention")
    api.set_yarn(folder, yarn.model_copy(update={"attention_factor": 1.5}))
    made["attention"] = Case(folder, readers=most, **{**scaled, "attention": 1.5})
    for name in KNOWN:
        folder = setting(f"for-{name}")
        api.set_yarn(folder, yarn, names=[name])
        # Those that take either length take this one too, where it is written where all look.
        others = most if KNOWN[name].wants.places[0] == "rope_scaling" else ()
        made[f"for {name}"] = Case(folder, readers=(name, *others), **scaled)
    newer = {**config(), "rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}
    del newer["rope_theta"]
    folder = setting("newer", newer)
    api.set_yarn(folder, yarn)
    made["newer"] = Case(folder, readers=most, **scaled)
    folder = setting("dca", config(rope_theta=1e7))
    api.set_dca(folder, model=MILLION, sparse=(30, 800))
    made["set-dca"] = Case(folder, 1010000, base=1e7, dca=True)
    folder = setting("dropped", config("Qwen2.5-14B-Instruct-1M"))
    api.drop_dca(folder)
    made["drop-dca"] = Case(folder, 262144, base=1e7, shape=(48, 40))
    folder = setting("moe", config(MOE))
    one_million = {
        **config(MOE, max_position_embeddings=1010000),
        "dual_chunk_attention_config": {
            **DCA,
            "chunk_size": 131072,
            "sparse_attention_enabled": True,
            "sparse_attention_config": table(48, 32),
        },
    }
    write(folder, one_million, "config_1m.json")
    api.use_1m(folder)
    made["use-1m"] = Case(
        folder, 1010000, base=1e7, dca=True, shape=(48, 32), readers=tuple(set(KNOWN) - {*BEFORE_MOE})
    )
    return made


def located(name: str, cache: store.Store, wheel: Path | None, log: Path) -> Installed:
    """A reader, installed now where it is not."""
    if name == "vllm-current":
        python = os.environ.get("DCA_TEST_PYTHON_VLLM_CURRENT")
        if not python:
            pytest.skip("DCA_TEST_PYTHON_VLLM_CURRENT names no Python with a current vLLM")
        return Installed(KNOWN[name], Path(python))
    wheels = [Path(os.environ["DCA_TEST_WHEEL_QWEN_FORK"])] if "DCA_TEST_WHEEL_QWEN_FORK" in os.environ else []
    if name == "qwen-fork" and not wheels:
        pytest.skip("DCA_TEST_WHEEL_QWEN_FORK names no wheel of the fork")
    return readers.install(KNOWN[name], cache, [*wheels, *([wheel] if wheel else [])], Silent(), log)


QUICK = {"vllm-0.10.2": pytest.mark.wheel}


@pytest.mark.long
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=QUICK.get(name, pytest.mark.whole)) for name in sorted(KNOWN)]
)
def test_a_reader_takes_what_the_paper_says(
    name: str, cache: store.Store, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    wheel = Path(os.environ["DCA_WHEEL"]) if "DCA_WHEEL" in os.environ else None
    if name == "vllm-0.10.2" and wheel is None:
        wheel = request.getfixturevalue("wheel")
    installed = located(name, cache, wheel, tmp_path / "log")
    wanted = {key: case for key, case in cases(tmp_path).items() if not case.readers or name in case.readers}
    assert len(wanted) >= 6
    found = readers.ask(installed, [case.folder for case in wanted.values()], tmp_path, tmp_path / "log")
    for (key, case), reading in zip(wanted.items(), found, strict=True):
        assert reading.read, (key, reading.why)
        check(key, case, reading)


@pytest.mark.whole
@pytest.mark.parametrize(("name", "length"), [("transformers-4.45", 131072), ("transformers-4.51", 32768)])
def test_a_length_that_is_not_the_readers_is_no_yarn_or_another(
    name: str, length: int, cache: store.Store, tmp_path: Path
) -> None:
    """Why DCA-123 is an error for these readers."""
    folder = write(tmp_path / "m", config(rope_scaling=DOCUMENTED, max_position_embeddings=length))
    assert "DCA-123" in [error.code for error in api.check(folder, names=[name]).errors]
    (reading,) = readers.ask(located(name, cache, None, tmp_path / "log"), [folder], tmp_path)
    row = next(
        one for one in compare.table([reading], config(rope_scaling=DOCUMENTED)) if one.name.startswith("inverse")
    )
    assert row.cells[name] == ("plain" if length == 32768 else "neither plain nor YaRN's formula")
    assert reading.attention_factor == pytest.approx(1.0 if length == 32768 else LONG)


def check(key: str, case: Case, reading: Reading) -> None:
    reader = KNOWN[reading.reader]
    dim = 2 * len(reading.inverse_frequencies)
    assert (dim, reading.base, (reading.layers, reading.heads)) == (128, case.base, case.shape), key
    formula = rotary.scaled(dim, case.base, case.yarn) if case.yarn else rotary.plain(dim, case.base)
    differences = [abs(one - other) for one, other in zip(reading.inverse_frequencies, formula, strict=True)]
    assert max(differences) <= 1e-6, (key, max(differences))
    # Single precision, also where the frequencies themselves are below 1e-6.
    ratios = [one / other - 1 for one, other in zip(reading.inverse_frequencies, formula, strict=True)]
    assert max(map(abs, ratios)) <= 1e-5, (key, ratios)
    assert reading.attention_factor == pytest.approx(case.attention, abs=1e-6), key
    assert reading.factor == pytest.approx(case.yarn.factor if case.yarn else 1.0, rel=1e-4), key
    if reader.kind != "transformers":
        assert (reading.context, reading.rows) == (case.length, case.length), key
        assert (reading.dca is not None) == (case.dca and reader.wants.dual_chunk != "ignores"), key
    if reader.kind == "vllm":
        assert planned_length(case.folder, reading.version) == reading.context, key
    if reading.dca is not None and key in ("set-dca", "use-1m"):
        assert (reading.dca.table_layers, reading.dca.table_heads) == case.shape
        assert reading.dca.sparse


def planned_length(folder: Path, version: str) -> int:
    """The length that `dca serve plan` takes a version of vLLM to allow."""
    return shape.in_engine(shape.read(str(folder))[0], version).length


@pytest.mark.whole
@pytest.mark.parametrize("name", ["vllm-0.32", "vllm-0.33"])
def test_the_length_beside_yarn_is_planned_as_the_engine_takes_it(
    name: str, cache: store.Store, tmp_path: Path
) -> None:
    """Models' cards add YaRN and leave max_position_embeddings; the version with the product is tested above."""
    folders = [
        write(tmp_path / str(length), config(rope_scaling=DOCUMENTED, max_position_embeddings=length))
        for length in (32768, 40960, 131072)
    ]
    found = readers.ask(located(name, cache, None, tmp_path / "log"), folders, tmp_path)
    assert [reading.context for reading in found] == [32768, 40960, 131072]
    assert [planned_length(folder, found[0].version) for folder in folders] == [32768, 40960, 131072]


def test_readers_that_do_not_scale_are_marked(tmp_path: Path) -> None:
    """What was found of transformers 4.51 to 4.55, whose factor is max_position_embeddings / original."""
    value = config(rope_scaling=DOCUMENTED)
    scaled, plain = rotary.scaled(128, 1e6, EXAMPLE), rotary.plain(128, 1e6)
    readings = [
        Reading(
            reader=name,
            title=name,
            version="1",
            installed=True,
            base=1e6,
            type="yarn",
            declared_factor=4.0,
            factor=factor,
            inverse_frequencies=tuple(frequencies),
            attention_factor=attention,
        )
        for name, factor, frequencies, attention in (("a", 4.0, scaled, LONG), ("b", 1.0, plain, 1.0))
    ]
    rows = {row.name: row for row in compare.table(readings, value)}
    assert rows["scaling"].cells == {"a": "yarn", "b": "yarn, not applied"}
    assert rows["inverse frequencies"].cells == {"a": "YaRN's formula", "b": "plain"}
    assert all(rows[name].differs for name in ("scaling", "factor in effect", "attention factor"))
    assert not rows["base (rope_theta)"].differs


def test_readers_that_rotate_otherwise_are_told_after_an_edit() -> None:
    """What was found of models with several axes of positions in vLLM 0.32, and of transformers 4.51."""
    value = config(rope_scaling={**DOCUMENTED, "mrope_section": [16, 24, 24]})
    longer = EXAMPLE.model_copy(update={"original": 4 * EXAMPLE.original})
    rotated = {
        "right": rotary.scaled(128, 1e6, EXAMPLE),
        "longer": rotary.scaled(128, 1e6, longer),
        "plain": rotary.plain(128, 1e6),
    }
    readings = [
        Reading(reader=name, title=name, version="1", installed=True, base=1e6, inverse_frequencies=tuple(frequencies))
        for name, frequencies in rotated.items()
    ]
    told = {reading.reader: what for reading, what in compare.otherwise(readings, value)}
    assert told == {
        "longer": "computes YaRN from 4 times the original length",
        "plain": "does not scale the frequencies",
    }
    assert list(compare.otherwise(readings, config())) == []


def test_readers_that_are_not_installed_say_so_and_how_to_get_them(tmp_path: Path) -> None:
    folder = write(tmp_path / "m", config(ORDINARY))
    shown = api.show(folder, store.Store(tmp_path / "cache"))
    assert [reading.reader for reading in shown.readings] == [name for name, one in KNOWN.items() if one.shown]
    assert all(not reading.installed and reading.why.startswith("not installed; ") for reading in shown.readings)
    assert "--install transformers-5" in next(
        reading.why for reading in shown.readings if reading.reader == "transformers-5"
    )
    assert shown.rows == ()
    text = render_show(shown)
    assert "dca config readers --install transformers-5 " in text
    assert f"`dca config check {folder}`" in text
    assert "\n\n\n" not in text


def test_an_engine_is_not_downloaded_without_its_wheel(tmp_path: Path) -> None:
    engine = next(one for one in KNOWN.values() if one.recipe and not one.package)
    cache = store.Store(tmp_path / "cache")
    with pytest.raises(DcaError, match="no wheel of it in dist/") as caught:
        readers.install(engine, cache, [], Silent(), tmp_path / "log")
    assert caught.value.code == "DCA-211"
    assert not cache.root.exists()


@pytest.mark.slow
def test_a_python_without_the_package_is_told_in_its_own_words(tmp_path: Path) -> None:
    import sys

    folder = write(tmp_path / "m", config(ORDINARY))
    shown = api.show(folder, store.Store(tmp_path / "cache"), pythons={"transformers-5": Path(sys.executable)})
    told = {reading.reader: reading for reading in shown.readings}["transformers-5"]
    assert told.why in render_show(shown)
    assert not told.installed
    assert "No module named 'transformers'" in told.why


def test_an_installation_that_fails_hands_on_the_output_of_a_stand_in_for_uv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = tmp_path / "uv"
    uv.write_text("#!/bin/sh\nprintf 'line %s\\n' 1 2 3 4 5 6 7 8\nexit 2\n")
    uv.chmod(0o755)
    monkeypatch.setattr(readers, "find_uv", lambda: uv)
    monkeypatch.setattr(environments, "make_without_cuda", lambda *_: tmp_path / "env/bin/python")
    with pytest.raises(DcaError) as failed:
        readers.install(KNOWN["transformers-5"], store.Store(tmp_path / "cache"), [], Silent(), tmp_path / "log")
    assert failed.value.code == "DCA-407"
    assert failed.value.output == tuple(f"line {number}" for number in range(1, 9))
    assert failed.value.why.splitlines() == list(failed.value.output[2:])


FAKE = """
class AutoConfig:
    @staticmethod
    def from_pretrained(folder, **_):
        raise ValueError("it says \\ud800 no\\nand goes on")
__version__ = "0.0"
"""


@pytest.mark.slow
def test_a_reader_that_refuses_a_folder_is_quoted_on_one_line(tmp_path: Path) -> None:
    import sys

    (tmp_path / "path/transformers").mkdir(parents=True)
    (tmp_path / "path/transformers/__init__.py").write_text(FAKE)
    folder = write(tmp_path / "m", config(ORDINARY))
    installed = Installed(KNOWN["transformers-5"], Path(sys.executable), (tmp_path / "path",))
    (reading,) = readers.ask(installed, [folder], tmp_path)
    assert (reading.installed, reading.read, reading.version) == (True, False, "0.0")
    assert reading.why == "ValueError: it says \\ud800 no and goes on"
    json.dumps(reading.model_dump(), ensure_ascii=False).encode()


PICKY = """
import json
import pathlib


class Config:
    num_hidden_layers, hidden_size, num_attention_heads, max_position_embeddings = 4, 512, 8, 32768


class AutoConfig:
    @staticmethod
    def from_pretrained(folder, **_):
        if "yarn" in (pathlib.Path(folder) / "config.json").read_text():
            raise ValueError("it knows no yarn")
        return Config()


__version__ = "0.0"
"""


@pytest.mark.slow
def test_a_file_that_a_reader_no_longer_loads_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    (tmp_path / "path/transformers").mkdir(parents=True)
    (tmp_path / "path/transformers/__init__.py").write_text(PICKY)
    place = Installed(KNOWN["transformers-5"], Path(sys.executable), (tmp_path / "path",))
    monkeypatch.setattr(
        readers, "locate", lambda reader, *_: place if reader.name == "transformers-5" else "not installed"
    )
    folder = write(tmp_path / "m", config(ORDINARY))
    before = sorted(path.name for path in folder.iterdir()), (folder / "config.json").read_bytes()
    target = api.Target(folder, api.Asking(store.Store(tmp_path / "cache")))
    with pytest.raises(DcaError) as refused:
        api.set_yarn(target, YarnSetting(factor=4, original=32768))
    assert (refused.value.code, refused.value.why) == ("DCA-217", "ValueError: it knows no yarn")
    assert (sorted(path.name for path in folder.iterdir()), (folder / "config.json").read_bytes()) == before
    # What it loads is written, and the readings say who was asked.
    done = api.set_dca(target, api.DualChunkSetting(chunk_size=8192, local_size=1024, original=32768))
    assert {reading.reader: reading.loaded for reading in done.readings}["transformers-5"]
    assert sum(reading.installed for reading in done.readings) == 1


def test_all_readers_are_installed_but_those_that_cannot_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str] = []

    def install(reader: readers.Reader, *_: Any) -> None:
        tried.append(reader.name)
        if reader.name == "vllm-0.10.2":
            raise DcaError("DCA-211", "it has no wheel.", remedy="build one.")

    monkeypatch.setattr(readers, "install", install)
    said = CliRunner().invoke(cli_config, ["readers", "--install", "all", "--cache-dir", str(tmp_path / "cache")])
    assert set(tried) == {name for name, reader in KNOWN.items() if reader.recipe}
    # The space of all is told before the first.
    made = [reader for reader in KNOWN.values() if reader.recipe]
    assert all(reader.disk_gb > 0 for reader in made)
    assert sum(reader.disk_gb for reader in made) + max(reader.shared_gb for reader in made) < 6
    assert f"{len(made)} readers: about " in said.output
    assert isinstance(said.exception, DcaError)
    assert "1 of" in said.exception.what
    assert "vllm-0.10.2" in said.exception.what
