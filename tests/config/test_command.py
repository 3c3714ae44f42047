"""`dca config` as a user meets it."""

from __future__ import annotations

import contextlib
import io
import json
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from dca import cli
from dca.config import Config
from dca.foundation import documents
from tests.support.model_configs import DOCUMENTED, MILLION, config, table, write


def run(*words: str | Path) -> tuple[int, str, str]:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        code = cli.run(["config", *map(str, words)])
    return code, out.getvalue(), error.getvalue()


@pytest.fixture(autouse=True)
def _no_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DCA_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "model", config())


def test_a_change_shows_its_lines_and_how_to_take_it_back(folder: Path) -> None:
    code, out, _ = run("set-yarn", folder, "--factor", "4", "--original", "32768")
    assert code == 0
    changed = [line for line in out.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    assert [line[1:].strip() for line in changed] == [
        '"max_position_embeddings": 32768,',
        # vLLM 0.32 serves it as it stands.
        '"max_position_embeddings": 131072,',
        '"rope_scaling": {',
        '"factor": 4.0,',
        '"original_max_position_embeddings": 32768,',
        '"rope_type": "yarn"',
        "},",
    ]
    assert f"`dca config undo {folder}` undoes it" in out
    # Older readers want something else, and that is said.
    assert "transformers 4.45" in out
    assert run("undo", folder)[0] == 0


def test_what_replacing_a_trained_scaling_loses_is_said(tmp_path: Path) -> None:
    own = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
    model = write(tmp_path / "model", config(rope_scaling=own))
    yarn = ("set-yarn", model, "--factor", "4", "--original", "32768")
    code, _, error = run(*yarn)
    assert code == 2
    assert "DCA-216" in error
    for more in (("--dry-run",), ()):
        code, out, _ = run(*yarn, "--replace", *more)
        assert code == 0
        assert "lost: llama3 (factor 8.0, low_freq_factor 1.0)" in out
    assert "lost:" not in run(*yarn, "--replace")[1]


def test_what_is_found_ends_with_exit_1_and_the_first_error(tmp_path: Path) -> None:
    model = write(tmp_path / "m", config(MILLION, rope_theta=1000000.0))
    code, out, error = run("check", model)
    assert code == 1
    assert "DCA-126  line " in out
    assert error.startswith("DCA-126: ")
    code, out, _ = run("check", model, "--json")
    found = Config.model_validate_json(out)
    assert (code, found.model, len(found.errors)) == (1, MILLION, 1)
    write(model, table(28, 28), "sparse_attention_config.json")
    write(model, config(MILLION))
    assert run("check", model)[0] == 0
    assert run("check", model, "--tensor-parallel", "3")[0] == 1
    assert run("check", model, "--for", "vllm-current")[0] == 1


def test_every_subcommand_answers_with_the_same_schema(folder: Path) -> None:
    yarn = ("set-yarn", folder, "--factor", "4", "--original", "32768")
    for words in ((*yarn, "--dry-run"), yarn, ("check", folder), ("undo", folder), ("drop-dca", folder)):
        code, out, _ = run(*words, "--json")
        document = json.loads(out)
        assert (code, document["schema"], document["command"]) == (0, "dca.config/1", str(words[0]))
        assert documents.canonical(document).decode() == out


@pytest.mark.parametrize(("factor", "original", "named"), [("2", "8192", True), ("4", "32768", False)])
def test_a_scaling_that_makes_texts_shorter_is_named(folder: Path, factor: str, original: str, named: bool) -> None:
    _, out, _ = run("set-yarn", folder, "--factor", factor, "--original", original, "--dry-run", "--json")
    told = "the file stated 32,768 tokens, and factor x original length are 16,384."
    assert (told in [one["what"] for one in json.loads(out)["findings"]]) is named
    assert ("the file stated" in out) is named


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("set-yarn", "{}", "--factor", "nan", "--original", "32768"), "DCA-201"),
        (("set-yarn", "{}", "--factor", "4"), "--original"),
        (("set-yarn", "{}", "--factor", "4", "--original", "32768", "--for", "transformer-5"), "did you mean"),
        (("set-dca", "{}", "--chunk", "4"), "need each other"),
        (("set-dca", "{}", "--length", "4"), "--length needs"),
        (("set-dca", "{}", "--sparse-sizes", "4"), "not a pair"),
        (("set-dca", "{}", "--sparse-sizes", "0,4", "--model", MILLION), "at least 1"),
        (("set-dca", "{}", "--sparse-sizes", "1000,99", "--model", MILLION), "at least 100"),
        (("set-dca", "{}", "--sparse-sizes", "9" * 5000 + ",4"), "too large"),
        (("set-dca", "{}", "--sparse", "nowhere"), "does not exist"),
        (("set-dca", "{}", "--model", "none"), "DCA-214"),
        (("set-dca", "{}"), "DCA-214"),
        (("use-1m", "{}"), "has no config_1m.json"),
        (("drop-dca", "{}", "--length", "0"), "DCA-201"),
        (("undo", "{}"), "no change to undo"),
        (("check", "{}", "--page-size", "0"), "DCA-201"),
        (("check", "nowhere"), "DCA-204"),
        (("plot", "{}", "--out", "x.pdf"), ".svg or .png file"),
        (("show", "{}", "--reader", "nobody"), "DCA-211"),
        (("show", "{}", "--reader", "transformers-5=/nowhere"), "is not a program"),
        (("readers", "--install", "vllm-current"), "cannot be installed by dca"),
        (("shown", "{}"), "No such command"),
    ],
)
def test_wrong_usage_is_one_message(
    folder: Path, tmp_path: Path, words: tuple[str, ...], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DCA_CACHE_DIR", str(tmp_path / "cache"))
    before = (folder / "config.json").read_bytes()
    code, _, error = run(*(word.format(folder) for word in words))
    assert code == 2
    assert told in error
    assert "Next:" in error
    assert (folder / "config.json").read_bytes() == before
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_names_that_are_no_utf8_can_be_told(tmp_path: Path) -> None:
    model = write(tmp_path / "m\udcff", config())
    for words in (("check", model), ("set-yarn", model, "--factor", "4", "--original", "32768"), ("undo", model)):
        for more in ((), ("--json",)):
            code, out, error = run(*words, *more)
            assert code in (0, 2)
            (out + error).replace("\udcff", "").encode()
            if more and code == 0:
                assert json.loads(out)["folder"].endswith("m\\xff") or json.loads(out)["folder"].endswith("m\\udcff")


def test_the_plot_is_a_picture_of_both_curves(tmp_path: Path) -> None:
    model = write(tmp_path / "m", config(rope_scaling=DOCUMENTED))
    code, out, _ = run("plot", model, "--out", tmp_path / "a.svg", "--json")
    drawn = json.loads(out)
    assert code == 0
    assert (drawn["attention_before"], round(drawn["attention_after"], 6)) == (1.0, 1.138629)
    assert drawn["before"][:24] == drawn["after"][:24]
    assert drawn["after"][-1] * 4 == pytest.approx(drawn["before"][-1])
    page = ET.fromstring((tmp_path / "a.svg").read_text(encoding="utf-8"))
    lines = [one for one in page.iter() if one.tag.endswith("polyline")]
    assert [len(str(line.get("points")).split()) for line in lines] == [64, 64]
    assert "YaRN, 4 x 32,768 tokens" in (tmp_path / "a.svg").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "odd", [{"beta_slow": -1.0}, {"beta_fast": 1e300}, {"factor": 1e300}, {"factor": 0.0}, {"beta_fast": "x"}]
)
def test_yarn_without_frequencies_is_drawn_without_it(tmp_path: Path, odd: dict[str, object]) -> None:
    model = write(tmp_path / "m", config(rope_scaling={**DOCUMENTED, **odd}))
    code, out, _ = run("plot", model, "--out", tmp_path / "a.svg", "--json")
    assert (code, json.loads(out)["settings"]) == (0, "no scaling")


def test_a_png_is_refused_where_nothing_can_make_one(tmp_path: Path) -> None:
    pytest.importorskip("click")
    model = write(tmp_path / "m", config())
    code, _, error = run("plot", model, "--out", tmp_path / "a.png")
    assert (code, (tmp_path / "a.png").exists()) in ((1, False), (0, True))
    assert code == 0 or "cairosvg" in error


def test_readers_are_listed(tmp_path: Path) -> None:
    code, out, _ = run("readers", "--json", "--cache-dir", tmp_path / "cache")
    document = json.loads(out)
    assert code == 0
    assert {reader["name"] for reader in document["readers"]} >= {"vllm-0.10.2", "transformers-4", "transformers-5"}
    assert not any(reader["installed"] for reader in document["readers"])
