"""The command in each of its shapes: read back by what would read it, and compared word by word."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dca.serve import command, plan
from dca.serve.command import Launch, Server, Where
from tests.support.serving import DCA, FOURTEEN, MILLION, ORDINARY, SEVEN, flags, folder, planned, subject

# Words that mean something to a shell, a unit or YAML.
ODD = [
    "with a space",
    "quote's",
    'double "quotes"',
    "$HOME",
    "`id`",
    "100%n",
    "a;b",
    "back\\slash",
    "#hash",
    "ünïcode",
    "*",
    "~",
    "a: b",
    "- x",
    "{x}",
    "&y",
    "!z",
    "true",
    "007",
    "trailing ",
]


def launched(
    model: str = SEVEN, where: str = "4xA100-80", machines: int = 1, of: Where | None = None, **server: Any
) -> Launch:
    about, served = subject(model, where, machines=machines)
    folder = about.file is not None
    return command.launch(plan.make(about, served), about.gpus, Server(**server), folder=folder, where=of)


def odd(place: Path, chance: random.Random) -> Launch:
    """A launch whose words are awkward."""
    model = folder(
        place / chance.choice(ODD), max_position_embeddings=MILLION, rope_theta=1e7, dual_chunk_attention_config=DCA
    )
    return launched(
        model, name=chance.choice(ODD), chat_template=chance.choice(ODD), alloc=chance.choice(ODD), port=9_001
    )


def by_a_shell(text: str, place: Path) -> dict[str, Any]:
    """What programs see that a shell starts with these lines: a stand-in for `vllm` (and docker) tells its words."""
    place.mkdir(parents=True, exist_ok=True)
    for name in ("vllm", "docker", "ray"):
        (place / name).write_text(
            f"#!/usr/bin/env python3\nimport json, os, sys\nprint(json.dumps({{'argv': ['{name}', *sys.argv[1:]], "
            "'env': dict(os.environ)}))\n"
        )
        (place / name).chmod(0o755)
    env = {
        "PATH": f"{place}:{os.environ['PATH']}",
        "VLLM_API_KEY": "k",
        "HEAD_ADDRESS": "10.0.0.1",
        "LC_ALL": "C.UTF-8",
    }
    done = subprocess.run(["bash", "-eu"], input=text, text=True, capture_output=True, env=env, check=False)
    assert done.returncode == 0, done.stderr
    return {"told": [json.loads(line) for line in done.stdout.splitlines()]}


def words(launch: Launch, model: str) -> list[str]:
    return ["vllm", *launch.words(model)]


# --- a shell -------------------------------------------------------------------------------------------------------


@pytest.mark.proof
def test_a_shell_starts_exactly_the_words_whatever_they_are(
    chance: random.Random, scale: Callable[[int], int], tmp_path: Path
) -> None:
    for number in range(scale(200)):
        launch = odd(tmp_path / str(number), chance)
        (started,) = by_a_shell(command.shell(launch), tmp_path / "bin")["told"]
        assert started["argv"] == words(launch, launch.model)
        assert {name: started["env"].get(name) for name in launch.environment} == launch.environment


@pytest.mark.slow
def test_a_shell_stops_when_the_key_is_not_there(tmp_path: Path) -> None:
    text = command.shell(launched(api_key=True))
    by_a_shell(text, tmp_path / "bin")
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", "-eu"], input=text, text=True, capture_output=True, env=env, check=False)
    assert done.returncode != 0
    assert "VLLM_API_KEY" in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_several_machines_start_ray_with_the_variables_and_then_the_server(tmp_path: Path) -> None:
    launch = launched(FOURTEEN, "4xA100-40", machines=2)
    head, worker, serve = by_a_shell(command.shell(launch), tmp_path / "bin")["told"]
    assert head["argv"] == ["ray", "start", "--head", "--port=6379"]
    assert worker["argv"] == ["ray", "start", "--address=10.0.0.1:6379"]
    for started in (head, worker):
        assert started["env"]["VLLM_ATTENTION_BACKEND"] == "DUAL_CHUNK_FLASH_ATTN"
    assert serve["argv"] == words(launch, launch.model)
    assert "once `ray status` shows 8 GPUs" in command.shell(launch)


# --- docker --------------------------------------------------------------------------------------------------------


@pytest.mark.proof
def test_docker_is_given_exactly_the_words_and_the_folder(
    chance: random.Random, scale: Callable[[int], int], tmp_path: Path
) -> None:
    for number in range(scale(100)):
        launch = odd(tmp_path / str(number), chance)
        (started,) = by_a_shell(command.docker(launch), tmp_path / "bin")["told"]
        argv = started["argv"]
        inside = f"/models/{launch.label}"
        assert argv[argv.index("dca-serve") + 1 :] == words(launch, inside)
        assert f"{launch.model}:{inside}:ro" in argv
        for name, value in launch.environment.items():
            assert f"{name}={value}" in argv
        assert "9001:9001" in argv


@pytest.mark.slow
def test_docker_on_several_machines(tmp_path: Path) -> None:
    launch = launched(FOURTEEN, "4xA100-40", machines=3)
    head, worker, serve = [started["argv"] for started in by_a_shell(command.docker(launch), tmp_path / "bin")["told"]]
    assert head[-5:] == ["ray", "start", "--head", "--port=6379", "--block"]
    assert worker[-4:] == ["ray", "start", "--address=10.0.0.1:6379", "--block"]
    assert serve[:2] == ["docker", "exec"]
    assert serve[3:] == words(launch, launch.model)
    assert all("--network=host" in started and "memlock=-1" in started for started in (head, worker))


@pytest.mark.slow
def test_gpus_of_a_container_are_named_to_docker_and_not_inside(tmp_path: Path) -> None:
    (started,) = by_a_shell(command.docker(launched(visible="4,5,6,7")), tmp_path / "bin")["told"]
    assert started["argv"][started["argv"].index("--gpus") + 1] == '"device=4,5,6,7"'
    assert not any(word.startswith("CUDA_VISIBLE_DEVICES") for word in started["argv"])


def test_an_image_has_the_wheel_its_lock_and_the_variables() -> None:
    text = command.dockerfile(launched())
    assert 'ENV VLLM_ATTENTION_BACKEND="DUAL_CHUNK_FLASH_ATTN"' in text
    assert "--require-hashes" in text
    assert "--no-deps" in text
    # Instructions and their continuations only.
    for line in text.splitlines():
        assert re.match(r"(#|ARG|FROM|RUN|COPY|ENV|USER|WORKDIR|EXPOSE|HEALTHCHECK|CMD| &&|$)", line), line


PUBLISHED = Where(published="0.33")


@pytest.mark.slow
def test_vllms_own_image_serves_a_release_without_a_build(tmp_path: Path) -> None:
    launch = launched(ORDINARY, of=PUBLISHED)
    text = command.docker(launch)
    assert "dockerfile" not in text
    (started,) = by_a_shell(text, tmp_path / "bin")["told"]
    argv = started["argv"]
    place = argv.index("vllm/vllm-openai:v0.33.0")
    # Its entry point differs by release.
    assert argv[place - 2 : place] == ["--entrypoint", "vllm"]
    assert argv[place + 1 :] == launch.words(launch.model)
    assert "model-cache:/root/.cache" in argv


@pytest.mark.slow
@pytest.mark.parametrize(("version", "without"), [("0.17.0", False), ("0.33.0", True)])
def test_vllms_own_image_on_several_machines_may_have_no_ray(version: str, without: bool, tmp_path: Path) -> None:
    launch = launched(ORDINARY, "2xA100-40", machines=2, of=Where(published=version))
    head, _, serve = [started["argv"] for started in by_a_shell(command.docker(launch), tmp_path / "bin")["told"]]
    assert head[-5:] == [f"vllm/vllm-openai:v{version}", "start", "--head", "--port=6379", "--block"]
    assert serve[3:] == words(launch, launch.model)
    for form in (command.docker, command.k8s, command.shell):
        assert ("no Ray" in form(launch)) is without


def test_vllms_own_image_is_the_base_of_another() -> None:
    text = command.dockerfile(launched(ORDINARY, of=PUBLISHED))
    assert "FROM vllm/vllm-openai:v0.33.0@${SERVE_DIGEST}" in text
    assert "ENTRYPOINT []" in text
    assert "COPY" not in text
    for line in text.splitlines():
        assert re.match(r"(#|ARG|FROM|ENV|ENTRYPOINT|EXPOSE|HEALTHCHECK|CMD|$)", line), line
    pod = next(yaml.safe_load_all(command.k8s(launched(ORDINARY, of=PUBLISHED))))["spec"]["template"]["spec"]
    assert pod["containers"][0]["image"] == "vllm/vllm-openai:v0.33.0"
    assert "securityContext" not in pod
    assert command.image_of("0.10.1.1") == "vllm/vllm-openai:v0.10.1.1"


# --- systemd -------------------------------------------------------------------------------------------------------


def units(text: str) -> dict[str, dict[str, list[str]]]:
    """Units by name, each with its settings."""
    parsed: dict[str, dict[str, list[str]]] = {}
    for line in text.splitlines():
        if match := re.fullmatch(r"# /etc/systemd/system/(\S+)", line):
            parsed[match[1]] = {}
        elif "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            list(parsed.values())[-1].setdefault(name, []).append(value)
    return parsed


def unquoted(value: str) -> list[str]:
    """The words of a unit's line, as systemd reads them: quotes and backslashes, then %% and $$."""
    return [word.replace("%%", "%").replace("$$", "$") for word in shlex.split(value)]


@pytest.mark.proof
def test_a_unit_starts_exactly_the_words(chance: random.Random, scale: Callable[[int], int], tmp_path: Path) -> None:
    for number in range(scale(200)):
        launch = odd(tmp_path / str(number), chance)
        ((name, unit),) = units(command.systemd(launch)).items()
        assert name == f"serve-{launch.label}.service"
        assert unquoted(unit["ExecStart"][0]) == ["/opt/vllm/bin/vllm", *launch.words(launch.model)]
        environment = dict(word.split("=", 1) for line in unit["Environment"] for word in unquoted(line))
        assert environment == launch.environment
        assert unit["KillSignal"] == ["SIGINT"]


@pytest.mark.slow
def test_units_of_several_machines_and_of_a_program_elsewhere() -> None:
    parsed = units(
        command.systemd(
            launched(FOURTEEN, "4xA100-40", machines=2, of=Where(program="/srv/env/bin/vllm"), api_key=True)
        )
    )
    head, worker, serve = parsed.values()
    assert head["ExecStart"] == ["/srv/env/bin/ray start --head --port=6379 --block"]
    assert worker["ExecStart"] == ["/srv/env/bin/ray start --address=HEAD_ADDRESS:6379 --block"]
    assert serve["Requires"] == ["ray-head.service"]
    assert serve["EnvironmentFile"][0].startswith("/etc/serve-")
    assert all(unit["Environment"] == head["Environment"] for unit in (worker, serve))


# --- a cluster -----------------------------------------------------------------------------------------------------


@pytest.mark.proof
def test_manifests_hold_exactly_the_words(chance: random.Random, scale: Callable[[int], int], tmp_path: Path) -> None:
    for number in range(scale(100)):
        launch = odd(tmp_path / str(number), chance)
        workload, service = yaml.safe_load_all(command.k8s(launch))
        pod = workload["spec"]["template"]["spec"]
        (engine,) = pod["containers"]
        assert engine["command"] == words(launch, f"/models/{launch.label}")
        environment = {entry["name"]: entry["value"] for entry in engine["env"]}
        assert {name: environment.get(name) for name in launch.environment} == launch.environment
        assert engine["resources"]["limits"]["nvidia.com/gpu"] == 4
        assert [mount["mountPath"] for mount in engine["volumeMounts"]] == ["/dev/shm", f"/models/{launch.label}"]
        assert pod["volumes"][1]["hostPath"]["path"] == launch.model
        assert service["spec"]["ports"][0]["port"] == 9_001
        assert workload["spec"]["selector"]["matchLabels"] == service["spec"]["selector"]


@pytest.mark.slow
def test_a_stateful_set_leads_with_its_first_pod() -> None:
    launch = launched(FOURTEEN, "4xA100-40", machines=2, api_key=True)
    workload, service, pods = yaml.safe_load_all(command.k8s(launch))
    assert (workload["kind"], workload["spec"]["replicas"]) == ("StatefulSet", 2)
    assert workload["spec"]["serviceName"] == pods["metadata"]["name"]
    (engine,) = workload["spec"]["template"]["spec"]["containers"]
    shell = engine["command"][-1]
    assert shlex.join(words(launch, launch.model)) in shell
    assert subprocess.run(["sh", "-n", "-c", shell], check=False).returncode == 0
    assert '"GPU", 0) < 8' in shell
    assert service["spec"]["selector"]["statefulset.kubernetes.io/pod-name"] == f"{workload['metadata']['name']}-0"
    (key,) = [entry for entry in engine["env"] if entry["name"] == "VLLM_API_KEY"]
    assert "secretKeyRef" in key["valueFrom"]


# --- Python --------------------------------------------------------------------------------------------------------


@pytest.mark.proof
def test_a_script_holds_exactly_the_words(chance: random.Random, scale: Callable[[int], int], tmp_path: Path) -> None:
    for number in range(scale(100)):
        launch = odd(tmp_path / str(number), chance)
        tree = ast.parse(command.python(launch))
        (model,) = [
            node.value for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        ]
        assert ast.literal_eval(model) == launch.model
        environment = {
            ast.literal_eval(node.targets[0].slice): ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript)
        }
        assert environment == launch.environment


def test_every_flag_is_one_of_the_engines(wheel: Path) -> None:
    import zipfile

    with zipfile.ZipFile(wheel) as archive:
        text = archive.read("vllm/engine/arg_utils.py").decode()
        text += archive.read("vllm/entrypoints/openai/cli_args.py").decode()
    known = set(re.findall(r"\"(--[a-z-]+)\"", text)) | {
        f"--{name.replace('_', '-')}" for name in re.findall(r"^    ([a-z_]+):", text, re.MULTILINE)
    }
    used: set[str] = set()
    for shown in (
        planned(FOURTEEN, "4xA100-40", machines=2, tp=4, pp=2),
        planned(SEVEN, "4xH100-80", quantization="fp8"),
        planned(ORDINARY, "1x24", kv_cache_dtype="fp8_e5m2", dtype="half", prefix_caching=True, utilization=0.8),
        planned(ORDINARY, "1x16", sequences=4, block_size=32),
    ):
        used |= set(flags(shown))
    launch = launched(name="x", host="0.0.0.0", port=1, tool_parser="hermes", chat_template="t")
    used |= {name for name, _ in launch.flags}
    assert len(used) > 15
    assert used - known == set()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "where", "machines", "each", "used"),
    [
        (SEVEN, "4xA100-80", 1, 4, 4),
        (SEVEN, "8xH100-80", 1, 8, 4),
        (FOURTEEN, "4xA100-40", 2, 4, 4),
        (SEVEN, "4xA100-80", 2, 4, 2),
        (SEVEN, "4xA100-80", 3, 4, 2),
    ],
)
def test_a_pod_asks_for_the_gpus_that_the_server_uses(
    model: str, where: str, machines: int, each: int, used: int
) -> None:
    launch = launched(model, where, machines=machines)
    assert (launch.each, launch.used) == (each, used)
    workload = next(yaml.safe_load_all(command.k8s(launch)))
    (engine,) = workload["spec"]["template"]["spec"]["containers"]
    assert engine["resources"]["limits"]["nvidia.com/gpu"] == used
    if machines > 1:
        # Ray in the pods sees what they claim, and on machines all that is there.
        assert f'"GPU", 0) < {machines * used})' in engine["command"][-1]
        assert f"once `ray status` shows {machines * each} GPUs" in command.shell(launch)


def test_a_script_may_run_the_models_own_tokenizer_where_the_engine_may(tmp_path: Path) -> None:
    asked, served = subject(folder(tmp_path), "1xA100-80", trusted=True)
    launch = command.launch(plan.make(asked, served), asked.gpus, Server(), folder=True)
    text = command.python(launch)
    assert "AutoTokenizer.from_pretrained(MODEL, trust_remote_code=True)" in text
    assert "trust_remote_code=True,\n" in text
    assert "trust_remote_code" not in command.python(launched())


# --- who can reach it ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "published"),
    [
        ("", "8000:8000"),
        ("127.0.0.1", "127.0.0.1:8000:8000"),
        ("localhost", "127.0.0.1:8000:8000"),
        ("::1", "[::1]:8000:8000"),
        ("10.0.0.5", "10.0.0.5:8000:8000"),
        # docker publishes on addresses alone.
        ("server.test", "8000:8000"),
    ],
)
def test_docker_publishes_on_the_address_and_the_server_listens_on_every_one_inside(
    host: str, published: str, tmp_path: Path
) -> None:
    launch = launched(host=host)
    (started,) = by_a_shell(command.docker(launch), tmp_path / "bin")["told"]
    argv = started["argv"]
    assert (argv[argv.index("-p") + 1], "--host" in argv) == (published, False)
    (engine,) = next(yaml.safe_load_all(command.k8s(launch)))["spec"]["template"]["spec"]["containers"]
    # The cluster's probes come to the pod's address.
    assert "--host" not in engine["command"]
    assert ("--host" in command.shell(launch).replace(command.OPEN, "")) is bool(host)


@pytest.mark.slow
@pytest.mark.parametrize("machines", [1, 2])
def test_docker_stops_when_the_key_is_not_there(tmp_path: Path, machines: int) -> None:
    where = "4xA100-80" if machines == 1 else "4xA100-40"
    text = command.docker(launched(FOURTEEN, where, machines=machines, api_key=True))
    by_a_shell(text, tmp_path / "bin")
    env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "HEAD_ADDRESS": "10.0.0.1"}
    done = subprocess.run(["bash", "-eu"], input=text, text=True, capture_output=True, env=env, check=False)
    assert (done.returncode != 0, "VLLM_API_KEY" in done.stderr, done.stdout) == (True, True, "")


@pytest.mark.parametrize("form", ["shell", "docker", "systemd"])
def test_a_server_that_everybody_can_use_is_said_to_be_one(form: str) -> None:
    for host, is_open in (("", True), ("0.0.0.0", True), ("127.0.0.1", False)):
        assert (command.OPEN in command.FORMATS[form](launched(host=host))) is is_open
    assert command.OPEN not in command.FORMATS[form](launched(api_key=True))


def test_pods_and_units_run_as_ordinary_users_without_what_they_do_not_need() -> None:
    pod = next(yaml.safe_load_all(command.k8s(launched())))["spec"]["template"]["spec"]
    assert (pod["securityContext"]["runAsNonRoot"], pod["enableServiceLinks"]) == (True, False)
    assert pod["automountServiceAccountToken"] is False
    assert pod["containers"][0]["securityContext"] == {"allowPrivilegeEscalation": False}
    for unit in units(command.systemd(launched(FOURTEEN, "4xA100-40", machines=2))).values():
        assert (unit["User"], unit["NoNewPrivileges"]) == (["vllm"], ["yes"])


def test_a_pod_that_downloads_has_longer_to_start_and_one_of_several_is_ready_when_it_serves(tmp_path: Path) -> None:
    local = folder(tmp_path / "m", max_position_embeddings=MILLION, rope_theta=1e7, dual_chunk_attention_config=DCA)
    attempts = []
    for model in (local, SEVEN):
        pod = next(yaml.safe_load_all(command.k8s(launched(model))))["spec"]["template"]["spec"]
        attempts.append(pod["containers"][0]["startupProbe"]["failureThreshold"])
    assert attempts == [command.LOADING, command.DOWNLOADING]
    several = next(yaml.safe_load_all(command.k8s(launched(FOURTEEN, "4xA100-40", machines=2))))
    (engine,) = several["spec"]["template"]["spec"]["containers"]
    *_, shell = engine["readinessProbe"]["exec"]["command"]
    for name, ready in (("serve-1", True), ("serve-0", False)):
        env = {**os.environ, "HOSTNAME": name}
        done = subprocess.run(["sh", "-c", shell], env=env, capture_output=True, check=False)
        assert (done.returncode == 0) is ready


def test_the_model_is_downloaded_with_the_program_that_the_engines_environment_has() -> None:
    for version, program in (("0.33", "# to download the model first: hf "), ("0.9.2", ": huggingface-cli ")):
        about, served = subject(ORDINARY, "4xA100-80", version=version)
        launch = command.launch(plan.make(about, served), about.gpus, Server(), folder=False)
        assert program in command.shell(launch)
