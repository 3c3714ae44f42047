"""The command that starts a server, in the shapes that people use: a shell, a container, a unit, a cluster, Python."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath
from typing import ClassVar

from dca.foundation.documents import Document
from dca.serve.flags import Flag
from dca.serve.gpus import Gpus
from dca.serve.plan import ServePlan

RAY_PORT = 6379
TEMPLATES = Path(__file__).with_name("templates")
API_KEY = "VLLM_API_KEY"
HUB_FOLDER = "/root/.cache"


class Launch(Document):
    """What is started.

    Args:
        model: a folder, or a name on a hub. folder: whether it is one.
        flags: of `vllm serve`, with their dashes, in order; None for those without a value.
        environment: of the engine.
        name: what the server calls the model; its own name when empty.
        host, port: where it listens.
        api_key: whether it asks for one, which it reads from its environment and which is never printed.
        machines: that the GPUs are in. each: GPUs of one machine. used: of them, by the server.
        visible: numbers of the GPUs to use; all when empty.
        image: of a container. program: `vllm` for a unit. hub: whether the model is downloaded.
        title: what is served, and by which engine.
        modelscope: whether names are those of ModelScope.
    """

    SCHEMA: ClassVar[str] = "dca.serve-command/1"

    model: str
    folder: bool
    flags: tuple[tuple[str, str | None], ...]
    environment: dict[str, str]
    host: str = ""
    port: int = 8000
    api_key: bool = False
    machines: int = 1
    each: int = 1
    used: int = 1
    visible: str = ""
    image: str = "dca-serve"
    program: str = "vllm"
    title: str = ""

    @property
    def argv(self) -> list[str]:
        """The command's words."""
        return [self.program, *self.words(self.model)]

    def words(self, model: str) -> list[str]:
        """The command's words behind the program, for a model at another place."""
        told = ["serve", model]
        for name, value in self.flags:
            told += [name] if value is None else [name, value]
        return told

    @property
    def label(self) -> str:
        """A name for containers, units and the like."""
        return re.sub(r"[^a-z0-9]+", "-", PurePosixPath(self.model).name.lower()).strip("-")[:40].strip("-") or "model"


def launch(
    plan: ServePlan,
    gpus: Gpus,
    *,
    folder: bool,
    name: str = "",
    host: str = "",
    port: int = 8000,
    api_key: bool = False,
    tools: str = "",
    chat_template: str = "",
    modelscope: bool = False,
    visible: str = "",
    image: str = "",
    program: str = "vllm",
    alloc: str = "",
) -> Launch:
    """What is started for a plan.

    Args:
        plan: its flags and variables are taken as they are.
        gpus: that it was made for.
        folder: whether the model is a folder of this machine.
        tools: the engine's parser of tool calls; empty for none.
        chat_template: a file for the server to use in place of the tokenizer's own.
        visible: numbers of GPUs, for CUDA_VISIBLE_DEVICES.
        alloc: PYTORCH_CUDA_ALLOC_CONF.
        name, host, port, api_key, modelscope, image, program: see `Launch`.
    """
    flags = [(flag.name, flag.value or None) for flag in plan.flags]
    if name:
        flags.append(("--served-model-name", name))
    if host:
        flags.append(("--host", host))
    if port != 8000:
        flags.append(("--port", str(port)))
    if chat_template:
        flags.append(("--chat-template", chat_template))
    if tools:
        flags += [("--enable-auto-tool-choice", None), ("--tool-call-parser", tools)]
    environment = {one.name: one.value for one in plan.environment}
    if modelscope:
        environment["VLLM_USE_MODELSCOPE"] = "True"
    if visible:
        environment["CUDA_VISIBLE_DEVICES"] = visible
    if alloc:
        environment["PYTORCH_CUDA_ALLOC_CONF"] = alloc
    best = plan.best.settings
    return Launch(
        model=plan.served,
        folder=folder,
        flags=tuple(flags),
        environment=environment,
        host=host,
        port=port,
        api_key=api_key,
        machines=gpus.machines,
        each=gpus.each,
        used=math.ceil(best.tp * best.pp / gpus.machines),
        visible=visible,
        image=image or "dca-serve",
        program=program,
        title=f"{plan.model} on {plan.gpus}, by {plan.recipe}",
    )


def shell(one: Launch) -> str:
    """Lines for a shell."""
    lines = [f"# {one.title}"]
    if not one.folder:
        source, into = (
            ("modelscope download --model", "--local_dir")
            if "VLLM_USE_MODELSCOPE" in one.environment
            else ("huggingface-cli download", "--local-dir")
        )
        lines.append(f"# to download it first: {source} {shlex.quote(one.model)} {into} DIR, and serve DIR")
    if one.machines > 1:
        return "\n".join([*lines, *_ray_shell(one)])
    return "\n".join([*lines, *_exports(one), _broken(one.argv)])


def _exports(one: Launch) -> list[str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in one.environment.items()]
    if one.api_key:
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


def _ray_shell(one: Launch) -> list[str]:
    return [
        f"# 1. on every machine, before ray starts: its workers get ray's environment. {one.each} GPUs each.",
        *_exports(one),
        "",
        "# 2. on the first machine",
        f"ray start --head --port={RAY_PORT}",
        "",
        f"# 3. on {_others(one)}, with HEAD_ADDRESS set to the first one's",
        f'ray start --address="$HEAD_ADDRESS:{RAY_PORT}"',
        "",
        f"# 4. on the first machine, when `ray status` shows {one.machines * one.each} GPUs",
        _broken(one.argv),
    ]


def docker(one: Launch) -> str:
    """`docker run`, one line for each kind of machine."""
    lines = [
        f"# {one.title}",
        f"# the image: dca serve command MODEL --format dockerfile | docker build -t {one.image} -f - .",
    ]
    where = f"/models/{one.label}" if one.folder else one.model
    common = ["docker", "run", "--rm", "--name", f"serve-{one.label}"]
    common += ["--gpus", f'"device={one.visible}"' if one.visible else "all", "--ipc=host"]
    mount = ["-v", f"{one.model}:{where}:ro"] if one.folder else ["-v", f"model-cache:{HUB_FOLDER}"]
    # CUDA counts the GPUs that the container sees.
    given = [
        word
        for name, value in one.environment.items()
        if name != "CUDA_VISIBLE_DEVICES"
        for word in ("-e", f"{name}={value}")
    ]
    given += ["-e", API_KEY] if one.api_key else []
    if one.machines == 1:
        words = [*common, "-p", f"{one.port}:{one.port}", *mount, *given]
        return "\n".join([*lines, _docker_broken(words, [one.image, "vllm", *one.words(where)])])
    common += ["-d", "--network=host", *mount, *given]
    head = [one.image, "ray", "start", "--head", f"--port={RAY_PORT}", "--block"]
    worker = [one.image, "ray", "start", f"--address=$HEAD_ADDRESS:{RAY_PORT}", "--block"]
    serve = ["docker", "exec", f"serve-{one.label}", "vllm", *one.words(where)]
    return "\n".join(
        [
            *lines,
            "# 1. on the first machine",
            _docker_broken(common, head),
            "",
            f"# 2. on {_others(one)}, with HEAD_ADDRESS set to the first one's",
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


def _others(one: Launch) -> str:
    return "the other one" if one.machines == 2 else f"the other {one.machines - 1}"


def dockerfile(one: Launch) -> str:
    """An image with a wheel and its lock, which lie in the folder it is built in."""
    return _rendered("Dockerfile", one, argv=json.dumps(["vllm"]))


def systemd(one: Launch) -> str:
    """A unit; for several machines one for each of their parts."""
    program = one.program if "/" in one.program else f"/opt/vllm/bin/{one.program}"
    ray = str(PurePosixPath(program).with_name("ray"))
    units = {f"serve-{one.label}.service": [program, *one.words(one.model)]}
    if one.machines > 1:
        units = {
            "ray-head.service": [ray, "start", "--head", f"--port={RAY_PORT}", "--block"],
            "ray-worker.service": [ray, "start", f"--address=HEAD_ADDRESS:{RAY_PORT}", "--block"],
            **units,
        }
    environment = [_systemd(f"{name}={value}") for name, value in one.environment.items()]
    return "\n".join(
        _rendered(
            "unit.service",
            one,
            unit=name,
            environment=environment,
            several=one.machines > 1,
            start=" ".join(map(_systemd, words)),
            others=_others(one),
        )
        for name, words in units.items()
    )


def _systemd(word: str) -> str:
    """A word of a unit: `%` and `$` mean something to systemd, and so do quotes."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s\"'\\;]", escaped) or not escaped else escaped


def k8s(one: Launch) -> str:
    """Manifests: a deployment and its service, or for several machines a stateful set whose first pod leads."""
    where = f"/models/{one.label}" if one.folder else one.model
    environment = {name: value for name, value in one.environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    argv = ["vllm", *one.words(where)]
    head = f"serve-{one.label}-0.serve-{one.label}-pods"
    # The engine looks once how many GPUs there are.
    lead = (
        f'ray start --head --port={RAY_PORT} && until python3 -c \'import ray, sys; ray.init(address="auto"); '
        f'sys.exit(ray.cluster_resources().get("GPU", 0) < {one.machines * one.used})\'; do sleep 5; done; '
        f"exec {shlex.join(argv)}"
    )
    follow = f"exec ray start --address={head}:{RAY_PORT} --block"
    return _rendered(
        "cluster.yaml",
        one,
        where=where,
        environment=environment,
        argv=argv,
        lead=lead,
        follow=follow,
        pods=f"serve-{one.label}",
    )


def python(one: Launch) -> str:
    """A script for offline use, with the model's chat template and the sampling that its publisher recommends."""
    left_out = (
        "--served-model-name",
        "--host",
        "--port",
        "--enable-auto-tool-choice",
        "--tool-call-parser",
        "--chat-template",
    )
    arguments = [(name[2:].replace("-", "_"), _literal(value)) for name, value in one.flags if name not in left_out]
    return _rendered("offline.py", one, arguments=arguments)


def _literal(value: str | None) -> str:
    if value is None:
        return "True"
    return value if re.fullmatch(r"\d+(\.\d+)?", value) else json.dumps(value)


def _rendered(template_name: str, one: Launch, **more: object) -> str:
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
    return template.from_string(text).render(one=one, ray_port=RAY_PORT, key=API_KEY, hub=HUB_FOLDER, **more)


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
