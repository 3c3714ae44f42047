"""What `dca explain` says of whole logs: the cause first, nothing where nothing is wrong, in every form of a log."""

from __future__ import annotations

import bz2
import gzip
import importlib.util
import io
import json
import lzma
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from types import ModuleType

import pytest

from dca.catalogue import failures, logs
from dca.catalogue.failures import UNKNOWN, Failure
from dca.catalogue.logs import Explanation, judgement, times
from tests.support import ROOT
from tests.support.prepared import run_dca

CASES = ROOT / "tests/cases/explain"
CAUSES = [failure for failure in failures.load().failures if failure.kind == "cause" and failure.texts]


def explain(text: str | bytes) -> Explanation:
    return logs.explain(io.BytesIO(text.encode() if isinstance(text, str) else text), "log")


def first(explanation: Explanation) -> tuple[str, int] | None:
    return (explanation.found[0].id, explanation.found[0].line) if explanation.found else None


# --- the logs of people ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def measured() -> ModuleType:
    spec = importlib.util.spec_from_file_location("explained", ROOT / "scripts/explained.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["explained"] = module
    spec.loader.exec_module(module)
    return module


def test_the_cause_of_real_logs_is_named(measured: ModuleType) -> None:
    wanted = measured.expected()
    verdicts = {log: measured.verdict(one, measured.explained(log)) for log, one in wanted.items()}
    counts = Counter(verdicts.values())
    wrong = {log: verdict for log, verdict in verdicts.items() if verdict != "right"}
    assert len(verdicts) == 94
    assert counts["right"] >= 85, wrong
    assert (counts["wrong"], counts["hidden"], counts["clean"]) == (0, 0, 0), wrong


@pytest.mark.slow
def test_what_a_run_that_went_well_only_mentions_is_listed_apart(measured: ModuleType) -> None:
    for log, one in measured.expected().items():
        explanation = measured.explained(log)
        assert set(one.mentioned) <= {known.id for known in explanation.overcome}, log


@pytest.mark.parametrize("log", sorted((CASES / "well").glob("*.log")), ids=lambda path: path.stem)
def test_nothing_is_named_where_a_run_went_well(log: Path) -> None:
    explanation = explain(log.read_bytes())
    assert explanation.found == ()
    assert explanation.outcome in ("well", "unclear")
    assert explanation.explained


# --- logs from a seed ------------------------------------------------------------------------------------------

NOISE = {
    "build": [
        "-- Looking for pthread_create in pthread - found",
        "[{}/141] Building CUDA object CMakeFiles/_C.dir/csrc/ops_{}.cu.o",
        'csrc/dtype_fp8.cuh(36): warning #177-D: variable "kE4M3" was declared but never referenced',
        "ptxas info    : Used {} registers, 400 bytes cmem[0]",
    ],
    "server": [
        "INFO 01-31 12:00:{} config.py:510] Defaulting to use mp for distributed inference",
        "INFO 01-31 12:00:{} model_runner.py:1115] Loading model weights took 14.{} GB",
        "Loading safetensors checkpoint shards:  {}% Completed | 1/8 [00:01<00:07,  1.1it/s]",
    ],
}
CONSEQUENCES = {
    "build": [
        "ninja: build stopped: subcommand failed.",
        "subprocess.CalledProcessError: Command '['cmake', '--build', '.']' returned non-zero exit status 1.",
        "  ERROR: Failed building wheel for vllm",
        "ERROR: Could not build wheels for vllm, which is required to install pyproject.toml-based projects",
    ],
    "server": [
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        "RuntimeError: Engine process failed to start. See stack trace for the root cause.",
    ],
}
HARMLESS = [
    ["fatal: not a git repository (or any of the parent directories): .git"],
    ["/bin/sh: 1: lsmod: not found"],
    [
        "fatal: unable to access 'https://github.com/NVIDIA/cutlass.git/': gnutls_handshake() failed: The TLS"
        " connection was non-properly terminated.",
        "HEAD is now at bbe579a Updates for CUTLASS 3.4.1",
    ],
    ["Collecting fastapi!=0.113.*,!=0.114.0 (from vllm)"],
    ["-- Performing Test CMAKE_HAVE_LIBC_PTHREAD - Failed"],
]


def noise(kind: str, chance: random.Random) -> list[str]:
    texts = [chance.choice(NOISE[kind]) for _ in range(chance.randint(2, 12))]
    return [text.replace("{}", str(chance.randint(10, 59))) for text in texts]


def kind_of(failure: Failure) -> str:
    server = any(word in failure.example for word in ("vllm/", "INFO ", "rank", "HTTP", "Error: "))
    return "server" if server else "build"


def made(failure: Failure, chance: random.Random, prefix: str = "") -> str:
    """A log with one fatal failure, what follows from it, and harmless texts around it."""
    kind = kind_of(failure)
    lines = noise(kind, chance)
    for harmless in chance.sample(HARMLESS, chance.randint(0, 3)):
        lines += [*harmless, *noise(kind, chance)]
    lines += [*failure.example.strip("\n").split("\n"), *noise(kind, chance)[:2]]
    lines += chance.sample(CONSEQUENCES[kind], chance.randint(1, len(CONSEQUENCES[kind])))
    return "\n".join(prefix + line for line in lines) + "\n"


def fatal() -> list[Failure]:
    """Failures whose examples say by themselves that something failed, and that no tool's log contradicts."""
    explained = [(failure, explain(failure.example).found) for failure in CAUSES if not failure.tools]
    return [failure for failure, found in explained if found and not re.search("WARN|INFO|Warning", found[0].text)]


@pytest.mark.proof
def test_the_fatal_failure_comes_first_in_logs_from_a_seed(scale: Callable[[int], int], chance: random.Random) -> None:
    some = fatal()
    missed = []
    count = scale(500)
    for _ in range(count):
        failure = chance.choice(some)
        explanation = explain(made(failure, chance))
        if (first(explanation) or ("",))[0] != failure.id:
            missed.append((failure.id, [known.id for known in explanation.found]))
    # Of a few logs, one may be among those.
    assert len(missed) <= max(1, count * 0.05), missed


@pytest.mark.proof
def test_of_two_processes_that_fail_the_earlier_comes_first(scale: Callable[[int], int], chance: random.Random) -> None:
    some = [failure for failure in fatal() if len(failure.example) < 600]
    missed = []
    count = scale(100)
    # Of a bare `Killed`, what was killed is decided by what stands around it: here, the other one's text.
    kills = {failure.id for failure in some if failure.id.endswith("-killed")}

    def is_first(found: list[str], wanted: str) -> bool:
        return found[:1] == [wanted] or (wanted in kills and bool(kills.intersection(found[:1])))

    for _ in range(count):
        one, other = chance.sample(some, 2)
        if one.id in other.consequence_of or other.id in one.consequence_of:
            continue
        text = made(one, chance, "(Worker_TP0 pid=11) ") + made(other, chance, "(Worker_TP1 pid=12) ")
        found = [known.id for known in explain(text).found]
        if not is_first(found, one.id) or (other.id not in found and other.id not in kills):
            missed.append((one.id, other.id, found))
    assert len(missed) <= count * 0.05, missed


# --- which line is the cause -----------------------------------------------------------------------------------

TRACE = 'Traceback (most recent call last):\n  File "/app/x.py", line 1, in f\n    g()\n'


def test_the_last_exception_of_the_process_that_died_first_is_shown_even_if_unknown() -> None:
    worker, engine = (
        "(Worker_TP1 pid=7) ERROR 11-28 12:30:49 [x.py:9] ",
        "(EngineCore pid=5) ERROR 11-28 12:30:54 [core.py:1] ",
    )
    text = "".join(f"{worker}{line}\n" for line in [*TRACE.splitlines(), "ValueError: a tensor of nothing"])
    text += "".join(
        f"{engine}{line}\n"
        for line in [
            *TRACE.splitlines(),
            "Exception: WorkerProc initialization failed. See stack trace for root cause.",
        ]
    )
    text += TRACE + "RuntimeError: Engine core initialization failed. See root cause above.\n"
    explanation = explain(text)
    assert first(explanation) == (UNKNOWN, 4)
    assert not explanation.explained


@pytest.mark.parametrize(
    ("link", "line"),
    [
        ("The above exception was the direct cause of the following exception:", 4),
        ("During handling of the above exception, another exception occurred:", 10),
    ],
)
def test_chained_exceptions_are_followed_to_the_one_that_counts(link: str, line: int) -> None:
    text = f"{TRACE}KeyError: 'one'\n\n{link}\n{TRACE}LookupError: another\n"
    assert first(explain(text)) == (UNKNOWN, line)


def test_consequences_alone_are_shown_as_what_they_are() -> None:
    explanation = explain(
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}\n"
    )
    assert not explanation.explained
    assert "not in this log" in explanation.found[0].reason


def test_an_error_before_a_success_is_not_reported_and_one_after_it_is() -> None:
    killed = "FAILED: a.o\nKilled\nninja: build stopped: subcommand failed.\n"
    well = explain(f"{killed}Successfully installed vllm-0.10.2\n")
    assert (well.found, well.outcome, [known.id for known in well.overcome]) == ((), "well", ["compiler-killed"])
    assert first(explain(f"Successfully installed torch-2.5.1\n{killed}")) == ("compiler-killed", 3)
    # What went well in another container says nothing of this one.
    assert (
        first(explain(f"a-1  | {killed.replace(chr(10), chr(10) + 'a-1  | ')}x\nb-1  | Successfully installed y\n"))
        is not None
    )


@pytest.mark.parametrize(
    "error",
    [
        "OSError: [Errno 28] No space left on device: '/root/.cache/x'",
        "error: could not write the index",
        "ValueError: a tensor of nothing",
    ],
)
def test_an_error_before_a_few_quiet_lines_is_the_cause_as_the_log_may_have_been_cut(error: str) -> None:
    lines = [f"copying part {number}" for number in range(judgement.QUIET)]
    for quiet in (0, 10, 30, judgement.QUIET - 1):
        explanation = explain("\n".join([*lines[:9], error, *lines[:quiet]]))
        assert (explanation.outcome, explanation.found[0].line) == ("failed", 10), quiet
    # A program that prints on and on has only reported it; one that says that it went well, too.
    for later in ([*lines, "copying"], [*lines[:9], "Successfully installed x-1"]):
        assert explain("\n".join([error, *later])).found == ()


def test_a_number_decides_between_two_failures_and_stands_in_the_answer() -> None:
    old, new = (explain(f"nvcc fatal   : Unsupported gpu architecture 'compute_{n}'\n").found[0].id for n in (70, 120))
    assert (old, new) == ("gpu-arch-dropped", "gpu-arch-unknown")


# --- every form ------------------------------------------------------------------------------------------------

PLAIN = (CASES / "02-cudafe-signal9.log").read_text()
ANSWER = ("compiler-killed", 54)
STAMP = "2025-10-13T09:06:25.1234567Z "


def each(prefix: str) -> bytes:
    return "".join(f"{prefix}{line}\n" for line in PLAIN.splitlines()).encode()


FORMS: dict[str, bytes] = {
    "utf-16 with a mark": PLAIN.encode("utf-16"),
    "utf-16 of the other order": b"\xfe\xff" + PLAIN.encode("utf-16-be"),
    "utf-16 without a mark": PLAIN.encode("utf-16-le"),
    "utf-8 with a mark": b"\xef\xbb\xbf" + PLAIN.encode(),
    "Windows line ends": PLAIN.replace("\n", "\r\n").encode(),
    "gzip": gzip.compress(PLAIN.encode()),
    "bzip2": bz2.compress(PLAIN.encode()),
    "xz": lzma.compress(PLAIN.encode()),
    "docker's json-file": "".join(
        json.dumps({"log": f"{line}\n", "stream": "stderr", "time": "t"}) + "\n" for line in PLAIN.splitlines()
    ).encode(),
    "BuildKit": each("#19 271.7 "),
    "GitHub Actions": each(STAMP),
    "gh run view --log": each(f"build\tRun make wheel\t{STAMP}"),
    "Kubernetes": each("2025-10-13T09:06:25.123456789Z stderr F "),
    "kubectl --prefix": each("[pod/vllm-0/server] "),
    "docker compose": each("vllm-1  | "),
    "journald": each("Nov 28 12:30:49 host vllm[123]: "),
    "docker's json-file with times": "".join(
        json.dumps({"log": f"{line}\n", "stream": "stderr", "time": "2025-10-13T09:06:25.123456789Z"}) + "\n"
        for line in PLAIN.splitlines()
    ).encode(),
    "journald as JSON": "".join(
        json.dumps({"__REALTIME_TIMESTAMP": "1760346385123456", "MESSAGE": line}) + "\n" for line in PLAIN.splitlines()
    ).encode(),
    "docker compose --timestamps": each(f"vllm-1  | {STAMP}"),
    "colours": each("\x1b[1;31m").replace(b"\n", b"\x1b[0m\n"),
    "behind progress bars": each("  7%|###    | 1/14\r"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_log_is_read_in_every_form(form: str) -> None:
    assert first(explain(FORMS[form])) == ANSWER


@pytest.mark.parametrize(
    "prefix",
    [
        STAMP,
        f"build\tRun make wheel\t{STAMP}",
        f"vllm-1  | {STAMP}",
        "2025-10-13T09:06:25.123456789Z stderr F ",
        "2023-11-29 11:34:19 ",
        "2023-10-06 05:57:22 | ERROR | stderr | ",
        "3039.4 ",
        "#19 3039.4 ",
        "Aug 19 18:34:27 vllm vllm[8727]: (EngineCore pid=8727) ERROR 08-19 18:34:27 [core.py:1349] ",
        "(name of a model, pid=2150) (EngineCore_0 pid=3966) ERROR 08-21 07:45:43 [core.py:700] ",
    ],
)
def test_a_traceback_is_one_behind_every_prefix(prefix: str) -> None:
    text = f"{TRACE}RuntimeError: a build of nothing:\nnvcc fatal   : Unknown option 'x'\n{TRACE}ValueError: another\n"
    explanation = explain("".join(f"{prefix}{line}\n" for line in text.splitlines()))
    assert first(explanation) == (UNKNOWN, 5)
    alone = explain("".join(f"{prefix}{line}\n" for line in f"{TRACE}{TRACE}ValueError: another\n".splitlines()))
    assert alone.found[0].reason.startswith("the last exception")


@pytest.mark.parametrize("encoded", [FORMS["gzip"], FORMS["utf-16 with a mark"], FORMS["docker's json-file"]])
def test_a_form_is_recognized_however_it_arrives(encoded: bytes) -> None:
    class Slowly(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 1, 3) if size and size > 0 else 3)

    assert first(logs.explain(Slowly(encoded), "log")) == ANSWER


@pytest.mark.parametrize(
    "line",
    [
        "/tmp/x/main.c:5:10: schwerwiegender Fehler: Python.h: Datei oder Verzeichnis nicht gefunden",
        "/tmp/x/main.c:5:10: erreur fatale : Python.h: Aucun fichier ou dossier de ce nom",
        "/tmp/x/main.c:5:10: 致命错误: Python.h: 没有那个文件或目录",
        "/tmp/x/main.c:5:10: fatal error: Python.h: Nie ma takiego pliku ani katalogu",
        "/tmp/x/main.c:5:10: 嚴重錯誤\uff1aPython.h\uff1a沒有此一檔案或目錄",
    ],
)
def test_a_compiler_may_speak_another_language(line: str) -> None:
    assert first(explain(f"gcc main.c\n{line}\n")) == ("python-headers-missing", 2)


def test_a_shell_may_speak_another_language_and_words_in_other_words_are_none_of_its() -> None:
    assert first(explain("build.sh: line 4:  1234 죽었음                  nvcc -c a.cu\n")) == ("compiler-killed", 1)
    assert explain("Zabity and Dödade are names, and Matadores too\nUccisori\n").found == ()


@pytest.mark.parametrize(
    "line",
    [
        "bash: ./build.sh: Permission denied",
        "mkdir: cannot create directory '/opt/x': Read-only file system",
        "ssh: connect to host 10.0.0.1 port 22: Connection refused",
        "curl: (56) Recv failure: Connection reset by peer",
        "zsh: command not found: x",
        "/usr/bin/python3: No module named x",
        "gzip: stdin: not in gzip format",
        "double free or corruption (!prev)",
        "x: a.cpp:3: int main(): Assertion `x' failed.",
        "Error response from daemon: dockerfile parse error line 36: unknown instruction: GCC",
        "  Warning  BackOff  1s  kubelet  Back-off restarting failed container x in pod x-0",
        "x-1 exited with code 1",
        "Traceback (most recent call last):",
    ],
)
def test_a_failure_that_no_entry_knows_is_never_called_clean(line: str) -> None:
    explanation = explain(f"starting\n{line}\n")
    assert first(explanation) == (UNKNOWN, 2)
    assert not explanation.explained


def test_an_exception_of_any_name_ends_a_traceback() -> None:
    assert first(explain(f"{TRACE}vllm.exceptions.Odd: strange\n")) == (UNKNOWN, 4)
    assert first(explain(f"{TRACE}Odd\n")) == (UNKNOWN, 4)


def test_what_a_logger_writes_as_json_is_as_serious_as_it_says() -> None:
    def of(level: str) -> str:
        return json.dumps({"time": "2025-01-31T12:00:01.5Z", "level": level, "message": "no answer"}) + "\n"

    assert first(explain(of("INFO") + of("error"))) == (UNKNOWN, 2)
    assert explain(of("INFO") + of("WARNING")).found == ()


def test_a_container_that_ended_by_itself_or_was_stopped_did_not_fail() -> None:
    for code in (0, 130, 143):
        assert explain(f"x-1  | Application shutdown complete.\nx-1 exited with code {code}\n").found == ()


def test_what_a_program_said_before_it_ended_itself_is_the_cause() -> None:
    assert first(explain("Error: a graph of nothing\nhandle is invalid\nAborted (core dumped)\n")) == (UNKNOWN, 1)


@pytest.mark.parametrize("signal", ["Segmentation fault", "Aborted", "Illegal instruction", "Bus error"])
def test_what_a_shell_says_of_a_signal_is_an_error_however_it_is_aligned(signal: str) -> None:
    for line in (
        f"run.sh: line 4:    12 {signal:<22} (core dumped) ./x",
        f"run.sh: line 4:    12 {signal}          ./x",
    ):
        assert first(explain(f"starting\n{line}\n")) == (UNKNOWN, 2), line


def test_a_message_that_cmake_wraps_is_one_line() -> None:
    wrapped = ["Unable to find python matching:", "/a/very/long/path/bin/python3.11."]
    log = "".join(f"  {line}\n" for line in wrapped)
    assert first(explain(f"CMake Error at CMakeLists.txt:8 (message):\n{log}")) == ("cmake-too-old", 2)


def test_a_cause_that_uv_wraps_is_one_line() -> None:
    wrapped = ["error: No solution found when resolving dependencies"]
    wrapped += [
        "  cause: Because fastapi==0.115.6 depends on starlette<0.42.0 and you require fastapi==0.115.6, we can"
    ]
    wrapped += ["         conclude that you require starlette<0.42.0."]
    wrapped += [
        "         And because you require starlette==0.46.0, we can conclude that your requirements are unsatisfiable."
    ]
    assert first(explain("".join(f"{line}\n" for line in wrapped))) == ("requirements-conflict", 2)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it is empty"),
        (b"\n \n", "it is empty"),
        (gzip.compress(PLAIN.encode())[:-40], "its gzip data is damaged or ends early"),
        (b"\x28\xb5\x2f\xfd" + bytes(range(256)) * 20, "it is not text"),
    ],
)
def test_what_cannot_be_read_is_never_called_clean(content: bytes, why: str) -> None:
    explanation = explain(content)
    if explanation.found:  # what could be read has the cause
        return
    assert (explanation.outcome, explanation.reason) == ("unreadable", why)
    assert not explanation.explained


# --- the command -----------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_folder_of_logs_is_explained_failures_first(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("Successfully installed x-1\n")
    (tmp_path / "b.log").write_text("RuntimeError: CUDA error: device-side assert triggered in vllm\n")
    done = run_dca("explain", tmp_path, "--json")
    document = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    assert document["schema"] == "dca.explanations/1"
    assert [Path(one["log"]).name for one in document["logs"]] == ["b.log", "a.log"]
    told = run_dca("explain", tmp_path).stdout
    assert told.startswith(f"First failure: {tmp_path}/b.log, line 1: ")


SERVER = "ERROR 01-31 12:00:{} [core.py:9] "


@pytest.mark.parametrize(
    ("texts", "order"),
    [
        # By the times of their lines, not by name or by when the files were written.
        (
            {
                "a.log": "2025-01-31T12:00:50Z stderr F ConnectionRefusedError: [Errno 111] Connection refused\n",
                "b.log": f"{SERVER.format(41)}torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB.\n",
                "c.log": "[2025-01-31 14:00:45,123 +0200] ValueError: a tensor of nothing\n",
            },
            ["b.log", "c.log", "a.log"],
        ),
        # A traceback has the time of a line above it; without any, the time of the file counts.
        (
            {
                "a.log": f"{SERVER.format(59)}it failed:\nTraceback (most recent call last):\nKeyError: 'a'\n",
                "b.log": "ValueError: a tensor of nothing\n",
                "c.log": "Jan 31 12:00:01 host vllm[7]: RuntimeError: an engine of nothing\n",
            },
            ["c.log", "b.log", "a.log"],
        ),
    ],
)
def test_the_logs_of_a_folder_stand_in_the_order_in_which_they_failed(texts: dict[str, str], order: list[str]) -> None:
    written = datetime(2025, 1, 31, 12, 0, 30, tzinfo=timezone.utc).timestamp()
    explained = [(logs.explain(io.BytesIO(text.encode()), name), written) for name, text in texts.items()]
    assert all(one.found for one, _ in explained)
    assert [one.log for one in logs.in_order(explained)] == order


def json_file(text: str, seconds: int) -> str:
    return "".join(
        json.dumps({"log": f"{line}\n", "stream": "stderr", "time": f"2025-01-31T12:00:{seconds + number:02}.5Z"})
        + "\n"
        for number, line in enumerate(text.splitlines())
    )


def test_the_times_of_docker_count_for_the_logs_of_a_folder() -> None:
    written = datetime(2025, 1, 31, 12, 0, 30, tzinfo=timezone.utc).timestamp()
    texts = {"a": json_file(f"{TRACE}KeyError: 'a'", 40), "b": json_file(f"{TRACE}KeyError: 'b'", 20)}
    explained = [(logs.explain(io.BytesIO(text.encode()), name), written) for name, text in texts.items()]
    assert [(one.log, one.found[0].time) for one in logs.in_order(explained)] == [
        ("b", "2025-01-31T12:00:23.5Z"),
        ("a", "2025-01-31T12:00:43.5Z"),
    ]


@pytest.mark.parametrize(
    "prefix", ["{}\tRun it\t2025-01-31T12:00:{:02}.1234567Z ", "{}-1  | 2025-01-31T12:00:{:02}.5Z "]
)
def test_of_containers_or_jobs_that_follow_in_a_log_the_one_that_failed_first_comes_first(prefix: str) -> None:
    def of(name: str, seconds: int, error: str) -> str:
        lines = [*TRACE.splitlines(), error]
        return "".join(f"{prefix.format(name, seconds + number)}{line}\n" for number, line in enumerate(lines))

    client, server = "KeyError: 'a'", "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB."
    assert first(explain(of("a", 40, client) + of("b", 20, "ValueError: none"))) == (UNKNOWN, 8)
    known = explain(of("a", 40, "OSError: [Errno 98] Address already in use") + of("b", 20, server))
    assert [found.id for found in known.found] == ["gpu-out-of-memory", "port-in-use"]


def test_without_a_time_on_each_line_the_order_of_the_lines_counts() -> None:
    def of(prefix: str, error: str) -> str:
        return "".join(f"{prefix}{line}\n" for line in [*TRACE.splitlines(), error])

    assert first(explain(of("a-1  | ", "KeyError: 'a'") + of(f"b-1  | {STAMP}", "KeyError: 'b'"))) == (UNKNOWN, 4)


def test_a_step_of_buildkit_that_ended_well_overcame_its_errors() -> None:
    text = (
        "#12 30.51 fatal: early EOF\n#12 36.1 Cloning into 'x'...\n#12 DONE 51.3s\n#13 [5/9] RUN make\n#13 DONE 0.4s\n"
    )
    assert explain(text).found == ()
    assert first(explain(text.replace("#12 DONE 51.3s\n", ""))) == ("git-unreachable", 1)


def test_an_unknown_error_far_above_a_known_one_is_the_cause() -> None:
    error = "a.cpp:7:3: error: 'none' was not declared in this scope\n"
    quiet = "".join(f"[{number}/900] Building CXX object a{number}.o\n" for number in range(judgement.NEAR + 1))
    killed = "FAILED: b.o\nKilled\nninja: build stopped: subcommand failed.\n"
    assert first(explain(error + quiet + killed)) == (UNKNOWN, 1)


def test_a_time_without_a_year_is_the_last_one_before_the_log_was_written() -> None:
    written = datetime(2026, 1, 2, tzinfo=timezone.utc).timestamp()
    assert times.seconds("INFO 12-31 23:00:00", written) == written - 25 * 3600
    assert times.seconds("I0101 23:00:00.5", written) == written - 3600 + 0.5
    assert times.seconds("INFO 02-31 23:00:00", written) is None


@pytest.mark.slow
def test_standard_input_is_followed_while_it_is_written() -> None:
    command = [sys.executable, "-m", "dca", "explain", "--follow"]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT / "scripts")}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    ) as program:
        assert program.stdin is not None
        assert program.stderr is not None
        program.stdin.write(b"loading\nAssertionError: CUDA_HOME is not set\n")
        program.stdin.flush()
        # Before the input ends.
        assert b"cuda-home-unset" in program.stderr.readline()
        program.stdin.close()
        assert program.stdout is not None
        output = program.stdout.read().decode()
        assert program.wait() == 0
    assert output.startswith("loading\nAssertionError: CUDA_HOME is not set\n")
    assert "What happened: torch found no CUDA toolkit (cuda-home-unset)" in output


@pytest.mark.slow
def test_the_answer_fits_a_screen() -> None:
    for log in sorted(CASES.glob("*.log"))[::9]:
        done = run_dca("explain", log)
        assert len(done.stdout.splitlines()) <= 40, log
