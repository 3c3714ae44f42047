"""Engines in processes of their own: stand-ins of vLLM's command line that answer, refuse, end or disagree."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from dca.in_wheel_env.proof import engine, processes
from dca.in_wheel_env.proof.case import Untestable, Wrong

# A server with the paths that are asked for. It says what it was asked in the tokens of its answer.
SERVER = """
import json, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

words = sys.argv[1:]
assert words[0] == "serve"


class Handler(BaseHTTPRequestHandler):
    def answer(self, status, text):
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self):
        self.answer(200, "")

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        choices = [
            {
                "index": number,
                "logprobs": {
                    "tokens": [f"token_id:{prompt[0]}"] * body["max_tokens"],
                    "top_logprobs": [{f"token_id:{prompt[0]}": -0.5, "token_id:7": -1.0}] * body["max_tokens"],
                },
            }
            for number, prompt in reversed(list(enumerate(body["prompt"])))
        ]
        self.answer(STATUS, json.dumps({"choices": choices}))


HTTPServer(("127.0.0.1", int(words[words.index("--port") + 1])), Handler).serve_forever()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package `vllm`, empty but for a console script, found by this process and those it starts."""
    site = tmp_path / "packages"
    installed = site / "vllm-1.0.dist-info"
    installed.mkdir(parents=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[console_scripts]\nvllm = vllm.command:main\n")
    home = site / "vllm"
    home.mkdir()
    (home / "__init__.py").touch()
    monkeypatch.syspath_prepend(site)
    monkeypatch.setenv("PYTHONPATH", str(site))
    return home


@pytest.fixture
def command_line(package: Path, tmp_path: Path) -> Callable[[str], Path]:
    """Writes the module that the console script `vllm` names, and returns a folder for the model."""

    def install(code: str) -> Path:
        (package / "command.py").write_text(code)
        (tmp_path / "model").mkdir()
        return tmp_path / "model"

    return install


def test_answers_of_a_stand_in_server_come_in_the_order_of_the_prompts(command_line: Callable[[str], Path]) -> None:
    folder = command_line(SERVER.replace("STATUS", "200"))
    answers, seen = processes.over_http(engine.SERVER, str(folder), [[11, 1], [12, 1], [13, 1]])
    assert [words for words, _ in answers] == [[number] * engine.SERVER.words for number in (11, 12, 13)]
    assert answers[0][1][0] == {11: -0.5, 7: -1.0}
    assert seen.steps == 0


def test_a_stand_in_server_that_refuses_fails_with_its_status(command_line: Callable[[str], Path]) -> None:
    folder = command_line(SERVER.replace("STATUS", "500"))
    with pytest.raises(Wrong, match="status 500"):
        processes.over_http(engine.SERVER, str(folder), [[11]])


def test_a_stand_in_server_that_ends_fails_with_its_last_line(command_line: Callable[[str], Path]) -> None:
    folder = command_line("raise SystemExit('no such model')")
    with pytest.raises(Wrong, match=r"ended with 1: no such model"):
        processes.over_http(engine.SERVER, str(folder), [[11]])


def test_settings_become_flags_of_the_command_line(command_line: Callable[[str], Path]) -> None:
    folder = command_line("import sys; print(*sys.argv); raise SystemExit(3)")
    plan = replace(engine.SERVER, settings={"enforce_eager": False, "block_size": 32})
    with pytest.raises(Wrong, match=r"--block-size 32 .*--no-enable-prefix-caching --no-enforce-eager"):
        processes.over_http(plan, str(folder), [[11]])


RANK = """
import json, os, sys, time
result = sys.argv[2]
prompts = json.load(open(sys.argv[1] + "/prompts.json"))
rank = int(os.environ["RANK"])
if rank == 1 and ENDS:
    raise SystemExit("no second device")
while ENDS:
    # As a real one waits for the other.
    time.sleep(1)
answers = [[[prompt[0] + (rank if DIFFERS else 0)], [{"5": -0.25}]] for prompt in prompts]
json.dump({"answers": answers, "steps": 3, "counts": {"pieces": 1}}, open(result, "w"))
"""


@pytest.fixture
def ranks(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Replaces the program of a rank by a stand-in, and returns a folder for the model."""
    (package / "executor").mkdir()
    (package / "executor/uniproc_executor.py").write_text(f"class {processes.LAUNCHED}: ...\n")

    def install(*, ends: bool = False, differs: bool = False) -> str:
        program = tmp_path / "rank.py"
        program.write_text(f"ENDS, DIFFERS = {ends}, {differs}\n{RANK}")
        monkeypatch.setattr(processes, "RANK", program)
        return str(tmp_path)

    return install


def test_stand_in_ranks_that_agree_give_their_answers_and_steps(ranks: Callable[..., str]) -> None:
    answers, seen = processes.by_ranks(engine.RANKS, ranks(), [[9], [4]])
    assert answers == [([9], [{5: -0.25}]), ([4], [{5: -0.25}])]
    assert (seen.steps, seen.counts) == (3, {"pieces": 1})


def test_stand_in_ranks_that_disagree_fail(ranks: Callable[..., str]) -> None:
    with pytest.raises(Wrong, match="different answers"):
        processes.by_ranks(engine.RANKS, ranks(differs=True), [[9]])


def test_a_stand_in_rank_that_ends_early_fails_although_the_other_waits_for_it(ranks: Callable[..., str]) -> None:
    with pytest.raises(Wrong, match="ended with 1: no second device"):
        processes.by_ranks(engine.RANKS, ranks(ends=True), [[9]])


def test_ranks_of_a_release_that_starts_them_itself_cannot_be_tested(ranks: Callable[..., str], package: Path) -> None:
    folder = ranks()
    (package / "executor/uniproc_executor.py").unlink()
    with pytest.raises(Untestable):
        processes.by_ranks(engine.RANKS, folder, [[9]])


def test_no_program_is_left_behind(command_line: Callable[[str], Path], tmp_path: Path) -> None:
    file = json.dumps(str(tmp_path / "pid"))
    folder = command_line(f"import os; open({file}, 'w').write(str(os.getpid()))\n{SERVER.replace('STATUS', '500')}")
    with pytest.raises(Wrong):
        processes.over_http(engine.SERVER, str(folder), [[11]])
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)
