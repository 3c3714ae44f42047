"""The command that starts a server, in the shapes that people use: a shell, a container, a unit, a cluster, Python."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from dca.foundation.documents import Document
from dca.serve.flags import Flag
from dca.serve.gpus import Gpus
from dca.serve.plan import ServePlan

PORT = 8000
"""Where vLLM listens unless it is told otherwise."""
RAY_PORT = 6379
IMAGE = "dca-serve"
TEMPLATES = Path(__file__).with_name("templates")
API_KEY = "VLLM_API_KEY"
HUB_FOLDER = "/root/.cache"


@dataclass(frozen=True)
class Server:
    """What is asked of a server beside its memory.

    Args:
        name: what it calls the model; the model's own name when empty.
        host: the address where it listens; the engine's own choice when empty.
        port: where it listens.
        api_key: whether it asks for a key, which it reads from its environment.
        tool_parser: the engine's parser of tool calls; empty when tools are not called.
        chat_template: a file to use in place of the tokenizer's own template; empty for that one.
        modelscope: whether the model's name is one of ModelScope.
        visible: numbers of the GPUs to use, for CUDA_VISIBLE_DEVICES; all when empty.
        alloc: PYTORCH_CUDA_ALLOC_CONF; not set when empty.
    """

    name: str = ""
    host: str = ""
    port: int = PORT
    api_key: bool = False
    tool_parser: str = ""
    chat_template: str = ""
    modelscope: bool = False
    visible: str = ""
    alloc: str = ""


class Launch(Document):
    """What is started.

    Args:
        model: a folder, or a name on a hub.
        folder: whether the model is a folder of this machine.
        flags: of `vllm serve`, with their dashes, in order; None for those without a value.
        environment: of the engine.
        host: the address where it listens; the engine's own choice when empty.
        port: where it listens.
        api_key: whether it asks for a key, which it reads from its environment and which is never printed.
        machines: that the GPUs are in.
        each: GPUs of one machine.
        used: GPUs of one machine that the server uses.
        visible: numbers of the GPUs to use; all when empty.
        image: of a container.
        program: `vllm`, or its path for a unit.
        title: what is served, and by which engine.
    """

    SCHEMA: ClassVar[str] = "dca.serve-command/1"

    model: str
    folder: bool
    flags: tuple[tuple[str, str | None], ...]
    environment: dict[str, str]
    host: str = ""
    port: int = PORT
    api_key: bool = False
    machines: int = 1
    each: int = 1
    used: int = 1
    visible: str = ""
    image: str = IMAGE
    program: str = "vllm"
    title: str = ""

    @property
    def argv(self) -> list[str]:
        """The command's words."""
        return [self.program, *self.words(self.model)]

    def words(self, model: str) -> list[str]:
        """The command's words behind the program, for a model at another place."""
        words = ["serve", model]
        for name, value in self.flags:
            words += [name] if value is None else [name, value]
        return words

    @property
    def label(self) -> str:
        """A name for containers, units and the like."""
        return re.sub(r"[^a-z0-9]+", "-", PurePosixPath(self.model).name.lower()).strip("-")[:40].strip("-") or "model"


def launch(
    plan: ServePlan, gpus: Gpus, server: Server, *, folder: bool, image: str = IMAGE, program: str = "vllm"
) -> Launch:
    """What is started for a plan.

    Args:
        plan: its flags and variables are taken as they are.
        gpus: that it was made for.
        server: what is asked of it beside its memory.
        folder: whether the model is a folder of this machine.
        image: of a container.
        program: `vllm`, or its path for a unit.
    """
    flags = [(flag.name, flag.value or None) for flag in plan.flags]
    if server.name:
        flags.append(("--served-model-name", server.name))
    if server.host:
        flags.append(("--host", server.host))
    if server.port != PORT:
        flags.append(("--port", str(server.port)))
    if server.chat_template:
        flags.append(("--chat-template", server.chat_template))
    if server.tool_parser:
        flags += [("--enable-auto-tool-choice", None), ("--tool-call-parser", server.tool_parser)]
    environment = {variable.name: variable.value for variable in plan.environment}
    if server.modelscope:
        environment["VLLM_USE_MODELSCOPE"] = "True"
    if server.visible:
        environment["CUDA_VISIBLE_DEVICES"] = server.visible
    if server.alloc:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = server.alloc
    best = plan.best.settings
    return Launch(
        model=plan.served,
        folder=folder,
        flags=tuple(flags),
        environment=environment,
        host=server.host,
        port=server.port,
        api_key=server.api_key,
        machines=gpus.machines,
        each=gpus.each,
        used=math.ceil(best.tp * best.pp / gpus.machines),
        visible=server.visible,
        image=image,
        program=program,
        title=f"{plan.model} on {plan.gpus}, by {plan.recipe}",
    )


def shell(launch: Launch) -> str:
    """Lines for a shell."""
    lines = [f"# {launch.title}"]
    if not launch.folder:
        source, into = (
            ("modelscope download --model", "--local_dir")
            if "VLLM_USE_MODELSCOPE" in launch.environment
            else ("huggingface-cli download", "--local-dir")
        )
        lines.append(f"# to download it first: {source} {shlex.quote(launch.model)} {into} DIR, and serve DIR")
    if launch.machines > 1:
        return "\n".join([*lines, *_ray_shell(launch)])
    return "\n".join([*lines, *_exports(launch), _broken(launch.argv)])


def _exports(launch: Launch) -> list[str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in launch.environment.items()]
    if launch.api_key:
        lines.append(f': "${{{API_KEY}:?export it first; it is not printed here}}"')
    return lines


def _broken(argv: list[str]) -> str:
    """A command with each flag on a line of its own."""
    plain = next((place for place, word in enumerate(argv) if word.startswith("--")), len(argv))
    head, rest = argv[:plain], argv[plain:]
    lines = [" ".join(map(shlex.quote, head))]
    for word in rest:
        if word.startswith("--"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    return " \\\n  ".join(lines)


def _ray_shell(launch: Launch) -> list[str]:
    return [
        f"# 1. on every machine, before ray starts: its workers get ray's environment. {launch.each} GPUs each.",
        *_exports(launch),
        "",
        "# 2. on the first machine",
        f"ray start --head --port={RAY_PORT}",
        "",
        f"# 3. on {_others(launch)}, with HEAD_ADDRESS set to the first one's",
        f'ray start --address="$HEAD_ADDRESS:{RAY_PORT}"',
        "",
        f"# 4. on the first machine, when `ray status` shows {launch.machines * launch.each} GPUs",
        _broken(launch.argv),
    ]


def docker(launch: Launch) -> str:
    """`docker run`, one line for each kind of machine."""
    lines = [
        f"# {launch.title}",
        f"# the image: dca serve command MODEL --format dockerfile | docker build -t {launch.image} -f - .",
    ]
    where = f"/models/{launch.label}" if launch.folder else launch.model
    common = ["docker", "run", "--rm", "--name", f"serve-{launch.label}"]
    common += ["--gpus", f'"device={launch.visible}"' if launch.visible else "all", "--ipc=host"]
    mount = ["-v", f"{launch.model}:{where}:ro"] if launch.folder else ["-v", f"model-cache:{HUB_FOLDER}"]
    # CUDA counts the GPUs that the container sees.
    options = [
        word
        for name, value in launch.environment.items()
        if name != "CUDA_VISIBLE_DEVICES"
        for word in ("-e", f"{name}={value}")
    ]
    options += ["-e", API_KEY] if launch.api_key else []
    if launch.machines == 1:
        words = [*common, "-p", f"{launch.port}:{launch.port}", *mount, *options]
        return "\n".join([*lines, _docker_broken(words, [launch.image, "vllm", *launch.words(where)])])
    common += ["-d", "--network=host", *mount, *options]
    head = [launch.image, "ray", "start", "--head", f"--port={RAY_PORT}", "--block"]
    worker = [launch.image, "ray", "start", f"--address=$HEAD_ADDRESS:{RAY_PORT}", "--block"]
    serve = ["docker", "exec", f"serve-{launch.label}", "vllm", *launch.words(where)]
    return "\n".join(
        [
            *lines,
            "# 1. on the first machine",
            _docker_broken(common, head),
            "",
            f"# 2. on {_others(launch)}, with HEAD_ADDRESS set to the first one's",
            _docker_broken(common, worker).replace(shlex.quote(worker[-2]), f'"{worker[-2]}"'),
            "",
            "# 3. on the first machine",
            _docker_broken(serve[:3], serve[3:]),
        ]
    )


def _docker_broken(words: list[str], inner: list[str]) -> str:
    """Words of docker, each option on a line of its own, and those of what runs in the container likewise."""
    lines = [" ".join(map(shlex.quote, words[:2]))]
    for word in words[2:]:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    first, *rest = _broken(inner).split("\n")
    return "\n".join([" \\\n  ".join([*lines, first]), *rest])


def _others(launch: Launch) -> str:
    return "the other one" if launch.machines == 2 else f"the other {launch.machines - 1}"


def dockerfile(launch: Launch) -> str:
    """An image with a wheel and its lock, which lie in the folder it is built in."""
    return _rendered("Dockerfile", launch, argv=json.dumps(["vllm"]))


def systemd(launch: Launch) -> str:
    """A unit; for several machines one for each of their parts."""
    program = launch.program if "/" in launch.program else f"/opt/vllm/bin/{launch.program}"
    ray = str(PurePosixPath(program).with_name("ray"))
    units = {f"serve-{launch.label}.service": [program, *launch.words(launch.model)]}
    if launch.machines > 1:
        units = {
            "ray-head.service": [ray, "start", "--head", f"--port={RAY_PORT}", "--block"],
            "ray-worker.service": [ray, "start", f"--address=HEAD_ADDRESS:{RAY_PORT}", "--block"],
            **units,
        }
    environment = [_systemd(f"{name}={value}") for name, value in launch.environment.items()]
    return "\n".join(
        _rendered(
            "unit.service",
            launch,
            unit=name,
            environment=environment,
            several=launch.machines > 1,
            start=" ".join(map(_systemd, words)),
            others=_others(launch),
        )
        for name, words in units.items()
    )


def _systemd(word: str) -> str:
    """A word of a unit: `%` and `$` mean something to systemd, and so do quotes."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s\"'\\;]", escaped) or not escaped else escaped


def k8s(launch: Launch) -> str:
    """Manifests: a deployment and its service, or for several machines a stateful set whose first pod leads."""
    where = f"/models/{launch.label}" if launch.folder else launch.model
    environment = {name: value for name, value in launch.environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    argv = ["vllm", *launch.words(where)]
    head = f"serve-{launch.label}-0.serve-{launch.label}-pods"
    # The engine counts ray's GPUs only once, so that the first pod waits until all of them have joined.
    lead = (
        f'ray start --head --port={RAY_PORT} && until python3 -c \'import ray, sys; ray.init(address="auto"); '
        f'sys.exit(ray.cluster_resources().get("GPU", 0) < {launch.machines * launch.used})\'; do sleep 5; done; '
        f"exec {shlex.join(argv)}"
    )
    follow = f"exec ray start --address={head}:{RAY_PORT} --block"
    return _rendered(
        "cluster.yaml",
        launch,
        where=where,
        environment=environment,
        argv=argv,
        lead=lead,
        follow=follow,
        pods=f"serve-{launch.label}",
    )


def python(launch: Launch) -> str:
    """A script for offline use, with the model's chat template and the sampling that its publisher recommends."""
    left_out = (
        "--served-model-name",
        "--host",
        "--port",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "--chat-template",
    )
    arguments = [(name[2:].replace("-", "_"), _literal(value)) for name, value in launch.flags if name not in left_out]
    return _rendered("offline.py", launch, arguments=arguments)


def _literal(value: str | None) -> str:
    if value is None:
        return "True"
    return value if re.fullmatch(r"\d+(\.\d+)?", value) else json.dumps(value)


def _rendered(template_name: str, launch: Launch, **more: object) -> str:
    import jinja2

    template = jinja2.Environment(
        autoescape=False,  # noqa: S701 - no HTML
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=False,
    )
    template.filters["quoted"] = lambda value: json.dumps(str(value), ensure_ascii=False)
    text = (TEMPLATES / f"{template_name}.jinja").read_text(encoding="utf-8")
    return template.from_string(text).render(launch=launch, ray_port=RAY_PORT, key=API_KEY, hub=HUB_FOLDER, **more)


FORMATS: dict[str, Callable[[Launch], str]] = {
    "shell": shell,
    "docker": docker,
    "dockerfile": dockerfile,
    "systemd": systemd,
    "k8s": k8s,
    "python": python,
}


def reasons(flags: Iterable[Flag]) -> list[str]:
    """Each flag with its reason, as comments."""
    return [f"#   {' '.join(filter(None, (flag.name, flag.value)))}: {flag.reason}" for flag in flags]
