"""The lines of `dca serve command` in the real parsers of the engines that they are for: every flag, every format."""

from __future__ import annotations

import ast
import itertools
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dca import cli
from dca.catalogue import releases
from dca.serve import versions
from dca.serve.command import FORMATS, Launch
from tests.serve.conftest import Engines
from tests.serve.test_command import by_a_shell, units, unquoted
from tests.support import ROOT, real_vllm
from tests.support.serving import FOURTEEN, ORDINARY, SEVEN, THIRTY, folder

pytestmark = [pytest.mark.network, pytest.mark.whole]

WORKER = ROOT / "tests/workers/parse_serve_lines.py"
SOURCES = ("flags.py", "command.py")
"""Where flags are written, in scripts/dca/serve."""
SERVER = ["--served-model-name", "org/name", "--host", "127.0.0.1", "--port", "9001"]
SERVER += ["--tools", "--chat-template", "{template}", "--api-key"]
SMALL = ["--max-model-len", "4096"]
# What both engines have, and then what only the newer one has.
BOTH = [
    [ORDINARY, "--gpus", "1x24", "--dtype", "half", "--enable-prefix-caching", *SMALL],
    [ORDINARY, "--gpus", "1x24", "--kv-cache-memory-bytes", "4000000000", "--block-size", "32", *SMALL],
    [ORDINARY, "--gpus", "1x24", "--enforce-eager", "--max-num-seqs", "4", "--gpu-memory-utilization", "0.8", *SMALL],
    [ORDINARY, "--gpus", "1x24", "--num-gpu-blocks-override", "1000", "--max-num-batched-tokens", "1024", *SMALL],
    [ORDINARY, "--gpus", "2x24", "--machines", "2", "--tp", "2", "--pp", "2", *SMALL],
    [ORDINARY, "--gpus", "2xH100-80", "--quantization", "fp8", "--kv-cache-dtype", "fp8", *SMALL],
    # The model of four key heads: eight ranks hold each twice.
    ["{wide}", "--gpus", "8x80", "--tp", "8", "--decode-context-parallel-size", "2", *SMALL],
    ["{mixture}", "--gpus", "4x80", "--enable-expert-parallel", *SMALL],
    ["Org/Own@abc", "--gpus", "1x24", "--trust-remote-code", *SMALL],
]
NEWER = [
    [ORDINARY, "--gpus", "1x24", "--kv-offloading-size", "4", *SMALL],
    [ORDINARY, "--gpus", "1x24", "--max-model-len", "-1"],
]
DUAL = [
    [SEVEN, "--gpus", "4xA100-80"],
    [FOURTEEN, "--gpus", "4xA100-40", "--machines", "2", "--tp", "4", "--pp", "2"],
    [THIRTY, "--gpus", "4xH100-80", "--enable-expert-parallel"],
]


@dataclass(frozen=True)
class Printed:
    """What `dca serve command` printed.

    Args:
        launch: the command in its neutral form.
        lines: the words after `vllm`, by the format that they were read from.
        call: the arguments of the script's engine.
        variables: those that are set.
    """

    launch: Launch
    lines: dict[str, list[str]]
    call: dict[str, Any]
    variables: set[str]


def files(place: Path) -> dict[str, str]:
    """Models of shapes that build/models does not have, one in a hub's cache, and a chat template, which must exist."""
    (place / "my.jinja").write_text("{{ messages }}")
    folder(place / "hub/models--Org--Own/snapshots/abc")
    wide = folder(place / "wide", num_attention_heads=32, num_key_value_heads=4, hidden_size=4096)
    mixture: dict[str, Any] = {
        "architectures": ["Qwen2MoeForCausalLM"],
        "model_type": "qwen2_moe",
        "num_experts": 64,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 1408,
        "shared_expert_intermediate_size": 5632,
    }
    return {"wide": wide, "mixture": folder(place / "mixture", **mixture), "template": str(place / "my.jinja")}


def printed(words: list[str], place: Path, capsys: pytest.CaptureFixture[str]) -> Printed:
    """The command in every format, each read by what reads that format."""

    def call(*more: str) -> str:
        code = cli.run(["serve", "command", *words, *more, "--quiet"])
        said = capsys.readouterr()
        assert code == 0, said.err
        return said.out

    launch = Launch.model_validate_json(call("--json"))
    texts = {name: call("--format", name) for name in (*FORMATS, "recipe")}
    lines = {name: by_a_shell(texts[name], place)["told"][-1]["argv"] for name in ("shell", "docker")}
    lines["systemd"] = unquoted(list(units(texts["systemd"]).values())[-1]["ExecStart"][0])
    lines["k8s"] = _in_a_pod(texts["k8s"])
    lines = {name: argv[_place_of_vllm(argv) + 1 :] for name, argv in lines.items()}
    # The program is the entry point of vLLM's own image, which stands between it and its words.
    lines["docker"] = lines["docker"][launch.image == lines["docker"][0] :]
    lines["recipe"] = _of_a_recipe(texts["recipe"])
    # The image's own command, which the others take the place of.
    command = re.search(r"^CMD (.*)$", texts["dockerfile"], re.MULTILINE)
    assert command is not None
    assert json.loads(command[1]) == ["vllm", "--help"]
    # The engine looks for the model as soon as it is named; any folder will do.
    call_of = {**_of_a_script(texts["python"]), "model": str(place)}
    return Printed(launch, lines, call_of, set(launch.environment))


def _place_of_vllm(argv: list[str]) -> int:
    return next(place for place, word in enumerate(argv) if word.rpartition("/")[2] == "vllm")


def _in_a_pod(text: str) -> list[str]:
    workload = next(yaml.safe_load_all(text))
    argv: list[str] = workload["spec"]["template"]["spec"]["containers"][0]["command"]
    if "vllm" in argv:
        return argv
    # Of several machines: the first pod starts the server once the others are there.
    lead = next(line for line in re.split(r"[;\n]", argv[-1]) if "exec vllm" in line)
    return shlex.split(lead)


def _of_a_recipe(text: str) -> list[str]:
    recipe = yaml.safe_load(text)
    arguments = [*recipe["model"]["base_args"], *itertools.chain(*(one["args"] for one in recipe["features"].values()))]
    return ["serve", recipe["model"]["model_id"], *map(str, arguments)]


def _of_a_script(text: str) -> dict[str, Any]:
    (call,) = (
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "LLM"
    )
    given = {word.arg: word.value for word in call.keywords if word.arg}
    return {name: ast.literal_eval(value) for name, value in given.items() if name != "model"}


def in_the_engine(name: str, engines: Engines, asked: list[Printed], place: Path) -> dict[str, Any]:
    """What the engine's own parser and Python interface make of it all, and of flags that not every version has."""
    made = engines(name)
    lines = [line for one in asked for line in one.lines.values()]
    lines += [["serve", "m", *_with_value(one.flag).split()] for one in versions.load().flags]
    (place / "request.json").write_text(json.dumps({"lines": lines, "calls": [one.call for one in asked]}))
    argv: list[str | Path] = [made.python, "-I", WORKER, place / "request.json"]
    done = subprocess.run(
        argv, env=real_vllm.environment(made, place), cwd=place, text=True, capture_output=True, check=False
    )
    told = [line.removeprefix("TOLD ") for line in done.stdout.splitlines() if line.startswith("TOLD ")]
    assert told, done.stderr[-3000:]
    return dict(json.loads(told[-1]))


def differing(launch: Launch, values: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Flags whose value the engine reads as another one."""
    for flag, value in launch.flags:
        read = values.get(flag.removeprefix("--").replace("-", "_"))
        wanted: Any = True if value is None else value
        if isinstance(read, list):
            wanted = [value]
        elif isinstance(read, (int, float)) and not isinstance(read, bool):
            wanted = float(value or "nan")
        if read != wanted:
            yield flag, wanted, read


ENGINES = {
    "vllm-0.10.2": [
        *([*words, "--recipe", "vllm-0.10.2"] for words in (*BOTH, *DUAL)),
    ],
    "vllm-0.32": [
        *([*words, "--engine-version", "0.32.0"] for words in (*BOTH, *NEWER)),
        *([*words, "--recipe", "vllm-0.32"] for words in DUAL),
    ],
}


@pytest.fixture(scope="module")
def used() -> dict[str, set[str]]:
    """Names of the flags that each engine was given."""
    return {}


@pytest.mark.parametrize("name", ENGINES)
def test_the_parser_of_the_engine_reads_every_line_as_it_is_meant(
    name: str,
    engines: Engines,
    used: dict[str, set[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = files(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    asked = [
        printed([word.format(**made) for word in (*words, *SERVER)], tmp_path / "bin", capsys)
        for words in ENGINES[name]
    ]
    told = in_the_engine(name, engines, asked, tmp_path)
    answers = iter(told["lines"])
    for one in asked:
        for form, line in one.lines.items():
            read = next(answers)
            assert "error" not in read, (form, line, read)
            # argparse takes the beginning of a flag for the whole of it.
            flags = [word for word in line if word.startswith("--")]
            assert set(flags) <= set(told["options"]), (form, set(flags) - set(told["options"]))
            assert read["values"]["model_tag"] == line[1]
            if form != "recipe":
                assert list(differing(one.launch, read["values"])) == [], (form, line)
    for one, read in zip(asked, told["calls"], strict=True):
        assert "error" not in read, (one.call, read)
        assert {key: read["values"][key] for key in one.call} == one.call
    own = {variable for one in asked for variable in one.variables if variable.startswith("VLLM_")}
    assert own <= set(told["variables"])
    # -1 is a number to every parser; that older engines take it for a length shows only at their start.
    dated = {one.flag: "error" not in read for one, read in zip(versions.load().flags, answers, strict=True)}
    release = releases.order(engines(name).version)
    assert {flag: read for flag, read in dated.items() if " " not in flag} == {
        one.flag: release >= releases.order(one.since) for one in versions.load().flags if " " not in one.flag
    }
    used[name] = {flag for one in asked for flag, _ in one.launch.flags}


def test_every_flag_that_can_be_printed_was_read_by_an_engine(used: dict[str, set[str]]) -> None:
    if used.keys() != ENGINES.keys():
        pytest.skip("it is about the tests above")
    sources = [(ROOT / "scripts/dca/serve" / name).read_text() for name in SOURCES]
    # As the first argument of a flag, or beside its value.
    known = set(re.findall(r'(?:name=|\()"(--[a-z-]+)"', "\n".join(sources))) - {"--machines"}
    assert len(known) > 20
    assert known - set().union(*used.values()) == set()


def _with_value(flag: str) -> str:
    return flag if " " in flag or flag == "--enable-expert-parallel" else f"{flag} 4"
