"""The command that starts a server: for a shell, a container, systemd, Kubernetes or Python."""

from __future__ import annotations

import ipaddress
import json
import math
import re
import shlex
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import ClassVar

from dca.catalogue import base_images, releases
from dca.foundation.documents import Document
from dca.serve.flags import Flag
from dca.serve.gpus import Gpus
from dca.serve.plan import ServePlan

PORT = 8000
"""vLLM's default port."""
RAY_PORT = 6379
IMAGE = "dca-serve"
PUBLISHED_IMAGE = "vllm/vllm-openai:v{}"
"""vLLM's own image of a release. Its entry point differs by release, so every command names the program."""
PUBLISHED_HOME = "/root"
NO_RAY = "0.18.0"
"""The first release of vLLM that does not install Ray, by its requirements/cuda.txt."""
TEMPLATES = Path(__file__).with_name("templates")
API_KEY = "VLLM_API_KEY"
OLD_HUB, NEW_HUB, WITH_NEW_HUB = "huggingface-cli", "hf", "0.11.0"
"""The hub's program, and a release of vLLM from which on environments have the one that replaced it."""
LOADING, DOWNLOADING = 180, 1080
"""Times 10 seconds until a pod must have started: with its weights there, and with hundreds of GB to download."""
EVERYWHERE = ("", "0.0.0.0", "::")  # noqa: S104 - compared, not listened on
OPEN = "# It listens on every address of this machine, without a key: --host 127.0.0.1 or --api-key restrict that."


@dataclass(frozen=True)
class Server:
    """A server's settings that do not affect its memory.

    Args:
        name: the model's name for clients; its own name when empty.
        host: address to listen on; the engine's default when empty.
        port: port to listen on.
        api_key: whether it requires a key, which it reads from its environment.
        tool_parser: the engine's parser of tool calls; empty for no tool calls.
        chat_template: file that replaces the tokenizer's own template; empty for the tokenizer's.
        modelscope: whether the model's name is ModelScope's.
        visible: numbers of the GPUs to use, for CUDA_VISIBLE_DEVICES; empty for all.
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


@dataclass(frozen=True)
class Where:
    """What the engine is started from.

    Args:
        image: the container's image; when empty vLLM's own of a published release, else that of the Dockerfile.
        program: `vllm`, or its path in a systemd unit.
        published: the release of vLLM, if it serves as it is published; else empty.
    """

    image: str = ""
    program: str = "vllm"
    published: str = ""


class Launch(Document):
    """The command in a neutral form.

    Args:
        model: a folder, or a name on a hub.
        folder: whether the model is a folder on this machine.
        flags: flags of `vllm serve` with their dashes, in order; the value is None for flags without one.
        environment: the engine's environment variables.
        host: address to listen on; the engine's default when empty.
        port: port to listen on.
        api_key: whether it requires a key, which it reads from its environment and which is never printed.
        machines: number of machines.
        each: GPUs per machine.
        used: GPUs per machine that the server uses.
        visible: numbers of the GPUs to use; empty for all.
        image: the container's image.
        program: `vllm`, or its path in a systemd unit.
        title: what is served, and by which engine.
        published: the release of vLLM, if the image is made of vLLM's own; else empty.
        hub: the program that downloads from the hub, in the engine's environment.
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
    published: str = ""
    hub: str = NEW_HUB

    @property
    def open(self) -> bool:
        """Whether everybody who reaches this machine can use the server."""
        return not self.api_key and self.host in EVERYWHERE

    @property
    def home(self) -> str:
        """The home in the container of the user who serves; models that are downloaded are kept there."""
        return PUBLISHED_HOME if self.published else base_images.HOME

    @property
    def trusted(self) -> bool:
        """Whether the engine may run the model's own code."""
        return any(name == "--trust-remote-code" for name, _ in self.flags)

    @property
    def without_ray(self) -> bool:
        """Whether Ray has to start the server, and vLLM's own image has none."""
        return self.machines > 1 and bool(self.published) and releases.reached(self.published, NO_RAY)

    @property
    def argv(self) -> list[str]:
        """The command as a list of arguments."""
        return [self.program, *self.words(self.model)]

    def words(self, model: str, *, apart: bool = False) -> list[str]:
        """The arguments after the program.

        Args:
            model: its path.
            apart: whether it runs in a network of its own, where it has to listen on every address.
        """
        words = ["serve", model]
        for name, value in self.flags:
            if apart and name == "--host":
                continue
            words += [name] if value is None else [name, value]
        return words

    @property
    def label(self) -> str:
        """A name for containers, units and pods."""
        return re.sub(r"[^a-z0-9]+", "-", PurePosixPath(self.model).name.lower()).strip("-")[:40].strip("-") or "model"


def launch(
    plan: ServePlan,
    gpus: Gpus,
    server: Server,
    *,
    folder: bool,
    where: Where | None = None,
) -> Launch:
    """The command for a plan.

    Args:
        plan: the plan, with its flags and environment variables.
        gpus: the plan's GPUs.
        server: the server's other settings.
        folder: whether the model is a folder on this machine.
        where: what the engine is started from; by default the image of the Dockerfile, and `vllm`.
    """
    where = where or Where()
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
        image=where.image or (image_of(where.published) if where.published else IMAGE),
        program=where.program,
        published=where.published,
        title=f"{plan.model} on {plan.gpus}, by {plan.recipe}",
        hub=NEW_HUB if not plan.version or releases.reached(plan.version, WITH_NEW_HUB) else OLD_HUB,
    )


def image_of(version: str) -> str:
    """VLLM's own image of a release; a version in two numbers is its first."""
    return PUBLISHED_IMAGE.format(".".join([*version.split("."), "0"][: max(3, version.count(".") + 1)]))


def shell(launch: Launch) -> str:
    """Lines for a shell."""
    lines = [f"# {launch.title}"]
    if not launch.folder:
        source, into = (
            ("modelscope download --model", "--local_dir")
            if "VLLM_USE_MODELSCOPE" in launch.environment
            else (f"{launch.hub} download", "--local-dir")
        )
        lines.append(f"# to download the model first: {source} {shlex.quote(launch.model)} {into} DIR; then serve DIR")
    lines += [OPEN] if launch.open else []
    if launch.machines > 1:
        # Docker's and the cluster's lines say it of the image.
        lines += [f"# vLLM {launch.published} installs no Ray: install it beside it"] if launch.without_ray else []
        return "\n".join([*lines, *_ray_shell(launch)])
    return "\n".join([*lines, *_exports(launch), _broken(launch.argv)])


def _exports(launch: Launch) -> list[str]:
    lines = [f"export {name}={shlex.quote(value)}" for name, value in launch.environment.items()]
    return lines + _key(launch)


def _key(launch: Launch) -> list[str]:
    """A line that stops where the key is not set: the server would start without one."""
    return [f': "${{{API_KEY}:?export it first; dca does not print it}}"'] if launch.api_key else []


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
        f"# 1. on every machine ({launch.each} GPUs each), before Ray starts: its workers inherit the variables",
        *_exports(launch),
        "",
        "# 2. on the first machine",
        f"ray start --head --port={RAY_PORT}",
        "",
        f"# 3. on {_others(launch)}, with HEAD_ADDRESS set to the first machine's address",
        f'ray start --address="$HEAD_ADDRESS:{RAY_PORT}"',
        "",
        f"# 4. on the first machine, once `ray status` shows {launch.machines * launch.each} GPUs",
        _broken(launch.argv),
    ]


def docker(launch: Launch) -> str:
    """`docker run`; for several machines one command for each kind of machine."""
    lines = [f"# {launch.title}"]
    if launch.without_ray:
        lines.append(
            f"# vLLM's image of {launch.published} has no Ray: make one from it that has, and name it by --image"
        )
    if not launch.published:
        lines.append("# build the image: dca serve command MODEL --format dockerfile > Dockerfile; its head says how")
    where = f"/models/{launch.label}" if launch.folder else launch.model
    common = ["docker", "run", "--rm", "--name", f"serve-{launch.label}"]
    common += ["--gpus", f'"device={launch.visible}"' if launch.visible else "all", "--ipc=host"]
    mount = ["-v", f"{launch.model}:{where}:ro"] if launch.folder else ["-v", f"model-cache:{launch.home}/.cache"]
    # In a container, CUDA numbers only the GPUs that --gpus passes in.
    options = [
        word
        for name, value in launch.environment.items()
        if name != "CUDA_VISIBLE_DEVICES"
        for word in ("-e", f"{name}={value}")
    ]
    options += ["-e", API_KEY] if launch.api_key else []
    # Whatever the entry point of vLLM's own image is.
    program = "vllm" if launch.machines == 1 else "ray"
    options += ["--entrypoint", program] if launch.published else []
    image = [launch.image] if launch.published else [launch.image, program]
    if launch.machines == 1:
        # In the container's own network, the server listens on every address; docker publishes it on the one asked for.
        words = [*common, "-p", f"{_address(launch.host)}{launch.port}:{launch.port}", *mount, *options]
        inner = [*image, *launch.words(where, apart=True)]
        opened = [OPEN] if launch.open else []
        return "\n".join([*lines, *opened, *_key(launch), _docker_broken(words, inner)])
    # Between machines, NCCL may lock memory for the network card, as units may.
    common += ["-d", "--network=host", "--ulimit", "memlock=-1", *mount, *options]
    head = [*image, "start", "--head", f"--port={RAY_PORT}", "--block"]
    worker = [*image, "start", f"--address=$HEAD_ADDRESS:{RAY_PORT}", "--block"]
    serve = ["docker", "exec", f"serve-{launch.label}", "vllm", *launch.words(where)]
    return "\n".join(
        [
            *lines,
            *([OPEN] if launch.open else []),
            "# 1. on the first machine",
            *_key(launch),
            _docker_broken(common, head),
            "",
            f"# 2. on {_others(launch)}, with HEAD_ADDRESS set to the first machine's address",
            *_key(launch),
            _docker_broken(common, worker).replace(shlex.quote(worker[-2]), f'"{worker[-2]}"'),
            "",
            "# 3. on the first machine",
            _docker_broken(serve[:3], serve[3:]),
        ]
    )


def _address(host: str) -> str:
    """The address on which docker publishes a port; empty for every one, and for a name, which docker does not take."""
    try:
        address = ipaddress.ip_address({"localhost": "127.0.0.1"}.get(host, host))
    except ValueError:
        return ""
    return f"[{address}]:" if address.version == 6 else f"{address}:"


def _docker_broken(words: list[str], inner: list[str]) -> str:
    """A docker command, with each option on its own line, also those of the command in the container."""
    lines = [" ".join(map(shlex.quote, words[:2]))]
    for word in words[2:]:
        if word.startswith("-"):
            lines.append(shlex.quote(word))
        else:
            lines[-1] += " " + shlex.quote(word)
    first, *rest = _broken(inner).split("\n")
    return "\n".join([" \\\n  ".join([*lines, first]), *rest])


def _others(launch: Launch) -> str:
    return "the other machine" if launch.machines == 2 else f"the other {launch.machines - 1} machines"


def dockerfile(launch: Launch) -> str:
    """A Dockerfile for an image with a wheel and its lock, which must be in the build context; or from vLLM's own."""
    if launch.published:
        return _rendered(
            "Dockerfile.published",
            launch,
            base=image_of(launch.published),
            served=base_images.watched(launch.port, "python3"),
        )
    images = base_images.load()
    serve = images.serve.format(images.pythons[0])
    served = base_images.served(launch.port)
    return _rendered("Dockerfile", launch, serve=serve, prepared=images.prepared(), served=served)


def systemd(launch: Launch) -> str:
    """A unit; for several machines also the units of Ray's head and workers."""
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
            open=OPEN if launch.open else "",
        )
        for name, words in units.items()
    )


def _systemd(word: str) -> str:
    """An argument escaped for a unit, where `%`, `$` and quotes are special."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if re.search(r"[\s\"'\\;]", escaped) or not escaped else escaped


def k8s(launch: Launch) -> str:
    """Manifests: a deployment and its service; for several machines a stateful set whose first pod is Ray's head."""
    where = f"/models/{launch.label}" if launch.folder else launch.model
    environment = {name: value for name, value in launch.environment.items() if name != "CUDA_VISIBLE_DEVICES"}
    # A pod has a network of its own, which probes and the service reach by its address.
    argv = ["vllm", *launch.words(where, apart=True)]
    head = f"serve-{launch.label}-0.serve-{launch.label}-pods"
    # The engine counts ray's GPUs only once, so the first pod waits until all GPUs have joined.
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
        attempts=LOADING if launch.folder else DOWNLOADING,
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
    return template.from_string(text).render(
        launch=launch,
        ray_port=RAY_PORT,
        key=API_KEY,
        uid=base_images.UID,
        home=launch.home,
        cache=f"{launch.home}/.cache",
        **more,
    )


FORMATS: dict[str, Callable[[Launch], str]] = {
    "shell": shell,
    "docker": docker,
    "dockerfile": dockerfile,
    "systemd": systemd,
    "k8s": k8s,
    "python": python,
}


def reasons(flags: Iterable[Flag]) -> list[str]:
    """The flags with their reasons, as comments."""
    return [f"#   {' '.join(filter(None, (flag.name, flag.value)))}: {flag.reason}" for flag in flags]
