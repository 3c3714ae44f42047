"""Worker in a reader's environment: prints how that reader interprets models' folders, as one line of JSON for each.

Argument: a file with the request: `kind` of reader, `paths` to put in front of sys.path, packages to stand in for, and
`folders` to read. Lines begin with `READ `, because readers print as well. No weights are read: a reader's own classes
are created from the config alone, without linear layers, and with only the first rows of the rotary table.
"""

from __future__ import annotations
import __future__

import ast
import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.metadata
import importlib.util
import inspect
import json
import os
import pathlib
import pkgutil
import re
import sys
import traceback
import types
from collections.abc import Iterator
from typing import Any
from unittest import mock

REQUEST = json.loads(pathlib.Path(sys.argv[1]).read_text())
# The first rows of a table show its factor; a complete table takes gigabytes.
ROWS = 4
FULL = "full_attention"
SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "sliding_window",
)


def tell(**line: object) -> None:
    """Print one line of the result."""
    print("READ " + json.dumps(line), flush=True)


def number(value: Any) -> Any:
    """A value for JSON; other types as text."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value)


def held(config: Any, name: str, usual: Any = None) -> Any:
    """A value of a config, also where its layers have one each; the usual one where it has none."""
    try:
        value = getattr(config, name, usual)
    except Exception:
        value = config.to_dict().get(name)
    return usual if value is None else value


def shape(config: Any, common: dict[str, Any]) -> None:
    """Add layers and heads, under the names that all readers share, to the facts about a folder."""
    numbers = {name: value for name in SIZES if isinstance(value := held(config, name), int)}
    heads = numbers.get("num_attention_heads")
    common.update(
        layers=numbers.get("num_hidden_layers"),
        heads=heads,
        head_dim=numbers.get("head_dim") or (numbers.get("hidden_size", 0) // heads if heads else None),
        kv_heads=numbers.get("num_key_value_heads"),
        sliding_window=numbers.get("sliding_window") if held(config, "use_sliding_window", True) else None,
    )


def scaling(config: Any) -> dict[str, Any]:
    """The scaling in this reader's config, under either name; that of full attention where layers differ."""
    values = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = {name: part for name, part in dict(values).items() if isinstance(part, dict)}
    return dict(parts.get(FULL) or next(iter(parts.values()), values)) if isinstance(values, dict) else {}


def described(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"


def common_scaling(config: Any) -> dict[str, Any]:
    """The scaling under the names that all readers share."""
    own = scaling(config)
    name = own.get("rope_type", own.get("type"))
    return {
        "type": number(name) if name not in (None, "default") else None,
        "declared_factor": number(own.get("factor")),
        "original": number(own.get("original_max_position_embeddings")),
    }


# --- transformers ------------------------------------------------------------------------------------------------


def transformers_reader() -> tuple[str, Any]:
    """The version of transformers, and a function that reads one folder."""
    import transformers

    def read(folder: str) -> dict[str, Any]:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
        facts: dict[str, Any] = {
            "context": number(getattr(text, "max_position_embeddings", None)),
            "base": number(scaling(text).get("rope_theta", getattr(text, "rope_theta", None))),
            "rows": None,
            "dca": None,
            "knows_dca": False,
            **common_scaling(text),
        }
        shape(text, facts)
        try:
            facts.update(own_rotary(text))
        except Exception as error:
            # Without torch, or for a class without a rotary embedding of its own, the config is read all the same.
            facts["unread"] = described(error)
        return facts

    return transformers.__version__, read


def own_rotary(text: Any) -> dict[str, Any]:
    """The rotary embedding of a model's class, as it is created from the config alone."""
    module = importlib.import_module(type(text).__module__.replace(".configuration_", ".modeling_"))
    for name, owner in sorted(vars(module).items()):
        if not name.endswith("RotaryEmbedding") or "Vision" in name or owner.__module__ != module.__name__:
            continue
        rotary = owner(config=text)
        buffers = {key: value for key, value in vars(rotary).get("_buffers", {}).items() if key.endswith("inv_freq")}
        # Layers of several types have one each.
        kind = FULL if f"{FULL}_inv_freq" in buffers else next(iter(buffers), "").removesuffix("inv_freq").strip("_")
        prefix = f"{kind}_" if kind else ""
        frequencies = buffers[f"{prefix}inv_freq"]
        return {
            "attention_factor": number(getattr(rotary, f"{prefix}attention_scaling", 1.0)),
            "inverse_frequencies": frequencies.double().tolist(),
        }
    raise ValueError(f"{module.__name__} has no rotary embedding")


# --- vLLM --------------------------------------------------------------------------------------------------------


class Enough(Exception):  # noqa: N818 - it is no error
    """The layer has created its rotary embedding; nothing more is needed."""


VLLM_ROTARY = "vllm.model_executor.layers.rotary_embedding"
SGLANG_ROTARY = "sglang.srt.layers.rotary_embedding"


class Stub:
    """Replaces a layer with weights, and accepts any arguments."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass


def find(module: str, name: str) -> Any:
    """An attribute of a module or of its submodules, because versions differ in where it is."""
    owner = importlib.import_module(module)
    if hasattr(owner, name):
        return getattr(owner, name)
    for below in pkgutil.iter_modules(getattr(owner, "__path__", [])):
        with contextlib.suppress(ImportError):
            inner = importlib.import_module(f"{module}.{below.name}")
            if hasattr(inner, name):
                return getattr(inner, name)
    raise ImportError(f"{module} has no {name}")


def with_submodules(package: str) -> list[types.ModuleType]:
    """A package, or a module, and the modules in it."""
    owner = importlib.import_module(package)
    below = pkgutil.iter_modules(getattr(owner, "__path__", []))
    return [owner, *(importlib.import_module(f"{package}.{module.name}") for module in below)]


@contextlib.contextmanager
def few_rows(package: str, seen: dict[str, Any]) -> Iterator[None]:
    """Create tables with their first rows only, and record the number of rows and the frequencies.

    Args:
        package: with the classes of the rotary embeddings.
        seen: where both are recorded.
    """
    import torch

    whole = torch.arange
    modules = with_submodules(package)
    owners = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and "_compute_inv_freq" in vars(value)
    }

    def arange(*bounds: Any, **named: Any) -> Any:
        start, stop = (0, *bounds) if len(bounds) == 1 else bounds[:2]
        if len(bounds) < 3 and stop - start > 1024:
            seen["rows"] = max(seen.get("rows", 0), int(stop - start))
            bounds = (start, start + ROWS)
        return whole(*bounds, **named)

    def recorded(original: Any) -> Any:
        def compute(self: Any, *arguments: Any) -> Any:
            frequencies = original(self, *arguments)
            seen["inverse_frequencies"] = frequencies.double().tolist()
            return frequencies

        return compute

    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch("torch.arange", arange))
        if package == VLLM_ROTARY:
            # Choosing a kernel requires a platform, which does not exist here.
            op = importlib.import_module("vllm.model_executor.custom_op").CustomOp
            stack.enter_context(mock.patch.object(op, "dispatch_forward", lambda self, *_, **__: self.forward_native))
            stack.enter_context(mock.patch.object(op, "enabled", classmethod(lambda *_: False)))
        # The embedding of dual chunk attention creates its table on the current GPU.
        stack.enter_context(mock.patch("torch.cuda.current_device", return_value=0))
        if hasattr(torch, "accelerator"):
            stack.enter_context(mock.patch("torch.accelerator.current_device_index", return_value=0))
        device = torch.device
        cpu = types.SimpleNamespace(**{name: getattr(torch, name) for name in dir(torch)})
        cpu.device = lambda *_: device("cpu")
        for module in modules:
            if hasattr(module, "DualChunkRotaryEmbedding") and vars(module).get("torch") is torch:
                stack.enter_context(mock.patch.object(module, "torch", cpu))
        cpu.arange = arange
        for owner in owners:
            stack.enter_context(
                mock.patch.object(owner, "_compute_inv_freq", recorded(vars(owner)["_compute_inv_freq"]))
            )
        yield


def layer_module(architectures: Any) -> Any:
    """The module of the model's class."""
    return importlib.import_module(layer_module_name(architectures))


def layer_module_name(architectures: Any) -> str:
    """The name of the module of the model's class, from vLLM's own table."""
    registry = importlib.import_module("vllm.model_executor.models.registry")
    tables = [value for key, value in vars(registry).items() if key.endswith("_MODELS") and isinstance(value, dict)]
    for name in architectures or []:
        for table in tables:
            if name in table and isinstance(table[name], tuple):
                return f"vllm.model_executor.models.{table[name][0]}"
    raise ValueError(f"this version serves none of {architectures}")


def create(package: str, get_rope: Any, seen: dict[str, Any], *positional: Any, **named: Any) -> None:
    """Create a rotary embedding by an engine's own `get_rope`, and record what it is like."""
    with few_rows(package, seen):
        rotary = get_rope(*positional, **named)
    table = getattr(rotary, "cos_sin_cache", None)
    # The angle of the first row is 0, and its cosine 1: the value is the factor itself.
    seen["attention_factor"] = float(table[0, 0]) if table is not None else 1.0
    seen["embedding"] = type(rotary).__name__


def make_rotary(whole: Any, config: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Create the model's first attention layer as vLLM does; the arguments and facts of its rotary embedding."""
    module = layer_module(whole.architectures)
    # vLLM caches embeddings by their parameters and would not create an equal one again.
    kept = vars(importlib.import_module(VLLM_ROTARY)).get("_ROPE_DICT")
    if kept is not None:
        kept.clear()
    arguments: dict[str, Any] = {}
    seen: dict[str, Any] = {}

    def get_rope(*positional: Any, **named: Any) -> Any:
        bound = inspect.signature(original).bind(*positional, **named)
        bound.apply_defaults()
        arguments.update(bound.arguments)
        create(VLLM_ROTARY, original, seen, *positional, **named)
        raise Enough

    original = module.get_rope
    # The class of the module that calls `get_rope` is the attention; its caller is the layer.
    names = ("QKVParallelLinear", "RowParallelLinear", "ColumnParallelLinear", "Attention", "RMSNorm")
    patches: list[Any] = [mock.patch.object(module, name, Stub) for name in names if hasattr(module, name)]
    if hasattr(module, "get_tensor_model_parallel_world_size"):
        patches.append(mock.patch.object(module, "get_tensor_model_parallel_world_size", return_value=1))
    patches.append(mock.patch.object(module, "get_rope", get_rope))
    layer = next(
        value
        for name, value in sorted(vars(module).items())
        if name.endswith("DecoderLayer") and isinstance(value, type) and value.__module__ == module.__name__
    )
    known = {"config": config, "prefix": "model.layers.0", "cache_config": None, "quant_config": None}
    accepted = inspect.signature(layer).parameters
    if "vllm_config" in accepted:
        hf = types.SimpleNamespace(hf_config=config, hf_text_config=config)
        known["vllm_config"] = types.SimpleNamespace(model_config=hf, cache_config=None, quant_config=None)
    # torch does not register a Stub as a submodule; it is a plain attribute.
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        with contextlib.suppress(Enough):
            layer(**{name: value for name, value in known.items() if name in accepted})
    if "embedding" not in seen:
        raise ValueError("its attention layer created no rotary embedding")
    return arguments, seen


def vllm_reader() -> tuple[str, Any]:
    """The version of vLLM, and a function that reads one folder."""
    import torch
    import vllm

    with contextlib.suppress(ImportError, AttributeError):
        from vllm.plugins import load_general_plugins

        load_general_plugins()
    torch.set_default_dtype(torch.float32)
    configs = importlib.import_module("vllm.transformers_utils.config")

    def read(folder: str) -> dict[str, Any]:
        config = configs.get_config(folder, trust_remote_code=False)
        text = configs.get_hf_text_config(config)
        dca = sparse_table(config, folder)
        facts: dict[str, Any] = {
            "context": max_length(folder, config, text),
            "base": number(scaling(text).get("rope_theta", getattr(text, "rope_theta", None))),
            "knows_dca": has_backend(),
            "dca": common_dca(dca) if dca else None,
            **common_scaling(text),
        }
        shape(text, facts)
        try:
            facts.update(engine_rotary(config, text))
        except Exception as error:
            traceback.print_exc()
            facts["unread"] = described(error)
        return facts

    return getattr(vllm, "__version__", "unknown"), read


def engine_rotary(config: Any, text: Any) -> dict[str, Any]:
    """The rotary embedding as the model's first layer creates it, or, where that needs more, as `get_rope` does."""
    try:
        arguments, seen = make_rotary(config, text)
    except Exception:
        traceback.print_exc()
        arguments, seen = direct_rotary(config, text)
    return created(arguments, seen)


def created(arguments: dict[str, Any], seen: dict[str, Any]) -> dict[str, Any]:
    """The facts about a rotary embedding: what it was asked for, and what it is like."""
    asked = arguments.get("dual_chunk_attention_config")
    facts = {
        "base": number(arguments.get("base")) or number(parameters(arguments).get("rope_theta")),
        "rows": seen.get("rows"),
        "attention_factor": seen["attention_factor"],
        "inverse_frequencies": seen["inverse_frequencies"],
        **({"dca": common_dca(asked)} if asked else {}),
    }
    return {name: value for name, value in facts.items() if value is not None}


FACTOR = "mrope_positions_factor"


def positions_factor(whole: Any) -> int | None:
    """How many times its length a model with several axes of positions has rows for, when its module says so itself.

    The module may need packages that are not here, so only this function of it is run: as for a server without a draft
    and without pruning of videos.
    """
    try:
        name = layer_module_name(whole.architectures)
        while name:
            spec = importlib.util.find_spec(name)
            tree = ast.parse(pathlib.Path(str(spec and spec.origin)).read_text(encoding="utf-8"))
            name = ""
            for node in tree.body:
                if isinstance(node, ast.FunctionDef) and node.name == FACTOR:
                    code = compile(ast.Module([node], []), FACTOR, "exec", flags=__future__.annotations.compiler_flag)
                    made: dict[str, Any] = {}
                    exec(code, made)  # noqa: S102 - of the installed engine
                    model = types.SimpleNamespace(multimodal_config=None)
                    return int(made[FACTOR](types.SimpleNamespace(speculative_config=None, model_config=model)))
                if isinstance(node, ast.ImportFrom) and FACTOR in [alias.name for alias in node.names]:
                    name = f"vllm.model_executor.models.{node.module}" if node.level else str(node.module)
    except Exception:
        traceback.print_exc()
    return None


def direct_rotary(whole: Any, text: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rotary embedding by vLLM's `get_rope`, with the arguments that its models give."""
    package = importlib.import_module(VLLM_ROTARY)
    vars(package).get("_ROPE_DICT", {}).clear()
    head, own = rotary_head(text), own_scaling(text, VLLM_ROTARY)
    arguments: dict[str, Any] = {"head_size": head, "max_position": text.max_position_embeddings}
    if "rope_parameters" in inspect.signature(package.get_rope).parameters:
        arguments["rope_parameters"] = own or {"rope_theta": held(text, "rope_theta", 10000.0)}
    else:
        part = getattr(text, "partial_rotary_factor", 1.0) or 1.0
        arguments.update(
            base=getattr(text, "rope_theta", 10000.0), rotary_dim=int(head * part), rope_scaling=own or None
        )
    if "mrope_positions_factor" in inspect.signature(package.get_rope).parameters and (
        factor := positions_factor(whole)
    ):
        arguments["mrope_positions_factor"] = factor
    seen: dict[str, Any] = {}
    create(VLLM_ROTARY, package.get_rope, seen, **arguments)
    return arguments, seen


def rotary_head(text: Any) -> int:
    """Elements of a head that has a rotary embedding."""
    head = held(text, "qk_rope_head_dim") or held(text, "global_head_dim") or held(text, "head_dim")
    return int(head or text.hidden_size // text.num_attention_heads)


def own_scaling(text: Any, package: str) -> dict[str, Any]:
    """The scaling that an engine's models ask for: those with latent attention name YaRN as `get_rope` alone does."""
    own = scaling(text)
    if held(text, "qk_rope_head_dim") and own.get("rope_type", own.get("type")) == "yarn":
        texts = "".join(inspect.getsource(module) for module in with_submodules(package))
        own["rope_type"] = re.findall(r'"(\w+_yarn)"', texts)[0]
    return own


def parameters(arguments: dict[str, Any]) -> dict[str, Any]:
    """The scaling that a rotary embedding was created with."""
    return dict(arguments.get("rope_parameters") or arguments.get("rope_scaling") or {})


def has_backend() -> bool:
    """Whether this version has an attention backend for dual chunk attention."""
    return any(
        importlib.util.find_spec(f"vllm.{place}.dual_chunk_flash_attn") is not None
        for place in ("attention.backends", "v1.attention.backends")
        if importlib.util.find_spec(f"vllm.{place.partition('.')[0]}") is not None
        and importlib.util.find_spec(f"vllm.{place}") is not None
    )


def sparse_table(config: Any, folder: str) -> Any:
    """The config's dual chunk attention, with the sparse table if this version finds it."""
    if getattr(config, "dual_chunk_attention_config", None) is None:
        return None
    owner = find("vllm.config", "ModelConfig")
    verify = getattr(owner, "verify_dual_chunk_attention_config", None)
    if verify is not None:
        verify(types.SimpleNamespace(hf_config=config, model=folder), None)
    return config.dual_chunk_attention_config


def common_dca(config: Any) -> dict[str, Any]:
    """Dual chunk attention under the names that all readers share."""
    table = config.get("sparse_attention_config")
    rows = [len(layer) for layer in table] if isinstance(table, list) else []
    return {
        "chunk_size": number(config.get("chunk_size", 8192)),
        "local_size": number(config.get("local_size", 1024)),
        "original": number(config.get("original_max_position_embeddings", 0)),
        "sparse": bool(config.get("sparse_attention_enabled", table is not None)),
        "table_layers": len(rows) if rows else None,
        "table_heads": min(rows) if rows else None,
    }


def max_length(folder: str, config: Any, text: Any) -> int:
    """The length that vLLM derives when the user gives none."""
    owner = find("vllm.config", "ModelConfig")
    if hasattr(owner, "get_model_arch_config"):
        return today_length(owner, folder, config, text)
    if hasattr(owner, "get_and_verify_max_len"):
        # The method, if it exists, because plugins hook into it.
        model = types.SimpleNamespace(
            hf_config=config,
            hf_text_config=text,
            runner_type="generate",
            disable_sliding_window=False,
            get_sliding_window=lambda: None,
            spec_target_max_model_len=None,
            encoder_config=None,
        )
        return int(owner.get_and_verify_max_len(model, None))
    derive = find("vllm.config", "_get_and_verify_max_len")
    known: dict[str, Any] = {"hf_config": text, "max_model_len": None, "disable_sliding_window": False}
    for name, parameter in inspect.signature(derive).parameters.items():
        if parameter.default is inspect.Parameter.empty:
            known.setdefault(name, None)
    accepted = inspect.signature(derive).parameters
    return int(derive(**{name: value for name, value in known.items() if name in accepted}))


def today_length(owner: Any, folder: str, config: Any, text: Any) -> int:
    """The length by vLLM's own ModelConfig; by its parts for a model whose class needs compiled modules."""
    registry = importlib.import_module("vllm.model_executor.models.registry")
    # It would inspect the model's class in a process of its own, which takes as long as this one has taken to start.
    with mock.patch.object(registry, "_run_in_subprocess", lambda inspected: inspected(), create=True):
        try:
            return int(owner(model=folder, skip_tokenizer_init=True, trust_remote_code=False).max_model_len)
        except Exception:
            traceback.print_exc()
    convertors = importlib.import_module("vllm.transformers_utils.model_arch_config_convertor")
    table = getattr(convertors, "MODEL_ARCH_CONFIG_CONVERTORS", {})
    convertor = table.get(config.model_type, convertors.ModelArchConfigConvertorBase)
    derive = find("vllm.config", "_get_and_verify_max_len")
    return int(
        derive(
            hf_config=text,
            model_arch_config=convertor(config, text).convert(),
            tokenizer_config=None,
            max_model_len=None,
            disable_sliding_window=False,
            sliding_window=None,
        )
    )


# --- SGLang ------------------------------------------------------------------------------------------------------


class Anything(Stub):
    """Whatever is asked of a package that is not here: a function, a class, a decorator, a constant."""

    def __call__(self, *arguments: Any, **_: Any) -> Any:
        """As a decorator what it is given; itself otherwise."""
        return arguments[0] if arguments and callable(arguments[0]) else self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __class_getitem__(cls, _: Any) -> Any:
        return cls


class StandIn(types.ModuleType):
    """A module of a package that is not here."""

    __path__: list[str] = []
    __version__ = "99"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Anything()


class StandIns(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules of packages that are for a GPU, which nothing calls to read a config."""

    def __init__(self, packages: list[str]) -> None:
        self.packages = packages

    def find_spec(self, name: str, *_: Any) -> importlib.machinery.ModuleSpec | None:
        """The spec of a module of these packages."""
        found = name.partition(".")[0] in self.packages
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """The module that stands in."""
        return StandIn(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Run nothing: there is no code."""


def sglang_reader() -> tuple[str, Any]:
    """The version of SGLang, and a function that reads one folder."""
    import torch

    torch.set_default_dtype(torch.float32)
    owner = importlib.import_module("sglang.srt.configs.model_config").ModelConfig
    package = importlib.import_module(SGLANG_ROTARY)
    backend = importlib.util.find_spec("sglang.srt.layers.attention.dual_chunk_flashattention_backend")

    def rotary(config: Any, text: Any) -> dict[str, Any]:
        # SGLang keeps embeddings by their parameters, and would not create an equal one again.
        for module in with_submodules(SGLANG_ROTARY):
            vars(module).get("_ROPE_DICT", {}).clear()
        head, own = rotary_head(text), own_scaling(text, SGLANG_ROTARY)
        arguments = {
            "head_size": head,
            "rotary_dim": head,
            "max_position": text.max_position_embeddings,
            "base": own.get("rope_theta") or held(text, "rope_theta", 10000),
            "rope_scaling": own or None,
            "partial_rotary_factor": own.get("partial_rotary_factor") or held(text, "partial_rotary_factor", 1.0),
            "dual_chunk_attention_config": held(config, "dual_chunk_attention_config"),
        }
        seen: dict[str, Any] = {}
        create(SGLANG_ROTARY, package.get_rope, seen, **arguments)
        return created(arguments, seen)

    def read(folder: str) -> dict[str, Any]:
        model = owner(folder, trust_remote_code=False)
        config, text = model.hf_config, model.hf_text_config
        facts: dict[str, Any] = {
            "context": int(model.context_len),
            "base": number(scaling(text).get("rope_theta", getattr(text, "rope_theta", None))),
            "knows_dca": backend is not None,
            "dca": None,
            **common_scaling(text),
        }
        shape(text, facts)
        try:
            facts.update(rotary(config, text))
        except Exception as error:
            traceback.print_exc()
            facts["unread"] = described(error)
        return facts

    # The package's own `__version__` may need a git checkout.
    return importlib.metadata.version("sglang"), read


READERS = {"transformers": transformers_reader, "vllm": vllm_reader, "sglang": sglang_reader}


def main() -> None:
    """Read every folder of the request."""
    sys.path[:0] = REQUEST["paths"]
    sys.meta_path.insert(0, StandIns(REQUEST["stand_ins"]))
    if "triton" not in REQUEST["stand_ins"]:
        try:
            importlib.metadata.version("triton")
        except importlib.metadata.PackageNotFoundError:
            # An environment for builds has some of its files, which would pass for the package.
            sys.modules["triton"] = None  # type: ignore[assignment]
    os.environ.setdefault("VLLM_ATTENTION_BACKEND", "DUAL_CHUNK_FLASH_ATTN")
    try:
        version, read = READERS[REQUEST["kind"]]()
    except Exception as error:
        tell(broken=described(error))
        raise
    tell(version=version)
    for folder in REQUEST["folders"]:
        try:
            facts = read(folder)
        except Exception as error:
            traceback.print_exc()
            facts = {"error": described(error)}
        tell(folder=folder, **facts)


main()
