"""What the tests of all guards share: the guards as a module, cases, and a worker that configures engines."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dca.catalogue.recipes import Recipe

PATCHES = Path(__file__).parents[2] / "patches"
GUARDS_FILE = PATCHES / "guards" / "vllm" / "dca_guards.py"
BACKEND_FILE = Path("vllm/attention/backends/dual_chunk_flash_attn.py")


def _load(name: str, path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # pickle looks classes up by their module's name
    spec.loader.exec_module(module)
    return module


guards = _load("dca_guards", GUARDS_FILE)


def load_hooks(recipe: str) -> Any:
    """The hooks of a recipe."""
    return _without_vllm(f"hooks_of_{recipe}", PATCHES / recipe / "added" / "vllm" / "dca_hooks.py")


def load_shared_hooks(folder: str) -> Any:
    """The hooks that recipes share."""
    return _without_vllm(f"hooks_of_{folder}", PATCHES / folder / "vllm" / "dca_hooks.py")


def _without_vllm(name: str, path: Path) -> Any:
    """A module of hooks in a place without vLLM: they import it when they are registered only."""
    package = ModuleType("vllm")
    package.dca_guards = guards  # type: ignore[attr-defined]
    before = sys.modules.get("vllm")
    sys.modules["vllm"] = package
    try:
        return _load(name, path)
    finally:
        del sys.modules["vllm"]
        if before is not None:
            sys.modules["vllm"] = before


class Fork(NamedTuple):
    """The fork's source and its companion's, as they were and with the series applied."""

    before: Path
    patched: Path
    kernels_before: Path
    kernels_patched: Path


QWEN_1M = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}


def kernels_of_the_default_groups(recipe: Recipe) -> dict[str, Any]:
    """What a wheel's dca.json says of its attention kernels."""
    groups = [recipe.groups[name] for name in recipe.lean.groups]
    has = {value for group in groups for value in (*group.head_dims, *group.dtypes)}
    adding = {
        value: option
        for module in recipe.modules
        for value, option in recipe.adding(module).items()
        if value not in has
    }
    return {
        "serves": {
            "head_dims": sorted(value for value in has if isinstance(value, int)),
            "dtypes": sorted(value for value in has if isinstance(value, str)),
        },
        "left_out": {
            "command": f"dca wheel --recipe {recipe.name}",
            "head_dims": {str(value): option for value, option in adding.items() if isinstance(value, int)},
            "dtypes": {value: option for value, option in adding.items() if isinstance(value, str)},
        },
    }


def table_for(layers: int, heads: int, slash_size: int = 6096) -> list[dict[str, list[Any]]]:
    return [{str(head): ["vertical_and_slash", 1000, slash_size, 0.5] for head in range(heads)} for _ in range(layers)]


def with_entry(entry: Any) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = [dict(row) for row in table_for(2, 4)]
    table[1]["3"] = entry
    return table


def assert_is_a_whole_message(text: str, code: str) -> None:
    assert text.endswith(f". ({code})")
    assert code in guards.CODES
    what, why, *todo = text.split(". ")
    assert all([what, why, *todo])
    assert len(todo) >= 2  # what to do, and the code
    assert "\n" not in text


# --- engines configured inside of an installed wheel ---------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One model folder, and the arguments and environment to configure an engine with."""

    args: dict[str, Any] = field(default_factory=dict)
    dca: dict[str, Any] | None = field(default_factory=lambda: dict(QWEN_1M))
    config: dict[str, Any] = field(default_factory=dict)
    table: list[dict[str, Any]] | None = None
    env: dict[str, str] = field(default_factory=dict)
    ops: list[str] = field(default_factory=list)
    """Ops of `_C` that are there besides what the wheel's module has."""


# In place of a model's name: one without DCA.
PLAIN = "@plain"


EAGER = {"enforce_eager": True}
FITTING = table_for(2, 4)
# What a --kv-transfer-config says; the worker makes vLLM's own value of it.
TRANSFER = {"kv_connector": "PyNcclConnector", "kv_role": "kv_producer", "kv_rank": 0, "kv_parallel_size": 2}
# Four heads of 128, and of 64; a wheel of the default groups has kernels for the former, in bfloat16.
HEADS_128, HEADS_64 = {"hidden_size": 512}, {"hidden_size": 256}

# Each is expected to be refused by every version, with this code and these words.
REFUSED: dict[str, tuple[Case, str, list[str]]] = {
    "another backend": (
        Case(EAGER, env={"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}),
        "DCA-811",
        ["VLLM_ATTENTION_BACKEND=FLASH_ATTN"],
    ),
    "the V1 engine": (Case(EAGER, env={"VLLM_USE_V1": "1"}), "DCA-811", ["VLLM_USE_V1=1"]),
    "the backend without DCA": (
        Case(dca=None, config={"hidden_size": 512}, env={"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN"}),
        "DCA-811",
        ["VLLM_ATTENTION_BACKEND=DUAL_CHUNK_FLASH_ATTN", "no dual_chunk_attention_config"],
    ),
    "a KV connector past the original length": (
        Case({**EAGER, "kv_transfer_config": TRANSFER, "max_model_len": 262145}, table=FITTING),
        "DCA-814",
        ["--kv-transfer-config", "262145", "262144"],
    ),
    "an FP8 KV cache": (Case({**EAGER, "kv_cache_dtype": "fp8"}), "DCA-813", ["fp8"]),
    "prefix caching past the original length": (
        Case({**EAGER, "enable_prefix_caching": True, "max_model_len": 262145}),
        "DCA-814",
        ["262145", "262144"],
    ),
    "no table": (
        Case(EAGER, {**QWEN_1M, "sparse_attention_enabled": True}),
        "DCA-816",
        ["sparse_attention_config.json"],
    ),
    "too few layers": (Case(EAGER, table=table_for(1, 4)), "DCA-817", ["1 layers", "2 layers of 4 query heads"]),
    "too few heads": (Case(EAGER, table=table_for(2, 2)), "DCA-817", ["2 of these heads", "4 query heads"]),
    "an entry of another type": (
        Case(EAGER, table=with_entry(["stream_llm", 100, 800, 0.5])),
        "DCA-818",
        ["stream_llm", "layer 1, head 3"],
    ),
    "an entry of fewer slash lines than the nearest": (
        Case(EAGER, table=with_entry(["vertical_and_slash", 1000, 99, 0.5])),
        "DCA-818",
        ["layer 1, head 3 has 99 slash lines", "--max-model-len 253952"],
    ),
    "a chunk that is not a multiple of the block": (
        Case(EAGER, {**QWEN_1M, "local_size": 8200}),
        "DCA-819",
        ["253944", "block size, 16"],
    ),
    "no chunk size": (Case(EAGER, {"local_size": 8192}), "DCA-819", ["chunk_size=None"]),
    "prefill in one piece": (
        Case({**EAGER, "enable_chunked_prefill": False}, table=FITTING),
        "DCA-820",
        ["max_model_len=1010000", "--enable-chunked-prefill"],
    ),
    "more tokens per step than the kernel can count": (
        Case({**EAGER, "max_num_batched_tokens": 253952}, table=table_for(2, 4, 150000)),
        "DCA-822",
        ["max_num_batched_tokens=253952", "150000 entries"],
    ),
    "an FP8 E5M2 KV cache": (Case({**EAGER, "kv_cache_dtype": "fp8_e5m2"}), "DCA-813", ["fp8_e5m2"]),
    "too few heads in a table inside config.json": (
        Case(EAGER, {**QWEN_1M, "sparse_attention_config": table_for(2, 3)}),
        "DCA-817",
        ["3 of these heads"],
    ),
    "a block size that does not divide the chunk": (
        Case({**EAGER, "block_size": 32}, {**QWEN_1M, "local_size": 8208}),
        "DCA-819",
        ["253936", "block size, 32"],
    ),
    "half": (
        Case({**EAGER, "dtype": "half"}, config=HEADS_128),
        "DCA-823",
        ["float16", "--dtype bfloat16", "dca wheel --recipe", "--with fp16"],
    ),
    "a float16 model": (Case(EAGER, config={**HEADS_128, "torch_dtype": "float16"}), "DCA-823", ["--with fp16"]),
    "half without DCA": (Case({"dtype": "half"}, dca=None, config=HEADS_128), "DCA-823", ["--with fp16"]),
    "heads of 64": (Case(EAGER, config=HEADS_64), "DCA-823", ["head dimension 64", "dca wheel --recipe"]),
    "heads of 64 without DCA": (Case(dca=None, config=HEADS_64), "DCA-823", ["head dimension 64"]),
}

ACCEPTED: dict[str, Case] = {
    "nothing set": Case(EAGER, table=FITTING),
    "CUDA graphs": Case(table=FITTING),
    "a KV connector": Case({**EAGER, "kv_transfer_config": TRANSFER, "max_model_len": 262144}, table=FITTING),
    "all set": Case(EAGER, table=FITTING, env={"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}),
    "FP8 weights": Case({**EAGER, "quantization": "fp8"}, table=FITTING),
    "prefix caching": Case({**EAGER, "enable_prefix_caching": True, "max_model_len": 262144}, table=FITTING),
    "too long": Case({**EAGER, "max_model_len": 1048576}, table=FITTING),
    "too long, overridden": Case(
        {**EAGER, "max_model_len": 1048576}, table=FITTING, env={"VLLM_ALLOW_LONG_MAX_MODEL_LEN": "1"}
    ),
    "too long by rope_scaling": Case(
        EAGER,
        config={"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 262144}},
        table=FITTING,
    ),
    "dense": Case(EAGER),
    "dense on purpose": Case(EAGER, {**QWEN_1M, "sparse_attention_enabled": False}),
    "heads of 128": Case(EAGER, config=HEADS_128),
    "a float16 model in bfloat16": Case({**EAGER, "dtype": "bfloat16"}, config={**HEADS_128, "torch_dtype": "float16"}),
    "half, another backend": Case(
        {"dtype": "half"}, dca=None, config=HEADS_128, env={"VLLM_ATTENTION_BACKEND": "XFORMERS"}
    ),
    "prefill in one piece, within one chunk": Case(
        {**EAGER, "enable_chunked_prefill": False, "max_model_len": 253952}, table=FITTING
    ),
}

# Runs in the wheel's environment: imports vLLM on a simulated GPU.
SIMULATED = """
import json, logging, os, sys, types
from pathlib import Path

import torch

try:
    import vllm._C
except ImportError:  # no driver library: configuring needs no more of the module than these answers
    sys.modules["vllm._C"] = types.ModuleType("vllm._C")
    library = torch.library.Library("_C", "FRAGMENT")
    for op in ("cutlass_scaled_mm_supports_fp8", "cutlass_scaled_mm_supports_block_fp8"):
        library.define(op + "(int cuda_device_capability) -> bool")
        library.impl(op, lambda capability: True, "CompositeExplicitAutograd")

import vllm.platforms
from vllm.platforms.cuda import NonNvmlCudaPlatform
from vllm.platforms.interface import DeviceCapability


class SimulatedGPU(NonNvmlCudaPlatform):
    @classmethod
    def get_device_capability(cls, device_id=0):
        return DeviceCapability(9, 0)

    @classmethod
    def get_device_name(cls, device_id=0):
        return "simulated"

    @classmethod
    def get_device_total_memory(cls, device_id=0):
        return 80 << 30

    @classmethod
    def device_count(cls):
        return 1


vllm.platforms._current_platform = SimulatedGPU()
ROOT = Path(sys.argv[1])
BASE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 512, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 1010000, "rope_theta": 10000000.0, "torch_dtype": "bfloat16",
}
VARIABLES = ("VLLM_ATTENTION_BACKEND", "VLLM_USE_V1")
"""

# vLLM is imported once; every case is then a process of its own, because configuring an engine sets variables and
# fills caches.
CONFIG_WORKER = (
    SIMULATED
    + """
# vLLM imports it only for a model with dual chunk attention, and that takes seconds: every such case would do it.
import vllm.model_executor.model_loader
from vllm.config import KVTransferConfig
from vllm.engine.arg_utils import EngineArgs


def configure(number, case):
    folder = ROOT / f"model{number}"
    folder.mkdir()
    config = {**BASE, **case["config"]}
    if case["dca"] is not None:
        config["dual_chunk_attention_config"] = case["dca"]
    (folder / "config.json").write_text(json.dumps(config))
    if case["table"] is not None:
        (folder / "sparse_attention_config.json").write_text(json.dumps(case["table"]))
    os.environ.update(case["env"])
    library = torch.library.Library("_C", "FRAGMENT")
    for op in case["ops"]:
        library.define(op + "() -> ()")
    args = {name: str(ROOT / "modelfirst") if value == "@plain" else value for name, value in case["args"].items()}
    if "kv_transfer_config" in args:
        args["kv_transfer_config"] = KVTransferConfig(**args["kv_transfer_config"])
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append([record.levelname, record.getMessage()])
    logging.getLogger("vllm").addHandler(handler)
    result = {"error": None, "error_type": None, "logged": logged}
    try:
        made = EngineArgs(model=str(folder), skip_tokenizer_init=True, **args).create_engine_config()
    except Exception as error:
        result.update(error=str(error), error_type=type(error).__name__)
    else:
        result["config"] = {
            "max_model_len": made.model_config.max_model_len,
            "scheduled_len": made.scheduler_config.max_model_len,
            "seed": made.model_config.seed,
            "eager": made.model_config.enforce_eager,
            "quantization": made.model_config.quantization,
            "prefix_caching": made.cache_config.enable_prefix_caching,
            "block_size": made.cache_config.block_size,
            "cache_dtype": made.cache_config.cache_dtype,
        }
    logging.getLogger("vllm").removeHandler(handler)
    result["environ"] = {name: os.environ.get(name) for name in VARIABLES}
    return result


# In this process, so that the others inherit what vLLM learns about the architecture, which takes seconds.
configure("first", {"args": {}, "dca": None, "config": {}, "table": None, "env": {}, "ops": []})
for name in VARIABLES:
    os.environ.pop(name, None)
from vllm.dca_hooks import register

hooked = EngineArgs.create_engine_config
register()
results = {"hooked once": hooked is EngineArgs.create_engine_config}
for number, (name, case) in enumerate(json.load(sys.stdin).items()):
    answer = ROOT / f"answer{number}.json"
    child = os.fork()
    if child == 0:
        answer.write_text(json.dumps(configure(number, case)))
        os._exit(0)
    os.waitpid(child, 0)
    results[name] = json.loads(answer.read_text())
(ROOT / "results.json").write_text(json.dumps(results))
"""
)


def run_worker(python: Path, source: str, home: Path, *args: str, given: str = "") -> None:
    env = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # The folder that the tests run in must not hide the installed vllm.
        "PYTHONSAFEPATH": "1",
    }
    done = subprocess.run(
        [str(python), "-c", source, *args],
        input=given,
        env=env,
        cwd=home,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:]


def configured(python: Path, cases: Mapping[str, Case]) -> dict[str, Any]:
    """Configure every case in one go: importing vLLM costs more than all the cases together."""
    with tempfile.TemporaryDirectory() as folder:
        given = json.dumps({name: asdict(case) for name, case in cases.items()})
        run_worker(python, CONFIG_WORKER, Path(folder), folder, given=given)
        results: dict[str, Any] = json.loads((Path(folder) / "results.json").read_text())
    return results


def messages(outcome: dict[str, Any]) -> dict[str, list[str]]:
    """Return the guards' own log lines by level."""
    found: dict[str, list[str]] = {}
    for level, text in outcome["logged"]:
        if "(DCA-" in text:
            found.setdefault(level, []).append(text)
    return found


# --- functions of the attention backend, run by themselves -----------------------------------------------------

# Takes functions and expressions out of the attention backend, which itself imports on a GPU only, and runs them
# with small tensors.
BACKEND_WORKER = """
import ast, importlib.util, json, sys, types
from pathlib import Path
from typing import List, Optional, Tuple

import torch

root = Path(sys.argv[1]) if sys.argv[1] else Path(importlib.util.find_spec("vllm").origin).parents[1]
tree = ast.parse((root / "vllm/attention/backends/dual_chunk_flash_attn.py").read_text())


def compiled(body, kind):
    return compile(ast.fix_missing_locations(kind), "backend", body)


def method_of(name):
    [method] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    return method


def prefill(sparse, factor):
    name = "_dual_chunk_flash_attn_prefill"
    method = method_of(name)
    takes = [argument.arg for argument in method_of(name + "_func").args.args]
    scope = {"torch": torch, "List": List, "Optional": Optional, "Tuple": Tuple}
    exec(compiled("exec", ast.Module([method], [])), scope)
    factors = []

    def callee(q, *args, **kwargs):
        factors.append(args[takes.index("scaling_factor") - 2])  # after itself and q
        return torch.zeros_like(q)

    layer = types.SimpleNamespace(
        sparse_attention_enabled=sparse, sparse_attention_threshold=0,
        sparse_attention_config=[["vertical_and_slash", 30, 100, 0.5]] * 2,
        _dual_chunk_flash_attn_prefill_func=callee,
    )
    starts = torch.tensor([0, 3, 5])
    queries = [torch.zeros(5, 2, 4)] * 5
    cache = torch.zeros(1, 16, 1, 4)
    try:
        scope[name](
            layer, *queries, cache, cache, starts, starts, [3, 2], factor, 0.5,
            block_table=torch.zeros(2, 1, dtype=torch.int), chunk_size=32, local_size=16,
        )
    except (AttributeError, RuntimeError, TypeError) as error:
        return str(error)
    return factors


def succ_lengths():
    [value] = [
        node.value for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "seq_lens_succ"
    ]
    scope = {"chunk_num_curr": torch.tensor([0, 1, 2, 5]), "chunk_len": 16}
    return eval(compiled("eval", ast.Expression(value)), scope).tolist()


given = torch.tensor([1.0, 1.5])
print(json.dumps({
    "none": [prefill(sparse, None) for sparse in (False, True)],
    "given": [prefill(sparse, given) for sparse in (False, True)],
    "succ": succ_lengths(),
}), file=open(sys.argv[2], "w"))
"""


def backend_answers(python: Path, home: Path, root: Path | None = None) -> dict[str, Any]:
    answer = home / "answer.json"
    run_worker(python, BACKEND_WORKER, home, "" if root is None else str(root), str(answer))
    answers: dict[str, Any] = json.loads(answer.read_text())
    return answers


def installed_root(python: Path, home: Path) -> Path:
    source = (
        "import importlib.util, pathlib, sys\n"
        "root = pathlib.Path(importlib.util.find_spec('vllm').origin).parents[1]\n"
        "pathlib.Path(sys.argv[1]).write_text(str(root))\n"
    )
    run_worker(python, source, home, str(home / "root"))
    return Path((home / "root").read_text())
