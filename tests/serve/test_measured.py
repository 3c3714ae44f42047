"""What engines print of their memory, in the wording of each version, beside the plan and in later plans."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.cli.serve import _log
from dca.foundation import documents
from dca.foundation.errors import DcaError
from dca.serve import measured
from dca.serve.gpus import Gpus, parse
from dca.serve.measured import Corrections, Measured, read
from dca.serve.plan import ServePlan
from tests.serve.test_plan_command import run
from tests.support import ROOT
from tests.support.serving import MILLION

CONFIGS = json.loads((ROOT / "tests/cases/memory/configs.json").read_text("utf-8"))

V0_5 = """
INFO 06-21 10:42:11 llm_engine.py:161] Initializing an LLM engine (v0.5.0.post1) with config: model='meta-llama/M', \
dtype=torch.bfloat16, max_seq_len=8192, tensor_parallel_size=1, quantization=None, enforce_eager=True, \
kv_cache_dtype=auto
INFO 06-21 10:42:20 model_runner.py:160] Loading model weights took 14.9595 GB
INFO 06-21 10:42:22 gpu_executor.py:83] # GPU blocks: 27862, # CPU blocks: 2048
"""
V0_6 = """
INFO 11-04 10:11:12 llm_engine.py:237] Initializing an LLM engine (v0.6.3.post1) with config: model='Qwen/M', \
max_seq_len=32768, tensor_parallel_size=1, pipeline_parallel_size=1, quantization=None, kv_cache_dtype=fp8_e5m2
INFO 11-04 10:11:22 model_runner.py:1077] Loading model weights took 14.2487 GB
INFO 11-04 10:11:29 worker.py:232] Memory profiling results: total_gpu_memory=79.10GiB initial_memory_usage=15.03GiB \
peak_torch_memory=19.65GiB memory_usage_post_profile=15.10GiB non_torch_memory=0.62GiB kv_cache_size=50.92GiB \
gpu_memory_utilization=0.90
INFO 11-04 10:11:30 gpu_executor.py:122] # GPU blocks: 59600, # CPU blocks: 4681
INFO 11-04 10:11:30 gpu_executor.py:126] Maximum concurrency for 32768 tokens per request: 29.10x
"""
V0_7 = """
INFO 02-09 09:00:01 api_server.py:840] vLLM API server version 0.7.2
INFO 02-09 09:00:01 llm_engine.py:234] Initializing a V0 LLM engine (v0.7.2) with config: model='Qwen/M', \
max_seq_len=32768, tensor_parallel_size=2, pipeline_parallel_size=1, enforce_eager=False, enable_prefix_caching=False
(VllmWorkerProcess pid=90) INFO 02-09 09:00:20 worker.py:267] the current vLLM instance can use total_gpu_memory \
(79.10GiB) \
x gpu_memory_utilization (0.85) = 67.24GiB
(VllmWorkerProcess pid=90) INFO 02-09 09:00:20 worker.py:267] model weights take 30.58GiB; non_torch_memory takes \
1.91GiB; \
PyTorch activation peak memory takes 0.30GiB; the rest of the memory reserved for KV Cache is 34.44GiB.
INFO 02-09 09:00:20 worker.py:267] the current vLLM instance can use total_gpu_memory (79.11GiB) x \
gpu_memory_utilization (0.85) = 67.25GiB
INFO 02-09 09:00:20 worker.py:267] model weights take 30.58GiB; non_torch_memory takes 1.98GiB; \
PyTorch activation peak memory takes 2.85GiB; the rest of the memory reserved for KV Cache is 31.84GiB.
INFO 02-09 09:00:21 executor_base.py:110] # cuda blocks: 16301, # CPU blocks: 2048
INFO 02-09 09:00:40 model_runner.py:1562] Graph capturing finished in 18 secs, took 0.36 GiB
"""
V0_8 = """
\x1b[32mINFO\x1b[0m 04-01 10:57:31 [api_server.py:981] vLLM API server version 0.8.2
\x1b[32mINFO\x1b[0m 04-01 10:57:46 [core.py:53] Initializing a V1 LLM engine (v0.8.2) with config: model='Qwen/M', \
max_seq_len=40960, tensor_parallel_size=1, enforce_eager=False, kv_cache_dtype=auto, enable_prefix_caching=True\r
INFO 04-01 10:57:57 [gpu_model_runner.py:1186] Model loading took 15.2683 GB and 3.617503 seconds
INFO 04-01 10:58:14 [kv_cache_utils.py:537] GPU KV cache size: 136,080 tokens
INFO 04-01 10:58:14 [kv_cache_utils.py:540] Maximum concurrency for 40,960 tokens per request: 3.32x
INFO 04-01 10:58:37 [gpu_model_runner.py:1441] Graph capturing finished in 23 secs, took 0.52 GiB
"""
V0_11 = """
(APIServer pid=1) INFO 10-10 10:57:31 [api_server.py:1839] vLLM API server version 0.11.0
(APIServer pid=1) INFO 10-10 10:57:31 [utils.py:233] non-default args: {'model': 'Qwen/M', 'max_model_len': 32768, \
'gpu_memory_utilization': 0.92, 'max_num_seqs': 64, 'max_num_batched_tokens': 4096, 'block_size': 32}
(EngineCore_DP0 pid=9) INFO 10-10 10:57:46 [core.py:77] Initializing a V1 LLM engine (v0.11.0) with config: \
model='Qwen/M', \
max_seq_len=32768, tensor_parallel_size=2, pipeline_parallel_size=1, data_parallel_size=1, enforce_eager=False
(Worker_TP0 pid=11) INFO 10-10 10:57:57 [gpu_model_runner.py:2653] Model loading took 30.6 GiB and 3.61 seconds
(Worker_TP1 pid=12) INFO 10-10 10:57:57 [gpu_model_runner.py:2653] Model loading took 30.5 GiB and 3.60 seconds
(Worker_TP0 pid=11) INFO 10-10 10:58:13 [gpu_worker.py:298] Available KV cache memory: 38.41 GiB
(Worker_TP1 pid=12) INFO 10-10 10:58:13 [gpu_worker.py:298] Available KV cache memory: 38.35 GiB
(EngineCore_DP0 pid=9) INFO 10-10 10:58:14 [kv_cache_utils.py:1087] GPU KV cache size: 314,672 tokens
(EngineCore_DP0 pid=9) INFO 10-10 10:58:14 [kv_cache_utils.py:1087] GPU KV cache size: 314,208 tokens
(EngineCore_DP0 pid=9) INFO 10-10 10:58:14 [kv_cache_utils.py:1091] Maximum concurrency for 32,768 tokens per \
request: 9.58x
(Worker_TP0 pid=11) INFO 10-10 10:58:37 [gpu_worker.py:391] Free memory on device (78.62/79.19 GiB) on startup. \
Desired GPU \
memory utilization is (0.92, 72.85 GiB). Actual usage is 30.6 GiB for weight, 2.71 GiB for peak activation, 1.12 GiB \
for \
non-torch memory, and 0.71 GiB for CUDAGraph memory. Replace gpu_memory_utilization config with \
`--kv-cache-memory=40` to fit.
"""
V0_12 = """
INFO 12-10 10:57:46 [core.py:93] Initializing a V1 LLM engine (v0.12.0) with config: model='Qwen/M', \
max_seq_len=262144, \
tensor_parallel_size=1, pipeline_parallel_size=1, decode_context_parallel_size=1, enforce_eager=True
DEBUG 12-10 10:58:12 [gpu_worker.py:340] Initial free memory: 94.20 GiB; Requested memory: 0.90 (util), 85.17 GiB
INFO 12-10 10:58:12 [gpu_worker.py:345] Memory profiling takes 9.02 seconds. Total non KV cache memory: 24.61GiB; \
torch peak \
memory increase: 1.41GiB; non-torch forward increase memory: 0.11GiB; weights memory: 23.09GiB.
INFO 12-10 10:58:13 [gpu_worker.py:375] Available KV cache memory: 60.30 GiB
INFO 12-10 10:58:14 [kv_cache_utils.py:1291] GPU KV cache size: 1,204,864 tokens
INFO 12-10 10:58:14 [kv_cache_utils.py:1296] Maximum concurrency for 262,144 tokens per request: 17.21x
"""
V0_20 = """
(APIServer pid=1) INFO 06-10 10:57:30 [utils.py:299]        █     █     █▄   ▄█
(APIServer pid=1) INFO 06-10 10:57:30 [utils.py:299]  ▄▄ ▄█ █     █     █ ▀▄▀ █  version 0.21.0
(APIServer pid=1) INFO 06-10 10:57:30 [utils.py:299]   █▄█▀ █     █     █     █  model   Qwen/M
(EngineCore pid=9) INFO 06-10 10:57:46 [core.py:109] Initializing a V1 LLM engine with config: model='Qwen/M', \
max_seq_len=32768, tensor_parallel_size=1, enforce_eager=False
(EngineCore pid=9) INFO 06-10 10:57:50 [cuda.py:40] NCCL version 2.28.9
(EngineCore pid=9) INFO 06-10 10:57:57 [gpu_model_runner.py:4811] Model loading took 15.27 GiB memory and 3.61 seconds
(EngineCore pid=9) INFO 06-10 10:58:12 [gpu_worker.py:436] Estimated CUDA graph memory: 0.61 GiB total
(EngineCore pid=9) INFO 06-10 10:58:13 [gpu_worker.py:470] Available KV cache memory: 24.04 GiB
(EngineCore pid=9) INFO 06-10 10:58:14 [kv_cache_utils.py:1711] GPU KV cache size: 175,056 tokens, Maximum \
concurrency \
for 32,768 tokens per request: 5.34x
(EngineCore pid=9) INFO 06-10 10:58:37 [gpu_worker.py:617] CUDA graph pool memory: 0.52 GiB (actual), 0.61 GiB \
(estimated), \
difference: 0.09 GiB (17.3%).
(EngineCore pid=9) INFO 06-10 10:58:37 [gpu_worker.py:640] Actual usage: 16.52 GiB for consumed memory (weights + \
non-torch), \
1.31 GiB for peak activation.
"""


@pytest.mark.parametrize(
    ("log", "told"),
    [
        (
            V0_5,
            {"version": "0.5.0", "weights_gib": 14.9595, "blocks": 27862, "length": 8192, "tp": 1, "eager": True}
            | {"cache_dtype": "auto", "v1": None},
        ),
        (
            V0_6,
            {"version": "0.6.3", "card_gib": 79.10, "utilization": 0.9, "weights_gib": 14.2487, "outside_gib": 0.62}
            | {"peak_gib": 19.65 - 14.2487, "cache_gib": 50.92, "blocks": 59600, "concurrency": 29.1, "pp": 1}
            | {"length": 32768, "cache_dtype": "fp8_e5m2"},
        ),
        (
            V0_7,
            {"version": "0.7.2", "v1": False, "card_gib": 79.10, "utilization": 0.85, "weights_gib": 30.58, "tp": 2}
            | {"outside_gib": 1.98, "peak_gib": 2.85, "cache_gib": 31.84, "blocks": 16301, "graphs_gib": 0.36}
            | {"eager": False, "reused": False},
        ),
        (
            V0_8,
            {"version": "0.8.2", "v1": True, "weights_gib": 15.2683, "tokens": 136080, "concurrency": 3.32}
            | {"length": 40960, "graphs_gib": 0.52, "reused": True, "cache_gib": None},
        ),
        (
            V0_11,
            {"version": "0.11.0", "v1": True, "card_gib": 79.19, "utilization": 0.92, "weights_gib": 30.6, "tp": 2}
            | {"peak_gib": 2.71, "outside_gib": 1.12, "graphs_gib": 0.71, "cache_gib": 38.35, "tokens": 314208}
            | {"sequences": 64, "batched": 4096, "block_size": 32, "length": 32768, "concurrency": 9.58},
        ),
        (
            V0_12,
            {"version": "0.12.0", "weights_gib": 23.09, "peak_gib": 1.41, "outside_gib": 0.11, "cache_gib": 60.3}
            | {"dcp": 1, "eager": True, "tokens": 1204864, "length": 262144},
        ),
        (
            V0_20,
            {"version": "0.21.0", "v1": True, "weights_gib": 15.27, "outside_gib": 16.52 - 15.27, "peak_gib": 1.31}
            | {"graphs_gib": 0.52, "cache_gib": 24.04, "tokens": 175056, "concurrency": 5.34, "length": 32768},
        ),
    ],
    ids=["0.5", "0.6", "0.7", "0.8", "0.11", "0.12", "0.21"],
)
def test_the_lines_of_each_version_are_read(log: str, told: dict[str, object]) -> None:
    found = read(log).model_dump()
    for name, value in told.items():
        assert found[name] == (pytest.approx(value) if isinstance(value, float) else value), name


def test_of_several_starts_in_a_log_the_last_with_figures_counts() -> None:
    found = read(V0_8 + V0_11 + V0_7.split("(VllmWorkerProcess")[0])
    assert (found.version, found.weights_gib, found.tokens) == ("0.7.2", 30.6, 314208) or found.version == "0.11.0"
    assert read(V0_11 + V0_8).weights_gib == 15.2683
    assert read(V0_11 + V0_8).cache_gib is None


@pytest.mark.parametrize(
    "log", ["", "Traceback (most recent call last)", "Initializing a V1 LLM engine (v0.9.2)", "\0" * 99]
)
def test_a_log_without_figures_is_refused(log: str) -> None:
    with pytest.raises(DcaError) as caught:
        read(log)
    assert caught.value.code == "DCA-165"


# --- beside the plan -------------------------------------------------------------------------------------------------


def served(tmp_path: Path, name: str) -> Path:
    model = tmp_path / "model"
    model.mkdir(exist_ok=True)
    (model / "config.json").write_text(json.dumps(CONFIGS[name]))
    return model


def log_of(tmp_path: Path, cache_gib: float = 18.69, version: str = "0.9.2") -> Path:
    log = tmp_path / "server.log"
    log.write_text(
        f"INFO [core.py:69] Initializing a V1 LLM engine (v{version}) with config: model='M', max_seq_len=40960, "
        "tensor_parallel_size=1, pipeline_parallel_size=1, enforce_eager=False, kv_cache_dtype=auto\n"
        "INFO [gpu_model_runner.py:1801] Model loading took 15.2683 GiB and 3.617503 seconds\n"
        f"INFO [gpu_worker.py:232] Available KV cache memory: {cache_gib} GiB\n"
        f"INFO [kv_cache_utils.py:716] GPU KV cache size: {int(cache_gib * 2**30) // 147456 // 16 * 16:,} tokens\n"
    )
    return log


def test_each_part_stands_beside_what_was_printed_and_the_error(tmp_path: Path) -> None:
    model, log, cache = served(tmp_path, "Qwen3-8B"), log_of(tmp_path), tmp_path / "cache"
    words = ("plan", model, "--gpus", "1xA100-40", "--measured", log, "--cache-dir", cache)
    made = ServePlan.model_validate_json(run(*words, "--json").stdout)
    assert made.measured is not None
    assert made.version == "0.9.2"
    assert made.recipe_reason == "the log's version, 0.9.2."
    parts = {part.name: part for part in made.measured.parts}
    assert list(parts) == ["weights", "KV cache", "tokens in the KV cache"]
    for part in parts.values():
        assert part.error == pytest.approx(part.planned / part.printed - 1)
        assert part.error is not None
        assert abs(part.error) < 0.04, part
    told = run(*words, "--report", tmp_path / "report.html").stdout
    row = next(line for line in told.splitlines() if line.strip().startswith("weights  "))
    assert row.split()[1:] == ["15.27", "15.27", "+0.0%"]
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "What the engine printed" in page
    assert f"{parts['KV cache'].planned:.2f}" in page
    assert "18.69" in page


def test_settings_of_the_log_are_planned_unless_others_are_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "server.log"
    log.write_text(V0_11)
    words = ("plan", served(tmp_path, "Qwen2.5-32B"), "--measured", log, "--cache-dir", tmp_path, "--json")
    made = ServePlan.model_validate_json(run(*words).stdout)
    assert made.measured is not None
    settings = made.measured.settings
    assert (settings.layout.tp, settings.batched, settings.sequences, settings.utilization) == (2, 4096, 64, 0.92)
    assert (made.measured.gpu, settings.length, made.version) == (79.19, 32768, "0.11.0")
    asked = ServePlan.model_validate_json(run(*words, "--max-num-seqs", "8", "--max-model-len", "1024").stdout)
    assert asked.measured is not None
    assert (asked.measured.settings.sequences, asked.planned.settings.length) == (8, 1024)


@pytest.mark.slow
def test_later_plans_for_such_gpus_and_versions_are_corrected(tmp_path: Path) -> None:
    model, cache = served(tmp_path, "Qwen3-8B"), tmp_path / "cache"
    plan = ("plan", model, "--cache-dir", cache, "--json", "--gpus")

    def tokens(*words: str) -> int:
        return ServePlan.model_validate_json(run(*plan, *words).stdout).documented.cache_tokens

    before = tokens("1xA100-40", "--engine-version", "0.9.1")
    others = tokens("1xA100-80", "--engine-version", "0.9.1"), tokens("1xA100-40", "--engine-version", "0.11.0")
    measured_log = log_of(tmp_path, cache_gib=16.0)
    made = ServePlan.model_validate_json(run(*plan, "1xA100-40", "--measured", str(measured_log)).stdout)
    assert made.measured is not None
    assert made.measured.beside_gib is not None
    assert made.measured.beside_gib > 2
    after = tokens("1xA100-40", "--engine-version", "0.9.1")
    assert before - after == pytest.approx(made.measured.beside_gib * 2**30 / 147456, abs=32)
    assert (
        tokens("1xA100-80", "--engine-version", "0.9.1"),
        tokens("1xA100-40", "--engine-version", "0.11.0"),
    ) == others
    told = run("plan", model, "--cache-dir", cache, "--gpus", "1xA100-40", "--engine-version", "0.9.1")
    assert "more beside weights" in " ".join(told.stdout.split())
    assert run(*plan, "1xA100-40", "--measured", str(measured_log)).returncode == 0
    kept = documents.read(Corrections, cache / "serving" / "corrections.json")
    assert [len(one.gib) for one in kept.corrections] == [1]


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress], ids=["gzip", "bzip2", "xz"])
def test_a_compressed_log_is_read_whole_or_refused(
    pack: Callable[[bytes], bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measured, "MOST_BYTES", 1 << 14)
    log = tmp_path / "server.log.1"
    log.write_bytes(pack(V0_12.encode()))
    assert read(_log(log)).tokens == 1_204_864
    # Of a long one, the beginning and the end.
    noise = b"INFO nothing\n" * (measured.MOST_BYTES)
    log.write_bytes(pack(V0_11.split("(Worker_TP0")[0].encode() + noise + V0_12.encode()))
    text = _log(log)
    assert measured.MOST_BYTES // 2 < len(text) <= measured.MOST_BYTES
    assert read(text).tokens == 1_204_864
    log.write_bytes(pack(V0_12.encode())[:-9])
    with pytest.raises(DcaError, match="damaged or ends early"):
        _log(log)


def test_a_log_that_is_missing_or_says_nothing_is_refused(tmp_path: Path) -> None:
    model, empty = served(tmp_path, "Qwen3-8B"), tmp_path / "empty.log"
    empty.write_bytes(b"")
    for log, code in ((tmp_path / "none.log", "DCA-204"), (tmp_path, "DCA-201"), (empty, "DCA-165")):
        done = run("plan", model, "--gpus", "1x80", "--measured", log, "--cache-dir", tmp_path)
        assert done.stderr.startswith(f"{code}: "), done.stderr
        assert done.returncode == (1 if code == "DCA-165" else 2)


def test_dual_chunk_attention_is_compared_and_not_corrected(tmp_path: Path) -> None:
    words = ("plan", "Qwen2.5-7B-Instruct-1M", "--gpus", "4x80", "--cache-dir", tmp_path, "--json")
    log = tmp_path / "server.log"
    log.write_text("Model loading took 3.9 GiB and 3.6 seconds\nAvailable KV cache memory: 40 GiB\n")
    made = ServePlan.model_validate_json(run(*words, "--measured", log).stdout)
    assert made.measured is not None
    assert made.measured.beside_gib is None
    assert made.planned.settings.length == MILLION
    assert not (tmp_path / "serving").exists()


def test_a_log_of_another_model_teaches_nothing(tmp_path: Path) -> None:
    words = ("plan", served(tmp_path, "Llama-3-8B"), "--gpus", "1xA100-40", "--cache-dir", tmp_path, "--measured")
    log = log_of(tmp_path)
    log.write_text(log.read_text().replace("took 15.2683", "took 5.2683"))
    told = run(*words, log)
    assert "The weights are those of another model" in told.stdout, told.stderr
    assert not (tmp_path / "serving").exists()


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("1xA100-40", "4xA100-40", True),
        ("1x39.4", "1xA100-40", True),
        ("1xA100-80", "1x79.1", True),
        ("1xA100-80", "1xH100-80", False),
        ("1x24", "1x22", False),
    ],
)
def test_gpus_are_alike_by_name_and_by_memory(first: str, second: str, same: bool) -> None:
    known = Corrections().learned(cards(first), "0.9.2", 1.0).learned(cards(first), "0.9.2", 1.5)
    found = known.of(cards(second), "v0.9.10")
    assert (found is not None) is same
    assert found is None or found.most == 1.5
    assert known.of(cards(second), "0.10.0") is None


def cards(text: str) -> Gpus:
    return parse(text, 1)


def test_a_correction_remembers_only_the_newest_logs() -> None:
    known = Corrections()
    for number in range(measured.MOST_VALUES + 5):
        known = known.learned(cards("1x80"), "0.9.2", float(number))
    assert known.corrections[0].gib == tuple(float(number) for number in range(5, measured.MOST_VALUES + 5))


def test_nothing_left_for_the_cache_has_no_error() -> None:
    found = Measured(cache_gib=-0.5)
    assert measured.Part(name="KV cache", planned=1.0, printed=found.cache_gib or 0.0).error is None
