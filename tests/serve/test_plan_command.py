"""`dca serve plan` and `command` as a user runs them: text, documents, charts, exit codes."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

from dca import cli
from dca.serve import chart, gpus
from dca.serve.plan import ServePlan, lengths
from tests.support import ROOT
from tests.support.serving import FOURTEEN, MILLION, SEVEN, folder, planned, shape

FOUR = (FOURTEEN, "--gpus", "4x80")


@dataclass
class Done:
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: str | Path, **env: str) -> Done:
    """The command line, in this process, with an environment of its own, and without what logs taught plans here."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    if arguments[0] in ("plan", "command"):
        kept["DCA_CACHE_DIR"] = os.devnull + "/none"
    out, wrong = io.StringIO(), io.StringIO()
    with (
        mock.patch.dict(os.environ, {**kept, **env}, clear=True),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(wrong),
    ):
        code = cli.run(["serve", *map(str, arguments)])
    return Done(code, out.getvalue(), wrong.getvalue())


@pytest.mark.slow
def test_the_program_itself_ends_with_the_exit_code() -> None:
    argv = [sys.executable, "-m", "dca", "serve", "plan", FOURTEEN, "--gpus", "2x80", "--quiet"]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "scripts")}
    done = subprocess.run(argv, env=env, text=True, capture_output=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("DCA-150: ")


@pytest.mark.slow
def test_a_plan_is_told_as_text_and_as_a_document() -> None:
    done = run("plan", *FOUR)
    assert done.returncode == 0, done.stderr
    for words in ("1,010,000 tokens: fits", "--num-gpu-blocks-override 63762", "KV cache", "weights", "320 GB"):
        assert words in done.stdout
    told = run("plan", *FOUR, "--json")
    made = ServePlan.model_validate_json(told.stdout)
    assert made == planned(FOURTEEN, "4x80")
    assert json.loads(told.stdout)["schema"] == "dca.serve-plan/2"


@pytest.mark.slow
def test_what_does_not_fit_ends_with_one_and_names_what_does() -> None:
    done = run("plan", FOURTEEN, "--gpus", "2x80")
    assert done.returncode == 1
    assert done.stderr.startswith("DCA-150: ")
    longest = planned(FOURTEEN, "2x80").longest
    assert f"--max-model-len {longest}," in done.stderr
    assert re.search(rf"--max-model-len {longest} +the maximum that fits", done.stdout)
    told = run("plan", FOURTEEN, "--gpus", "2x80", "--json")
    assert told.returncode == 1
    assert ServePlan.model_validate_json(told.stdout).errors
    assert run("plan", FOURTEEN, "--gpus", "2x80", "--max-model-len", str(longest)).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "exit_code", "code"),
    [
        (("plan", "nothing-known", "--gpus", "4x80"), 2, "DCA-214"),
        (("plan", SEVEN, "--gpus", "none"), 2, "DCA-201"),
        (("plan", SEVEN, "--gpus", "4x80", "--tp", "0"), 2, "DCA-201"),
        (("plan",), 2, "DCA-201"),
        (("plan", SEVEN, "--gpus", "4x80", "--recipe", "none"), 2, "DCA-203"),
        (("plan", " "), 2, "DCA-201"),
        (("plan", SEVEN, "--gpus", "4x80", "--wheel", "no.whl"), 2, "DCA-204"),
        (("oops",), 2, "DCA-201"),
        (("plan", SEVEN, "--gpus", "4x80", "--quantization", "int3"), 2, "DCA-201"),
        (("plan", SEVEN, "--gpus", "4x80", "--plot", "memory.gif"), 2, "DCA-201"),
        (("plan", SEVEN, "--gpus", "4x80", "--report", "/etc/hostname/x.html"), 2, "DCA-204"),
        (("plan", SEVEN, "--machines", "2"), 2, "DCA-201"),
        (("plan", SEVEN, "--gpus", "4x80", "--gpu-memory-utilization", "nan"), 2, "DCA-201"),
        (("plan", SEVEN, "--gpus", "4x80", "--tp", "1024", "--pp", "512"), 1, "DCA-131"),
        (("plan", SEVEN, "--gpus", "1x1", "--max-num-seqs", "2147483647"), 1, "DCA-150"),
        (("plan", SEVEN, "--gpus", "4x80", "--num-gpu-blocks-override", "2147483647"), 1, "DCA-150"),
        (("plan", SEVEN, "--gpus", "4x80", "--max-model-len", "2147483647"), 1, "DCA-127"),
        (("command", SEVEN, "--gpus", "1x80"), 1, "DCA-150"),
        (("command", SEVEN, "--gpus", "4x80", "--visible", "a"), 2, "DCA-201"),
        (("command", SEVEN, "--gpus", "4x80", "--chat-template", "a\nb"), 2, "DCA-201"),
        (("command", SEVEN, "--gpus", "4x80", "--host", "--evil"), 2, "DCA-201"),
        (("command", SEVEN, "--gpus", "4x80", "--port", "99999"), 2, "DCA-201"),
        (("run", SEVEN, "--gpus", "4x80", "--machines", "2"), 2, "DCA-201"),
    ],
)
def test_bad_input_is_one_message_with_a_code(arguments: tuple[str, ...], exit_code: int, code: str) -> None:
    done = run(*arguments)
    assert done.returncode == exit_code, done.stderr
    assert done.stderr.startswith(f"{code}: ")
    assert "Next: " in done.stderr
    assert "Traceback" not in done.stderr


def test_without_gpus_here_and_none_named_it_says_so(tmp_path: Path) -> None:
    done = run("plan", SEVEN, PATH=str(tmp_path))
    assert done.returncode == 1
    assert done.stderr.startswith("DCA-103: ")
    assert "--gpus 4x80" in done.stderr


@pytest.mark.slow
def test_gpus_of_a_stand_in_driver_are_found_and_counted(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\nfor i in 1 2 3 4; do echo 'NVIDIA A100-SXM4-80GB, 8.0, 81920, 550.54.15'; done\n")
    program.chmod(0o755)
    done = run("plan", SEVEN, PATH=f"{tmp_path}:/usr/bin:/bin")
    assert done.returncode == 0, done.stderr
    assert "4 x NVIDIA A100-SXM4-80GB (79.32 GiB)" in done.stdout
    fewer = run("plan", SEVEN, "--max-model-len", "65536", PATH=f"{tmp_path}:/usr/bin:/bin", CUDA_VISIBLE_DEVICES="0,3")
    assert "2 x NVIDIA A100-SXM4-80GB" in fewer.stdout
    # What this shell would hand to the server counts here, and not for a server elsewhere.
    wrong = {"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}
    assert run("plan", SEVEN, PATH=f"{tmp_path}:/usr/bin:/bin", **wrong).stderr.startswith("DCA-155: ")
    assert run("plan", SEVEN, "--gpus", "4xA100-80", **wrong).returncode == 0


@pytest.mark.slow
def test_visible_gpus_of_a_stand_in_driver_are_those_that_are_planned_for(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        "#!/bin/sh\necho 'Tesla T4, 7.5, 15360, 550.54.15'\necho 'NVIDIA A100-SXM4-80GB, 8.0, 81920, 550.54.15'\n"
    )
    program.chmod(0o755)
    words, path = (SEVEN, "--max-model-len", "65536"), f"{tmp_path}:/usr/bin:/bin"
    both = run("command", *words, PATH=path)
    assert both.returncode == 1
    assert "7.5" in both.stderr
    done = run("command", *words, "--visible", "1", PATH=path)
    assert done.returncode == 0, done.stderr
    assert "on 1 x NVIDIA A100-SXM4-80GB (79.32 GiB)" in done.stdout
    assert "export CUDA_VISIBLE_DEVICES=1" in done.stdout
    # The option wins over the shell, as it does for the server.
    assert run("command", *words, "--visible", "1", PATH=path, CUDA_VISIBLE_DEVICES="0").stdout == done.stdout
    assert run("command", *words, "--visible", "0", PATH=path, CUDA_VISIBLE_DEVICES="1").returncode == 1
    assert run("command", *words, "--visible", "x", PATH=path).stderr.startswith("DCA-201: ")


def test_command_prints_what_the_plan_says_and_force_insists(tmp_path: Path) -> None:
    done = run("command", *FOUR)
    assert done.returncode == 0
    assert "vllm serve" in done.stdout
    assert "# why" in done.stdout
    forced = run("command", SEVEN, "--gpus", "1x80", "--force")
    assert forced.returncode == 0
    assert "vllm serve" in forced.stdout
    document = json.loads(run("command", *FOUR, "--json").stdout)
    assert document["schema"] == "dca.serve-command/1"
    assert ["--enforce-eager", None] in document["flags"]


# --- charts --------------------------------------------------------------------------------------------------------


def panels(model: str, where: str) -> tuple[ServePlan, tuple[chart.Panel, ...]]:
    plan = planned(model, where)
    return plan, chart.panels(plan, shape(model), gpus.parse(where))


def test_a_bars_parts_are_what_the_plan_says() -> None:
    made, shown = panels(FOURTEEN, "4x80")
    documented, best = shown
    assert best.bars[-1].tokens == MILLION
    assert best.bars[-1].total * gpus.GIB == pytest.approx(made.planned.total)
    assert all(bar.fits for bar in best.bars)
    assert [bar.fits for bar in documented.bars] == sorted([bar.fits for bar in documented.bars], reverse=True)
    assert not documented.bars[-1].fits
    # From where it fails on, and only there.
    assert made.documented.fails_at is not None
    for bar in documented.bars:
        assert bar.fits == (bar.tokens < made.documented.fails_at)


def test_a_picture_has_a_bar_of_every_length_and_the_cards_line(tmp_path: Path) -> None:
    target = tmp_path / "memory.svg"
    assert run("plan", *FOUR, "--plot", target, "--quiet").returncode == 0
    root = ET.parse(target).getroot()
    space = "{http://www.w3.org/2000/svg}"
    _, shown = panels(FOURTEEN, "4x80")
    parts = [rect for rect in root.iter(f"{space}rect") if rect.find(f"{space}title") is not None]
    assert len(parts) == sum(len(bar.parts) for panel in shown for bar in panel.bars)
    for rect in parts:
        assert float(rect.attrib["height"]) >= 0
        assert 0 <= float(rect.attrib["y"]) <= float(root.attrib["height"])
    # Heights are proportional to memory, in one scale for both panels.
    told = [rect.find(f"{space}title") for rect in parts]
    heights = {one.text: float(rect.attrib["height"]) for one, rect in zip(told, parts, strict=True) if one is not None}
    scales = [
        height / float(re.findall(r"([\d.]+) GiB", text or "")[0])
        for text, height in heights.items()
        if float(re.findall(r"([\d.]+) GiB", text or "")[0]) > 5
    ]
    assert max(scales) / min(scales) < 1.03
    assert "80 GiB" in target.read_text(encoding="utf-8")


def test_a_text_chart_has_a_line_for_every_length_and_marks_what_fails() -> None:
    _, shown = panels(FOURTEEN, "4x80")
    lines = chart.text(shown).splitlines()
    rows = [line for line in lines if " GiB" in line and re.match(r"\s+[\d,]+  ", line)]
    assert len(rows) == sum(len(panel.bars) for panel in shown)
    assert sum("out of memory" in line for line in rows) == sum(not bar.fits for panel in shown for bar in panel.bars)
    for line in rows:
        assert line.count("|") == 1


def test_a_report_needs_no_network_and_escapes_names(tmp_path: Path) -> None:
    target = tmp_path / "report.html"
    model = folder(tmp_path / "<script>alert(1)</script>".replace("/", "-"))
    done = run("plan", model, "--gpus", "1x80", "--report", target, "--quiet")
    assert done.returncode == 0, done.stderr
    page = target.read_text(encoding="utf-8")
    assert "<script" not in page
    assert not re.search(r"(?:src|href)\s*=", page)
    assert set(re.findall(r"https?://[^\s\"'<]+", page)) == {"http://www.w3.org/2000/svg"}
    run("plan", FOURTEEN, "--gpus", "2x80", "--report", target)
    page = target.read_text(encoding="utf-8")
    for words in ("DCA-150", "--num-gpu-blocks-override", "<svg", "Other ways"):
        assert words in page


def test_a_plot_as_png_says_what_it_needs(tmp_path: Path) -> None:
    done = run("plan", *FOUR, "--plot", tmp_path / "memory.png", "--quiet")
    if done.returncode:
        assert done.stderr.startswith("DCA-103: ")
        assert list(tmp_path.iterdir()) == []
    else:
        assert (tmp_path / "memory.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("most", [1, 7, 16, 1_000, 32_768, 131_072, MILLION])
def test_lengths_of_a_chart_go_from_nothing_to_the_longest(most: int) -> None:
    result = lengths(most)
    assert result[0] == 0
    assert result[-1] == most
    assert list(result) == sorted(set(result))
    assert len(result) <= 10


def test_what_the_document_shows_is_what_is_printed() -> None:
    page = (ROOT / "docs/serve.md").read_text(encoding="utf-8")
    shown = page.split("```\n")[2].splitlines()
    assert shown[0].startswith(FOURTEEN)
    told = " ".join(run("plan", *FOUR).stdout.split())
    for line in shown:
        words = " ".join(line.replace("…", "").split())
        assert words in told, line


def test_a_models_name_on_a_hub_is_read_from_the_hubs_cache(tmp_path: Path) -> None:
    cache = str(tmp_path / "hub")
    snapshot = tmp_path / "hub/models--Org--Own-8B/snapshots/abc"
    snapshot.mkdir(parents=True)
    source = json.loads((ROOT / "tests/cases/memory/configs.json").read_text("utf-8"))["Qwen3-8B"]
    (snapshot / "config.json").write_text(json.dumps(source))
    words = ("Org/Own-8B", "--gpus", "1xA100-80")
    made = ServePlan.model_validate_json(run("plan", *words, "--json", HF_HUB_CACHE=cache).stdout)
    assert (made.model, made.served) == ("Own-8B", "Org/Own-8B")
    assert "vllm serve Org/Own-8B" in run("command", *words, HF_HUB_CACHE=cache).stdout
    other = run("plan", "Org/Other-8B", *words[1:], HF_HUB_CACHE=cache)
    assert other.returncode == 2
    assert "hf download Org/Other-8B" in other.stderr
    # A known model needs no file.
    known = run("plan", f"Qwen/{SEVEN}", "--gpus", "4x80", "--json", HF_HUB_CACHE=cache)
    assert ServePlan.model_validate_json(known.stdout).model == SEVEN
