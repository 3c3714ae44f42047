"""What serves a model, what shows of its settings, and what its version takes and offers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator

from packaging.version import InvalidVersion, Version

from dca.catalogue import recipes
from dca.catalogue.recipes import Recipe
from dca.serve import engines
from dca.serve.check import metrics
from dca.serve.check.answers import Card
from dca.serve.check.client import Server
from dca.serve.check.failed import RequestFailed
from dca.serve.check.values import Engine, Flag

VLLM = "vllm"
MOST = 80
# `guided_json` and --guided-decoding-backend were replaced in the first and removed in the second release.
REPLACED, REMOVED = Version("0.11"), Version("0.12")
RESPONSE_FORMAT, STRUCTURED, GUIDED = "response_format", "structured_outputs", "guided_json"
TOOL_FLAGS = "--enable-auto-tool-choice --tool-call-parser"
# Labels of vLLM's metric that are flags of `vllm serve`, and those that are the engine's own result.
LABELS = {
    "block_size": "--block-size",
    "cache_dtype": "--kv-cache-dtype",
    "enable_prefix_caching": "--enable-prefix-caching",
    "gpu_memory_utilization": "--gpu-memory-utilization",
    "num_gpu_blocks_override": "--num-gpu-blocks-override",
    "num_gpu_blocks": "num_gpu_blocks",
}


def of(server: Server, card: Card, deadline: float) -> Engine:
    """What serves the model: the card's owner, the version of /version, and the plugin that its metrics name.

    Args:
        server: the server.
        card: the model's card.
        deadline: seconds for the request.
    """
    name, version = _word(server, card.owned_by), ""
    try:
        body = json.loads(server.text_of("/version", deadline))
    except (RequestFailed, ValueError, RecursionError):
        body = None
    if isinstance(body, dict) and isinstance(body.get("version"), str):
        version = _word(server, body["version"])
    return known(name, version, lambda metric: _labels(metrics.text_of(server, deadline), metric))


def known(name: str, version: str, labels: Callable[[str], dict[str, str]]) -> Engine:
    """An engine with its recipe.

    Args:
        name: of the engine.
        version: of the engine.
        labels: of a metric of the server.
    """
    base = version.partition("+")[0]
    for recipe in (loaded.recipe for loaded in recipes.load_all() if name == VLLM):
        if recipe.engine is None:
            if recipe.base_version == base:
                return Engine(name=name, version=version, recipe=recipe.name)
        # The engine is the same without the plugin.
        elif recipe.engine.version == base and (told := labels(_metric(recipe))):
            return Engine(name=name, version=version, recipe=recipe.name, ordinary=_ordinary(told))
    return Engine(name=name, version=version)


def _word(server: Server, text: str | None) -> str:
    """A name that a server tells, if it can be shown."""
    shown = server.hide(text or "").strip()
    return shown if len(shown) <= MOST and shown.isprintable() else ""


def _ordinary(told: dict[str, str]) -> int:
    """The longest prompt with ordinary attention, by the metric of a plugin: a chunk, and no sparse one."""
    names = ("chunk_size", "local_size", "sparse_attention_threshold")
    size, local, threshold = (int(told[name]) if told.get(name, "").isdecimal() else None for name in names)
    stride = max(size - local, 0) if size is not None and local is not None else 0
    return stride if threshold is None else min(stride, threshold)


def plugin(engine: Engine) -> Recipe | None:
    """The recipe of the plugin that serves, if one does."""
    known = (loaded.recipe for loaded in recipes.load_all())
    return next((recipe for recipe in known if recipe.name == engine.recipe and recipe.is_plugin), None)


def _metric(recipe: Recipe) -> str:
    """The metric by which a plugin shows."""
    return f"{recipe.package.replace('-', '_')}_info"


def proof(engine: Engine) -> str:
    """How to prove what serves."""
    found = plugin(engine)
    if found is None or found.engine is None:
        return "prove the wheel with `dca smoke`"
    return f"prove the plugin with `dca plugin check {found.engine.package}=={found.engine.version} --engine`"


def flags(server: Server, engine: Engine, cards: list[Card], measured: str) -> tuple[Flag, ...]:
    """What shows of the server's settings before anything is generated.

    Args:
        server: the server.
        engine: what serves the model.
        cards: the server's list of models.
        measured: the text of the server's metrics; empty without any.
    """
    seen = "/v1/models"
    card = next((card for card in cards if card.id == server.model), None)
    found = []
    if card is not None and card.max_model_len:
        found.append(Flag(name="--max-model-len", value=str(card.max_model_len), seen=seen))
    if len(names := names_of(server.model, cards)) > 1 or (card and card.root and card.root != card.id):
        found.append(Flag(name="--served-model-name", value=server.hide(" ".join(names)), seen=seen))
    if server.key:
        found.append(Flag(name="--api-key", seen="--api-key-env"))
    if engine.name == VLLM:
        found += _metrics(server, engine, measured)
    return tuple(found)


def names_of(name: str, cards: list[Card]) -> list[str]:
    """The names of one model: cards with the same files, and no adapters."""
    mine = next((card for card in cards if card.id == name), None)
    if mine is None or not mine.root:
        return [name]
    return [card.id for card in cards if (card.root, card.parent) == (mine.root, mine.parent)]


def _metrics(server: Server, engine: Engine, text: str) -> Iterator[Flag]:
    values = _labels(text, "vllm:cache_config_info")
    for label, flag in LABELS.items():
        if (value := values.get(label, "None")) != "None":
            yield Flag(name=flag, value=server.hide(value), seen=metrics.PATH)
    if found := plugin(engine):
        for label, value in _labels(text, _metric(found)).items():
            yield Flag(name=label, value=server.hide(value), seen=metrics.PATH)


def _labels(text: str, name: str) -> dict[str, str]:
    """The labels of a metric that are not empty; none where the text has no such metric."""
    found = re.search(rf"^{re.escape(name)}\{{([^}}\n]{{0,4000}})\}}", text, re.MULTILINE)
    return dict(re.findall(r'(\w+)="([\w.:/+-]{1,40})"', found[1])) if found else {}


def _version(engine: Engine) -> Version | None:
    try:
        return Version(engine.version)
    except InvalidVersion:
        return None


def structured_fields(engine: Engine) -> tuple[str, ...]:
    """The fields of a request that ask for a schema, which the server's version takes, in the order to try."""
    version = _version(engine) if engine.name == VLLM else None
    if version is None:
        return {VLLM: (RESPONSE_FORMAT, GUIDED, STRUCTURED), "": (RESPONSE_FORMAT, GUIDED)}.get(
            engine.name, (RESPONSE_FORMAT,)
        )
    return (RESPONSE_FORMAT, STRUCTURED if version >= REPLACED else GUIDED)


def ignores_structure(engine: Engine) -> bool:
    """Whether the recipe's engine ignores structured output when it serves dual chunk attention."""
    return bool(engine.recipe) and not engines.of(engine.recipe).structured_output


def structured_remedy(engine: Engine) -> str:
    """How to make the server enforce schemas."""
    if ignores_structure(engine):
        return (
            f"with dual chunk attention {engine.words} uses its V0 engine, which ignores schemas and named tools: "
            "validate answers in the client, or serve with another recipe (`dca serve plan` says which enforce them)."
        )
    if engine.name not in ("", VLLM):
        return "turn structured output on in the server; its documentation names the option."
    version = _version(engine)
    new, old = "--structured-outputs-config.backend", "--guided-decoding-backend"
    if version is None:
        return f"start vLLM with another {new} (before 0.11: {old})."
    return f"start the server with another {new if version >= REPLACED else old}."


def tools_remedy(engine: Engine, *, accepted: bool) -> str:
    """How to make the server return tool calls.

    Args:
        engine: what serves the model.
        accepted: whether the server took `tool_choice` "auto", which vLLM does only with both of its flags.
    """
    if engine.name not in ("", VLLM):
        return "turn tool calls on in the server, with the model's own format; its documentation names the options."
    if accepted and engine.name == VLLM:
        return (
            "the server has its tool flags: check that the value of --tool-call-parser is the model's format, and "
            "that the chat template shows the tools to the model (--chat-template)."
        )
    parser = engines.of(engine.recipe).tool_parser if engine.recipe else "PARSER"
    hint = "" if engine.recipe else ", the parser being the one for the model's format, such as hermes"
    return f"start the server with {TOOL_FLAGS} {parser}{hint}."
