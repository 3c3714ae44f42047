"""The patches of recipe vllm-0.10.2: the checks of dca_guards by themselves, then inside an installed wheel."""

from __future__ import annotations

import ast
import functools
import importlib.util
import json
import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

PATCHES = Path(__file__).parents[2] / "patches" / "vllm-0.10.2"
GUARDS_FILE = PATCHES / "added" / "vllm" / "dca_guards.py"
BACKEND_FILE = Path("vllm/attention/backends/dual_chunk_flash_attn.py")


def load_guards() -> Any:
    spec = importlib.util.spec_from_file_location("dca_guards", GUARDS_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["dca_guards"] = module  # pickle looks classes up by their module's name
    spec.loader.exec_module(module)
    return module


guards = load_guards()

QWEN_1M = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
CHUNKS = guards.read_chunks(QWEN_1M)


def table_for(layers: int, heads: int) -> list[dict[str, list[Any]]]:
    return [{str(head): ["vertical_and_slash", 1000, 6096, 0.5] for head in range(heads)} for _ in range(layers)]


def with_entry(entry: Any) -> list[dict[str, Any]]:
    table: list[dict[str, Any]] = [dict(row) for row in table_for(2, 4)]
    table[1]["3"] = entry
    return table


# --- the checks by themselves --------------------------------------------------------------------------------


def sparse(config: dict[str, Any]) -> str | None:
    notice: str | None = guards.check_sparse_table(config, 2, 4, "/models/m")
    return notice


# One row per refusal: its code, words that its message must have, and the call.
REFUSALS: list[tuple[str, list[str], Callable[[], object]]] = [
    (
        "DCA-811",
        ["VLLM_ATTENTION_BACKEND=FLASHINFER", "DUAL_CHUNK_FLASH_ATTN"],
        lambda: guards.choose_backend({"VLLM_ATTENTION_BACKEND": "FLASHINFER"}),
    ),
    ("DCA-811", ["VLLM_USE_V1=1", "V0"], lambda: guards.choose_backend({"VLLM_USE_V1": "1"})),
    ("DCA-812", ["CUDA graphs", "--enforce-eager"], lambda: guards.check_eager(False)),
    ("DCA-813", ["fp8_e5m2", "--kv-cache-dtype"], lambda: guards.check_kv_cache_dtype("fp8_e5m2")),
    ("DCA-813", ["fp8", "--quantization fp8"], lambda: guards.check_kv_cache_dtype("fp8")),
    (
        "DCA-814",
        ["1010000", "262144", "--enable-prefix-caching"],
        lambda: guards.check_prefix_caching(True, 1010000, 262144),
    ),
    (
        "DCA-816",
        ["sparse_attention_config.json", "/models/m"],
        lambda: sparse({"sparse_attention_enabled": True}),
    ),
    ("DCA-816", ["sparse_attention_config.json"], lambda: sparse({"sparse_attention_config": []})),
    (
        "DCA-817",
        ["has 1 layers", "2 layers of 4 query heads"],
        lambda: sparse({"sparse_attention_config": table_for(1, 4)}),
    ),
    (
        "DCA-817",
        ["3 of these heads in layer 0", "2 layers of 4 query heads"],
        lambda: sparse({"sparse_attention_config": table_for(2, 3)}),
    ),
    # Switched off, but vLLM indexes a table that is there all the same.
    (
        "DCA-817",
        ["has 1 layers"],
        lambda: sparse({"sparse_attention_config": table_for(1, 4), "sparse_attention_enabled": False}),
    ),
    ("DCA-817", ["not a list"], lambda: sparse({"sparse_attention_config": {"0": {}}})),
    ("DCA-817", ["layer 1"], lambda: sparse({"sparse_attention_config": [*table_for(1, 4), "x"]})),
    ("DCA-817", ["not a number"], lambda: sparse({"sparse_attention_config": [{"a": []}, {}]})),
    (
        "DCA-818",
        ["layer 1, head 3", "block_sparse", "vertical_and_slash"],
        lambda: sparse({"sparse_attention_config": with_entry(["block_sparse", 1, 1, 0.0])}),
    ),
    (
        "DCA-818",
        ["layer 1, head 3"],
        lambda: sparse({"sparse_attention_config": with_entry(["vertical_and_slash", 30])}),
    ),
    (
        "DCA-818",
        ["layer 1, head 3"],
        lambda: sparse({"sparse_attention_config": with_entry(["vertical_and_slash", 30, 0, 1.0])}),
    ),
    ("DCA-819", ["253952", "block size, 48"], lambda: guards.check_block_size(CHUNKS, 48)),
    ("DCA-819", ["chunk_size=None", "local_size=None"], lambda: guards.read_chunks({})),
    ("DCA-819", ["chunk_size=8", "local_size=8"], lambda: guards.read_chunks({"chunk_size": 8, "local_size": 8})),
    (
        "DCA-819",
        ["original_max_position_embeddings=None"],
        lambda: guards.read_chunks({**QWEN_1M, "original_max_position_embeddings": None}),
    ),
    ("DCA-819", ["not an object"], lambda: guards.read_chunks([8, 4])),
]


def assert_is_a_whole_message(text: str, code: str) -> None:
    assert text.endswith(f". ({code})")
    assert code in guards.CODES
    what, why, *todo = text.split(". ")
    assert all([what, why, *todo])
    assert len(todo) >= 2  # what to do, and the code
    assert "\n" not in text


@pytest.mark.parametrize(("code", "words", "call"), REFUSALS)
def test_a_wrong_choice_is_refused_with_its_code(code: str, words: list[str], call: Callable[[], object]) -> None:
    with pytest.raises(guards.GuardError) as refused:
        call()
    assert refused.value.code == code
    assert_is_a_whole_message(str(refused.value), code)
    for word in words:
        assert word in str(refused.value)


def test_every_code_is_used_by_a_message() -> None:
    refused = {code for code, _, _ in REFUSALS}
    assert set(guards.CODES) == refused | {"DCA-815"}
    assert_is_a_whole_message(guards.length_notice(1048576, 1010000), "DCA-815")
    assert list(guards.CODES) == [f"DCA-{number}" for number in range(811, 820)]


def test_a_refusal_is_a_value_error_that_survives_pickling() -> None:
    error = guards.GuardError("it broke. (DCA-812)", "DCA-812")
    copy = pickle.loads(pickle.dumps(error))
    assert issubclass(guards.GuardError, ValueError)
    assert (str(copy), copy.code) == (str(error), "DCA-812")


@pytest.mark.parametrize(
    ("environ", "chosen"),
    [
        ({}, {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}),
        ({"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN"}, {"VLLM_USE_V1": "0"}),
        ({"VLLM_USE_V1": "0"}, {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN"}),
        ({"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}, {}),
        (
            {"VLLM_ATTENTION_BACKEND": ""},
            {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"},
        ),
    ],
)
def test_only_what_the_user_left_open_is_chosen(environ: dict[str, str], chosen: dict[str, str]) -> None:
    assert guards.choose_backend(environ) == chosen


def test_the_notice_names_what_was_chosen() -> None:
    notice = guards.backend_notice(guards.choose_backend({}))
    assert_is_a_whole_message(notice, "DCA-811")
    assert "VLLM_ATTENTION_BACKEND=DUAL_CHUNK_FLASH_ATTN VLLM_USE_V1=0" in notice


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_a_kv_cache_of_16_bits_is_accepted(dtype: str) -> None:
    guards.check_kv_cache_dtype(dtype)


@pytest.mark.parametrize(
    ("enabled", "length", "original", "setting"),
    [
        (True, 262144, 262144, True),  # keys are not scaled up to the original length
        (None, 262144, 262144, None),
        (None, 262145, 262144, False),
        (False, 1010000, 262144, False),
        (True, 1010000, 0, True),  # no original length, no scaling
    ],
)
def test_prefix_caching_is_left_alone_where_keys_are_not_scaled(
    enabled: bool | None, length: int, original: int, setting: bool | None
) -> None:
    assert guards.check_prefix_caching(enabled, length, original) is setting


@pytest.mark.parametrize("block_size", [1, 8, 16, 32, 64, 128])
def test_every_usual_block_size_divides_the_chunks_of_qwen(block_size: int) -> None:
    guards.check_block_size(CHUNKS, block_size)


def test_absent_original_length_means_no_scaling() -> None:
    assert guards.read_chunks({"chunk_size": 64, "local_size": 0}) == (64, 0, 0)


@pytest.mark.parametrize(
    "config",
    [
        {"sparse_attention_config": table_for(2, 4)},
        {"sparse_attention_config": table_for(3, 8)},  # more than the model needs
        {"sparse_attention_config": table_for(2, 4), "sparse_attention_enabled": True},
        # The type of an entry is read only when sparse attention is on.
        {"sparse_attention_config": with_entry(["other", 1, 1, 0.0]), "sparse_attention_enabled": False},
        {"sparse_attention_enabled": False},
    ],
)
def test_a_table_that_fits_is_accepted_in_silence(config: dict[str, Any]) -> None:
    assert sparse(config) is None


def test_dense_by_accident_is_a_warning() -> None:
    notice = sparse({})
    assert notice is not None
    assert_is_a_whole_message(notice, "DCA-816")
    assert "slow" in notice


# --- the hooks, around stand-ins for vLLM's objects ----------------------------------------------------------


def test_a_hook_is_put_on_once() -> None:
    class Owner:
        def method(self) -> int:
            return 1

    def plus_one(original: Callable[[Any], int], owner: Any) -> int:
        return original(owner) + 1

    guards._wrap(Owner, "method", plus_one)
    guards._wrap(Owner, "method", plus_one)
    assert Owner().method() == 2
    assert Owner.method.__name__ == "method"


@pytest.mark.parametrize("hf_config", [SimpleNamespace(), SimpleNamespace(dual_chunk_attention_config=None)])
def test_a_model_without_dca_passes_every_hook_unchanged(
    hf_config: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    model_config = SimpleNamespace(hf_config=hf_config)
    vllm_config = SimpleNamespace(model_config=model_config, cache_config=None)
    args = SimpleNamespace()  # any access to an argument would be an AttributeError
    assert guards._verify_length(lambda _, length: length, model_config, 7) == 7
    assert guards._create_model_config(lambda _: model_config, args) is model_config
    assert guards._create_engine_config(lambda _: vllm_config, args) is vllm_config
    assert os.environ == {}


def test_the_guards_need_only_the_standard_library_of_python_3_9() -> None:
    tree = ast.parse(GUARDS_FILE.read_text(), feature_version=(3, 9))
    imported: set[str] = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(str(node.module).split(".")[0])
    assert "vllm" not in imported
    assert imported <= sys.stdlib_module_names


# --- the series ----------------------------------------------------------------------------------------------


def series() -> list[str]:
    return [line for line in (PATCHES / "series").read_text().splitlines() if not line.startswith("#")]


def test_the_series_lists_every_patch_in_order() -> None:
    assert series() == sorted(path.name for path in PATCHES.glob("*.patch"))


@pytest.mark.parametrize("name", series())
def test_a_patch_says_what_it_does_and_why(name: str) -> None:
    header, found, _ = (PATCHES / name).read_text().partition("\ndiff --git a/")
    assert found
    keys = [line.split(":")[0] for line in header.splitlines() if line and not line.startswith(" ")]
    assert keys == ["What", "Why", "Upstream", "Test"]


# --- inside an installed wheel: the engine's configuration ---------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One model folder, and the arguments and environment to configure an engine with."""

    args: dict[str, Any] = field(default_factory=dict)
    dca: dict[str, Any] | None = field(default_factory=lambda: dict(QWEN_1M))
    config: dict[str, Any] = field(default_factory=dict)
    table: list[dict[str, Any]] | None = None
    env: dict[str, str] = field(default_factory=dict)


EAGER = {"enforce_eager": True}
FITTING = table_for(2, 4)

# Each is expected to be refused, with this code and these words.
REFUSED: dict[str, tuple[Case, str, list[str]]] = {
    "another backend": (
        Case(EAGER, env={"VLLM_ATTENTION_BACKEND": "FLASH_ATTN"}),
        "DCA-811",
        ["VLLM_ATTENTION_BACKEND=FLASH_ATTN"],
    ),
    "the V1 engine": (Case(EAGER, env={"VLLM_USE_V1": "1"}), "DCA-811", ["VLLM_USE_V1=1"]),
    "CUDA graphs": (Case(), "DCA-812", ["--enforce-eager"]),
    "an FP8 KV cache": (Case({**EAGER, "kv_cache_dtype": "fp8"}), "DCA-813", ["fp8"]),
    "an FP8 E5M2 KV cache": (Case({**EAGER, "kv_cache_dtype": "fp8_e5m2"}), "DCA-813", ["fp8_e5m2"]),
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
    "too few heads in a table inside config.json": (
        Case(EAGER, {**QWEN_1M, "sparse_attention_config": table_for(2, 3)}),
        "DCA-817",
        ["3 of these heads"],
    ),
    "an entry of another type": (
        Case(EAGER, table=with_entry(["stream_llm", 100, 800, 0.5])),
        "DCA-818",
        ["stream_llm", "layer 1, head 3"],
    ),
    "a chunk that is not a multiple of the block": (
        Case(EAGER, {**QWEN_1M, "local_size": 8200}),
        "DCA-819",
        ["253944", "block size, 16"],
    ),
    "a block size that does not divide the chunk": (
        Case({**EAGER, "block_size": 32}, {**QWEN_1M, "local_size": 8208}),
        "DCA-819",
        ["253936", "block size, 32"],
    ),
    "no chunk size": (Case(EAGER, {"local_size": 8192}), "DCA-819", ["chunk_size=None"]),
}

ACCEPTED: dict[str, Case] = {
    "nothing set": Case(EAGER, table=FITTING),
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
}

WITHOUT_DCA: dict[str, Case] = {
    "plain": Case(dca=None),
    "plain, too long": Case({"max_model_len": 1048576}, dca=None),
    "plain, V0": Case({"enable_prefix_caching": True, "kv_cache_dtype": "fp8"}, dca=None, env={"VLLM_USE_V1": "0"}),
}

CASES = {**{name: case for name, (case, _, _) in REFUSED.items()}, **ACCEPTED, **WITHOUT_DCA}

# Runs in the wheel's environment. vLLM is imported once, on a simulated GPU; every case is then a process of its
# own, because configuring an engine sets variables and fills caches.
CONFIG_WORKER = """
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
from vllm.engine.arg_utils import EngineArgs

ROOT = Path(sys.argv[1])
BASE = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 256,
    "max_position_embeddings": 1010000, "rope_theta": 10000000.0, "torch_dtype": "bfloat16",
}
VARIABLES = ("VLLM_ATTENTION_BACKEND", "VLLM_USE_V1")


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
    logged = []
    handler = logging.Handler()
    handler.emit = lambda record: logged.append([record.levelname, record.getMessage()])
    logging.getLogger("vllm").addHandler(handler)
    result = {"error": None, "error_type": None, "logged": logged}
    try:
        made = EngineArgs(model=str(folder), skip_tokenizer_init=True, **case["args"]).create_engine_config()
    except Exception as error:
        result.update(error=str(error), error_type=type(error).__name__)
    else:
        result["config"] = {
            "max_model_len": made.model_config.max_model_len,
            "scheduled_len": made.scheduler_config.max_model_len,
            "seed": made.model_config.seed,
            "quantization": made.model_config.quantization,
            "prefix_caching": made.cache_config.enable_prefix_caching,
            "block_size": made.cache_config.block_size,
            "cache_dtype": made.cache_config.cache_dtype,
        }
    logging.getLogger("vllm").removeHandler(handler)
    result["environ"] = {name: os.environ.get(name) for name in VARIABLES}
    return result


# In this process, so that the others inherit what vLLM learns about the architecture, which takes seconds.
configure("first", {"args": {}, "dca": None, "config": {}, "table": None, "env": {}})
for name in VARIABLES:
    os.environ.pop(name, None)
from vllm.dca_guards import register

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


@functools.cache
def outcomes(python: Path) -> dict[str, Any]:
    """Configure every case in one go: importing vLLM costs more than all the cases together."""
    with tempfile.TemporaryDirectory() as folder:
        given = json.dumps({name: asdict(case) for name, case in CASES.items()})
        run_worker(python, CONFIG_WORKER, Path(folder), folder, given=given)
        results: dict[str, Any] = json.loads((Path(folder) / "results.json").read_text())
    return results


def accepted(python: Path, name: str) -> dict[str, Any]:
    outcome: dict[str, Any] = outcomes(python)[name]
    assert outcome["error"] is None
    return outcome


def messages(outcome: dict[str, Any]) -> dict[str, list[str]]:
    """Return the guards' own log lines by level."""
    found: dict[str, list[str]] = {}
    for level, text in outcome["logged"]:
        if "(DCA-" in text:
            found.setdefault(level, []).append(text)
    return found


@pytest.mark.slow
def test_the_wheel_loads_the_guards_once_through_its_entry_point(run_python: Path) -> None:
    assert outcomes(run_python)["hooked once"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_an_engine_is_not_configured_with(name: str, run_python: Path) -> None:
    _, code, words = REFUSED[name]
    outcome = outcomes(run_python)[name]
    assert outcome["error_type"] == "GuardError"
    assert_is_a_whole_message(outcome["error"], code)
    for word in words:
        assert word in outcome["error"]


@pytest.mark.slow
def test_the_backend_and_the_engine_are_chosen_for_the_user(run_python: Path) -> None:
    outcome = accepted(run_python, "nothing set")
    assert outcome["environ"] == {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}
    [line] = messages(outcome)["INFO"]
    assert_is_a_whole_message(line, "DCA-811")
    assert list(messages(outcome)) == ["INFO"]


@pytest.mark.slow
def test_what_is_chosen_gives_the_same_engine_as_setting_it(run_python: Path) -> None:
    by_user = accepted(run_python, "all set")
    assert by_user["config"] == accepted(run_python, "nothing set")["config"]
    assert messages(by_user) == {}
    assert by_user["config"]["seed"] is None
    assert by_user["config"]["prefix_caching"] is False
    assert by_user["config"]["max_model_len"] == 1010000


@pytest.mark.slow
def test_fp8_weights_stay_allowed(run_python: Path) -> None:
    config = accepted(run_python, "FP8 weights")["config"]
    assert (config["quantization"], config["cache_dtype"]) == ("fp8", "auto")


@pytest.mark.slow
def test_prefix_caching_stays_allowed_up_to_the_original_length(run_python: Path) -> None:
    assert accepted(run_python, "prefix caching")["config"]["prefix_caching"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", ["too long", "too long, overridden", "too long by rope_scaling"])
def test_the_length_is_capped_at_the_rotary_table(name: str, run_python: Path) -> None:
    outcome = accepted(run_python, name)
    assert outcome["config"]["max_model_len"] == 1010000
    assert outcome["config"]["scheduled_len"] == 1010000
    [line] = messages(outcome)["WARNING"]
    assert_is_a_whole_message(line, "DCA-815")
    assert "1048576" in line
    assert "1010000" in line


@pytest.mark.slow
def test_a_model_that_will_run_dense_is_warned_about(run_python: Path) -> None:
    [line] = messages(accepted(run_python, "dense"))["WARNING"]
    assert_is_a_whole_message(line, "DCA-816")
    assert "WARNING" not in messages(accepted(run_python, "dense on purpose"))


@pytest.mark.slow
def test_a_model_without_dca_is_configured_as_upstream_does(run_python: Path) -> None:
    plain = accepted(run_python, "plain")
    assert plain["environ"] == {"VLLM_ATTENTION_BACKEND": None, "VLLM_USE_V1": "1"}
    assert plain["config"]["prefix_caching"] is True
    assert plain["config"]["seed"] == 0
    too_long = outcomes(run_python)["plain, too long"]
    assert too_long["error_type"] == "ValidationError"
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in too_long["error"]
    old = accepted(run_python, "plain, V0")
    assert (old["config"]["prefix_caching"], old["config"]["cache_dtype"]) == (True, "fp8")
    for outcome in (plain, too_long, old):
        assert messages(outcome) == {}


# --- inside an installed wheel: the patched lines ------------------------------------------------------------

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


def prefill(sparse, factor):
    name = "_dual_chunk_flash_attn_prefill"
    [method] = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
    scope = {"torch": torch, "List": List, "Optional": Optional, "Tuple": Tuple}
    exec(compiled("exec", ast.Module([method], [])), scope)
    factors = []

    def callee(q, *args, **kwargs):
        factors.append(args[10])  # after the four other queries, k, v, the block table, the scale and two sizes
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
    except TypeError as error:
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


# The dense branch goes one head at a time (two heads, two sequences), the sparse branch takes all heads at once.
FACTORS_OF_ONE = [[1.0] * 4, [1.0] * 2]
GIVEN_FACTORS = [[1.0, 1.0, 1.5, 1.5], [1.0, 1.5]]


@pytest.mark.slow
def test_prefill_works_without_a_length_factor(run_python: Path, tmp_path: Path) -> None:
    answers = backend_answers(run_python, tmp_path)
    assert answers["none"] == FACTORS_OF_ONE
    assert answers["given"] == GIVEN_FACTORS


@pytest.mark.slow
def test_prefill_failed_before_the_patch(run_python: Path, tmp_path: Path) -> None:
    before = tmp_path / "before"
    copy = before / BACKEND_FILE
    copy.parent.mkdir(parents=True)
    copy.write_bytes((installed_root(run_python, tmp_path) / BACKEND_FILE).read_bytes())
    subprocess.run(
        ["git", "apply", "-R", "-p1", str(PATCHES / "0001-prefill-without-length-factor.patch")],
        cwd=before,
        env={"PATH": os.environ["PATH"], "GIT_CEILING_DIRECTORIES": str(tmp_path)},
        check=True,
    )
    answers = backend_answers(run_python, tmp_path, before)
    assert answers["none"] == ["'NoneType' object is not subscriptable"] * 2
    assert answers["given"] == GIVEN_FACTORS


@pytest.mark.slow
def test_decode_reads_one_whole_previous_chunk(run_python: Path, tmp_path: Path) -> None:
    assert backend_answers(run_python, tmp_path)["succ"] == [0, 16, 16, 16]
