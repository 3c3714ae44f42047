"""`dca serve run` with a script that stands in for the engine, as no GPU is here: start, log, failures, and the end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest

from dca import smoke
from dca.catalogue import logs
from dca.catalogue.failures import Known
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.store import Store
from dca.serve import ready
from dca.serve import run as serving
from dca.smoke import CaseResult, Smoke
from tests.support import ROOT, alive, left_alive, wait_for
from tests.support.prepared import run_dca
from tests.support.serving import DCA, MILLION, SEVEN, folder, subject

# Each test starts servers or programs.
pytestmark = pytest.mark.slow

READY = "INFO:     Application startup complete."
IGNORED = (
    "WARNING 01-31 12:34:56 scheduler.py:965] Input prompt (612345 tokens) + lookahead slots (0) is too long "
    "and exceeds the capacity of block_manager"
)
MEMORY = "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.47 GiB."
SMI = "for i in 1 2 3 4; do echo 'NVIDIA A100-SXM4-80GB, 8.0, 81920, 550.54.15'; done"


class StandIn:
    """An environment whose `vllm` is a script, and a driver that is one.

    Args:
        place: where they are.
        body: of the script, in Python.
    """

    def __init__(self, place: Path, body: str) -> None:
        self.bin = place / "env" / "bin"
        self.bin.mkdir(parents=True)
        self.notes = place / "notes.json"
        self.cache = place / "cache"
        self.log = place / "serve.log"
        self.model = folder(
            place / "model",
            max_position_embeddings=MILLION,
            rope_theta=1e7,
            hidden_size=3200,
            num_attention_heads=25,
            num_key_value_heads=5,
            dual_chunk_attention_config=DCA,
        )
        head = "import json, os, signal, subprocess, sys, time\nprint('started', flush=True)\n"
        head += f"notes = open({str(self.notes)!r}, 'w')\n"
        head += "json.dump({'argv': sys.argv[1:], 'env': dict(os.environ), 'pid': os.getpid()}, notes)\nnotes.close()\n"
        self._program(self.bin / "vllm", f"#!{sys.executable}\n{head}{body}")
        self._program(self.bin / "python", f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        self._program(place / "driver" / "nvidia-smi", f"#!/bin/sh\n{SMI}\n")
        self.path = f"{place / 'driver'}:{os.environ['PATH']}"

    def _program(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)

    def argv(self, *more: str, skip: str = "doctor config smoke") -> list[str]:
        skipped = [word for one in skip.split() for word in ("--skip", one)]
        return [
            sys.executable,
            "-m",
            "dca",
            "serve",
            "run",
            self.model,
            "--python",
            str(self.bin / "python"),
            "--tp",
            "1",
            "--max-model-len",
            "65536",
            "--cache-dir",
            str(self.cache),
            "--log",
            str(self.log),
            *skipped,
            *more,
        ]

    def env(self, **more: str) -> dict[str, str]:
        return {"PATH": self.path, "HOME": str(self.cache.parent), "PYTHONPATH": str(ROOT / "scripts"), **more}

    def run(self, *more: str, skip: str = "doctor config smoke", **env: str) -> subprocess.CompletedProcess[str]:
        return run_dca(*self.argv(*more, skip=skip)[3:], env=self.env(**env), timeout=120)

    @property
    def told(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.notes.read_text())
        return found


def test_the_engine_gets_the_plans_words_and_variables_and_its_log_is_shown_and_kept(tmp_path: Path) -> None:
    engine = StandIn(tmp_path, f"print({READY!r}, flush=True)\n")
    done = engine.run("--port", "9001", "--api-key", VLLM_API_KEY="secret", CUDA_VISIBLE_DEVICES="0", UNRELATED="x")
    assert done.returncode == 0, done.stderr
    argv = engine.told["argv"]
    assert isinstance(argv, list)
    assert argv[:2] == ["serve", engine.model]
    assert argv[argv.index("--num-gpu-blocks-override") + 1] == "4137"
    env = engine.told["env"]
    assert isinstance(env, dict)
    assert env["VLLM_ATTENTION_BACKEND"] == "DUAL_CHUNK_FLASH_ATTN"
    assert (env["VLLM_API_KEY"], env["CUDA_VISIBLE_DEVICES"]) == ("secret", "0")
    assert not {"UNRELATED", "PYTHONPATH"} & set(env)
    assert env["PATH"].startswith(str(engine.bin))
    assert "started" in done.stdout
    assert READY in engine.log.read_text()
    assert "ready: http://127.0.0.1:9001/v1" in done.stderr
    assert "secret" not in done.stdout + done.stderr + engine.log.read_text()


def test_an_ignored_prompt_is_explained_while_the_server_runs(tmp_path: Path) -> None:
    engine = StandIn(
        tmp_path, f"print({READY!r}, flush=True)\nprint({IGNORED!r}, flush=True)\nprint({IGNORED!r}, flush=True)\n"
    )
    done = engine.run()
    assert done.returncode == 0
    assert done.stderr.count("(prompt-over-cache)") == 1


def test_a_server_that_dies_is_named_with_its_cause(tmp_path: Path) -> None:
    engine = StandIn(tmp_path, f"print({READY!r})\nprint({MEMORY!r})\nsys.exit(3)\n")
    done = engine.run()
    assert done.returncode == 1
    assert "DCA-159: the server ended with status 3, after it had served." in done.stderr
    assert "gpu-out-of-memory" in done.stderr
    assert "--gpu-memory-utilization" in done.stderr
    other = StandIn(tmp_path / "b", "print('nobody knows this'); os.kill(os.getpid(), signal.SIGKILL)\n").run()
    assert "ended by signal 9, before it served" in other.stderr
    assert "nobody knows this" in other.stderr


def test_the_result_as_one_document(tmp_path: Path) -> None:
    done = StandIn(tmp_path, f"print({READY!r})\nprint({IGNORED!r})\n").run("--json")
    document = json.loads(done.stdout)
    assert (document["schema"], document["returncode"], document["ready"]) == ("dca.serve-run/1", 0, True)
    assert [entry["id"] for entry in document["known"]] == ["prompt-over-cache"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_whatever_ends_dca_ends_the_server_and_its_workers(number: signal.Signals, tmp_path: Path) -> None:
    # The server ends by itself when it is asked to, and says so; a worker of it would not.
    body = (
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time; signal.signal(signal.SIGTERM, "
        "signal.SIG_IGN); signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(600)'])\n"
        f"open({str(tmp_path / 'child')!r}, 'w').write(str(child.pid))\n"
        # Its output may have nobody who reads it any more.
        "def end(*_):\n    time.sleep(0.5)\n"
        f"    open({str(tmp_path / 'freed')!r}, 'w').write('yes')\n    sys.exit(0)\n"
        f"signal.signal(signal.SIGTERM, end)\nprint({READY!r}, flush=True)\nwhile True: time.sleep(0.1)\n"
    )
    engine = StandIn(tmp_path, body)
    process = subprocess.Popen(
        engine.argv(), env=engine.env(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        assert wait_for(lambda: engine.log.exists() and READY in engine.log.read_text(), 60)
        pids = [int(str(engine.told["pid"])), int((tmp_path / "child").read_text())]
        assert all(alive(one) for one in pids)
        process.send_signal(number)
        _, wrong = process.communicate(timeout=90)
    finally:
        process.kill()
        process.wait()
    assert wait_for(lambda: not any(alive(one) for one in pids), 60)
    assert left_alive(pids) == []
    assert (tmp_path / "freed").read_text() == "yes"
    if number != signal.SIGKILL:
        assert process.returncode == 130
        # A server has no results that another run continues.
        assert f"Interrupted. The server was stopped. Its log: {engine.log}" in wrong


@pytest.mark.long
def test_a_server_that_takes_its_time_is_given_it(tmp_path: Path) -> None:
    # Longer than programs of a build get.
    body = (
        f"def end(*_):\n    time.sleep(7)\n    open({str(tmp_path / 'freed')!r}, 'w').write('yes')\n    sys.exit(0)\n"
        f"signal.signal(signal.SIGTERM, end)\nprint({READY!r}, flush=True)\nwhile True: time.sleep(0.1)\n"
    )
    engine = StandIn(tmp_path, body)
    process = subprocess.Popen(engine.argv(), env=engine.env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    assert wait_for(lambda: engine.log.exists() and READY in engine.log.read_text(), 60)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 130
    assert (tmp_path / "freed").exists()


# --- what must be green first --------------------------------------------------------------------------------------


def test_nothing_is_started_when_doctor_is_red(tmp_path: Path) -> None:
    engine = StandIn(tmp_path, "")
    engine._program(tmp_path / "driver" / "nvidia-smi", "#!/bin/sh\necho 'NVIDIA B200, 10.0, 183359, 550.54.15'\n")
    done = engine.run("--gpus", "1xA100-80", skip="config smoke")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1]
    assert "DCA-105" in done.stderr
    assert "gpus.kernels" in done.stderr
    assert not engine.notes.exists()


T4 = "Tesla T4, 7.5, 15360, 550.54.15"
A100 = "NVIDIA A100-SXM4-80GB, 8.0, 81920, 550.54.15"


def driver(made: StandIn, *cards: str) -> None:
    """A driver that tells of these GPUs."""
    lines = "".join(f"echo '{card}'\n" for card in cards)
    made._program(made.cache.parent / "driver" / "nvidia-smi", f"#!/bin/sh\n{lines}")


@pytest.mark.parametrize(
    ("dtype", "model_dtype", "red"),
    [("half", "bfloat16", False), ("auto", "float16", False), ("auto", "bfloat16", True)],
)
def test_an_ordinary_model_wants_no_kernels_of_another_and_no_other_dtype(
    dtype: str, model_dtype: str, red: bool, tmp_path: Path
) -> None:
    made = StandIn(tmp_path, "")
    driver(made, T4, T4)
    made.model = folder(tmp_path / "ordinary", torch_dtype=model_dtype)
    # The plan says it of the dtype as well; these are the checks of the machine.
    done = made.run("--dtype", dtype, "--force", "--max-model-len", "8192", skip="config smoke")
    assert "DCA-105" in done.stderr
    assert ("gpus.bfloat16" in done.stderr) is red
    assert "gpus.kernels" not in done.stderr


@pytest.mark.parametrize(("visible", "red"), [("1", False), ("0", True), ("", True)])
@pytest.mark.parametrize("named", [False, True], ids=["as a variable", "as an option"])
def test_gpus_that_the_server_does_not_see_are_not_looked_at(
    visible: str, red: bool, named: bool, tmp_path: Path
) -> None:
    engine = StandIn(tmp_path, "")
    driver(engine, T4, A100)
    words = ["--visible", visible] if named and visible else []
    given = {"CUDA_VISIBLE_DEVICES": visible} if visible and not named else {}
    done = engine.run(*words, "--force", skip="config smoke", **given)
    # The environment has no engine that doctor could find.
    assert "DCA-105" in done.stderr
    assert ("gpus.kernels" in done.stderr) is red
    assert ("Tesla T4" in done.stderr) is red


def test_nothing_is_started_with_variables_that_choose_another_engine(tmp_path: Path) -> None:
    engine = StandIn(tmp_path, "")
    for more in ((), ("--gpus", "1xA100-80")):
        done = engine.run(*more, VLLM_USE_V1="1")
        assert done.returncode == 1
        assert done.stderr.startswith("DCA-155: ")
        assert not engine.notes.exists()


def test_nothing_is_started_when_the_config_is_wrong(tmp_path: Path) -> None:
    engine = StandIn(tmp_path, "")
    file = Path(engine.model) / "config.json"
    file.write_text(file.read_text().replace('"local_size": 8192', '"local_size": 8190'))
    done = engine.run(skip="doctor smoke")
    assert done.returncode == 1
    assert "DCA-129" in done.stderr
    assert not engine.notes.exists()
    # The plan finds it as well; this is the check's own.
    forced = engine.run("--force", skip="doctor smoke")
    assert "config.json has errors; nothing was started" in forced.stderr
    assert not engine.notes.exists()
    assert engine.run("--force").returncode == 0


def test_nothing_is_started_without_a_wheel_to_prove(tmp_path: Path) -> None:
    engine = StandIn(tmp_path, "")
    done = engine.run(skip="doctor config")
    assert done.returncode == 2
    assert "DCA-204" in done.stderr
    assert "--skip smoke" in done.stderr
    assert not engine.notes.exists()


def test_nothing_is_started_when_smoke_is_red(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[smoke.Request] = []

    def red(request: smoke.Request, *_: object) -> Smoke:
        asked.append(request)
        case = CaseResult(
            level="cpu",
            name="layer/decode",
            proves="decoding",
            passed=False,
            detail="off by 3",
            repeat="dca smoke x --case layer/decode",
        )
        return Smoke(
            wheel="x",
            sha256="0" * 64,
            version="1",
            recipe="r",
            level="cpu",
            python="",
            torch="",
            device="",
            seed=0,
            sources=(),
            cases=(case,),
            partial=False,
            not_proven=(),
            seconds=1.0,
        )

    monkeypatch.setattr(smoke, "smoke", red)
    wheel = tmp_path / "vllm-1-cp38-abi3-linux_x86_64.whl"
    wheel.touch()
    (tmp_path / "lib/python3.11/site-packages/vllm-1.dist-info").mkdir(parents=True)
    made, _ = subject(SEVEN, "4xA100-80", env={"CUDA_VISIBLE_DEVICES": "1,2,3,0"})
    with pytest.raises(DcaError) as refused:
        ready.check(
            made, tmp_path / "bin/python", Store(tmp_path / "cache"), Silent(), skipped=["doctor"], wheels=[wheel]
        )
    assert refused.value.code == "DCA-801"
    assert "layer/decode: off by 3" in refused.value.why
    assert refused.value.remedy == "dca smoke x --case layer/decode"
    assert (asked[0].wheel, asked[0].quick, asked[0].visible) == (wheel, True, "1,2,3,0")


def test_an_environment_without_the_engine_says_how_to_make_one(tmp_path: Path) -> None:
    engine = StandIn(tmp_path, "")
    (engine.bin / "vllm").unlink()
    done = engine.run()
    assert done.returncode == 1
    assert "DCA-103" in done.stderr
    assert "make env WHEEL=FILE" in done.stderr


# --- reading a log -------------------------------------------------------------------------------------------------


def test_each_failure_is_told_once_and_at_its_line() -> None:
    lines: list[str] = []
    known: list[tuple[int, Known]] = []
    served: list[int] = []
    watcher = serving.Watcher(
        tell=lines.append, known=lambda one: known.append((len(lines), one)), ready=lambda: served.append(len(lines))
    )
    for text in ["INFO loading", READY, READY, "ERROR nothing known", IGNORED, IGNORED, MEMORY, "INFO done"]:
        watcher.line(text)
    assert served == [2]
    assert [(at, one.id) for at, one in known] == [(5, "prompt-over-cache"), (7, "gpu-out-of-memory")]
    assert len(lines) == 8


def test_lines_that_differ_in_numbers_alone_are_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []

    def explain_lines(lines: Iterable[str]) -> tuple[Known, ...]:
        looked.append(list(lines)[-1])
        return ()

    monkeypatch.setattr(logs, "explain_lines", explain_lines)
    watcher = serving.Watcher(tell=lambda _: None, known=lambda _: None, ready=lambda: None)
    for number in range(500):
        watcher.line(f"ERROR 01-31 12:34:56 engine.py:1] request cmpl-{number:08x} failed")
        watcher.line("INFO nothing")
    watcher.line("ERROR something else")
    assert len(looked) == 2
    assert looked[-1] == "ERROR something else"


def test_variables_that_concern_the_server_are_passed_on_and_others_are_not() -> None:
    given = {
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "NCCL_DEBUG": "INFO",
        "HF_HOME": "/x",
        "LD_LIBRARY_PATH": "/l",
        "EDITOR": "vi",
        "PYTHONPATH": "/p",
        "AWS_SECRET_ACCESS_KEY": "s",
        "VLLM_USE_V1": "1",
    }
    env = serving.environment({"VLLM_USE_V1": "0"}, Path("/env/bin/python"), given)
    assert {name: env.get(name) for name in given} == {
        "VLLM_LOGGING_LEVEL": "DEBUG",
        "NCCL_DEBUG": "INFO",
        "HF_HOME": "/x",
        "LD_LIBRARY_PATH": "/l",
        "EDITOR": None,
        "PYTHONPATH": None,
        "AWS_SECRET_ACCESS_KEY": None,
        "VLLM_USE_V1": "0",
    }
    assert re.match("/env/bin:", env["PATH"])
