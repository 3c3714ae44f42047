"""The checks that all recipes' guards share, by themselves."""

from __future__ import annotations

import ast
import importlib
import json
import os
import pickle
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from tests.support import ROOT
from tests.support.guards import GUARDS_FILE, QWEN_1M, assert_is_a_whole_message, guards, table_for, with_entry

CHUNKS = guards.read_chunks(QWEN_1M)


def sparse(config: dict[str, Any]) -> str | None:
    notice: str | None = guards.check_sparse_table(config, 2, 4, "/models/m")
    return notice


def lists(heads: int, gpus: int, tokens: int, widest: tuple[int, int] = (22032, 24528)) -> None:
    """The check of a table whose widest entry is, as in the table of Qwen2.5-7B-Instruct-1M, this wide."""
    table = table_for(2, heads)
    table[1]["0"] = ["vertical_and_slash", *widest, 0.5]
    guards.check_sparse_lists({"sparse_attention_config": table}, 2, heads, gpus, tokens, CHUNKS.chunk_len)


def slashes(number: float, longest: int = 253953, chunk: int = 253952, **more: bool) -> None:
    """The check of a table whose last head has so many slash lines."""
    table = with_entry(["vertical_and_slash", 1000, number, 1.0])
    guards.check_lines({"sparse_attention_config": table, **more}, 2, 4, 1, longest, chunk)


def verticals(numbers: list[float], gpus: int, longest: int = 253953) -> None:
    """The check of a table whose four heads have so many vertical lines in the last layer."""
    table = table_for(2, 4)
    table[1] = {str(head): ["vertical_and_slash", number, 800, 1.0] for head, number in enumerate(numbers)}
    guards.check_lines({"sparse_attention_config": table}, 2, 4, gpus, longest, CHUNKS.chunk_len)


RECORD = {
    "serves": {"head_dims": [128], "dtypes": ["bfloat16"]},
    "left_out": {
        "command": "dca wheel --recipe r",
        "head_dims": {"64": "--with hdim64", "96": "--profile full", "256": "--profile full"},
        "dtypes": {"float16": "--with fp16"},
    },
}
KERNELS = guards.read_kernels(RECORD)


# One row per refusal: its code, words that its message must have, and the call.
REFUSALS: list[tuple[str, list[str], Callable[[], object]]] = [
    (
        "DCA-811",
        ["VLLM_ATTENTION_BACKEND=FLASHINFER", "DUAL_CHUNK_FLASH_ATTN"],
        lambda: guards.choose_backend({"VLLM_ATTENTION_BACKEND": "FLASHINFER"}),
    ),
    ("DCA-811", ["VLLM_USE_V1=1", "V0"], lambda: guards.choose_backend({"VLLM_USE_V1": "1"})),
    (
        "DCA-811",
        ["VLLM_ATTENTION_BACKEND=DUAL_CHUNK_FLASH_ATTN", "no dual_chunk_attention_config", "process of its own"],
        lambda: guards.check_backend_without_dca({"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN"}),
    ),
    ("DCA-813", ["fp8_e5m2", "--kv-cache-dtype"], lambda: guards.check_kv_cache_dtype("fp8_e5m2")),
    ("DCA-813", ["fp8", "--quantization fp8"], lambda: guards.check_kv_cache_dtype("fp8")),
    (
        "DCA-814",
        ["1010000", "262144", "--enable-prefix-caching"],
        lambda: guards.check_prefix_caching(True, 1010000, 262144),
    ),
    (
        "DCA-814",
        ["--kv-transfer-config", "LMCacheConnector", "262145", "--max-model-len 262144"],
        lambda: guards.check_transfer("LMCacheConnector", 262145, 262144),
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
    (
        "DCA-818",
        ["layer 1, head 3 has 99 slash lines", "at least 100", "253952 tokens", "--max-model-len 253952"],
        lambda: slashes(99),
    ),
    # torch takes the whole number of a size.
    ("DCA-818", ["layer 1, head 3 has 99.5 slash lines"], lambda: slashes(99.5)),
    (
        "DCA-818",
        ["heads 0 to 3 of layer 1", "at most 4 vertical", "needs 5", "--max-model-len 253952"],
        lambda: verticals([1, 4, 3, 2], 1),
    ),
    ("DCA-818", ["heads 2 to 3 of layer 1", "at most 4 vertical"], lambda: verticals([5, 1, 4, 4], 2)),
    ("DCA-819", ["96 tokens", "at least 100", "--max-model-len 96"], lambda: slashes(800, longest=97, chunk=96)),
    ("DCA-819", ["253952", "block size, 48"], lambda: guards.check_block_size(CHUNKS, 48)),
    ("DCA-819", ["chunk_size=None", "local_size=None"], lambda: guards.read_chunks({})),
    ("DCA-819", ["chunk_size=8", "local_size=8"], lambda: guards.read_chunks({"chunk_size": 8, "local_size": 8})),
    (
        "DCA-819",
        ["original_max_position_embeddings=None"],
        lambda: guards.read_chunks({**QWEN_1M, "original_max_position_embeddings": None}),
    ),
    ("DCA-819", ["not an object"], lambda: guards.read_chunks([8, 4])),
    # Divides the chunk, and is refused by the kernel.
    ("DCA-819", ["block size is 8", "multiple of 16"], lambda: guards.check_block_size(CHUNKS, 8)),
    (
        "DCA-820",
        ["max_model_len=253953", "253952", "--enable-chunked-prefill"],
        lambda: guards.check_chunked_prefill(False, 253953, 253952),
    ),
    ("DCA-821", ["--num-scheduler-steps 8", "dual chunk"], lambda: guards.check_steps(8, True, True)),
    ("DCA-821", ["--num-scheduler-steps 2", "advance_step_flashattn"], lambda: guards.check_steps(2, False, False)),
    (
        "DCA-821",
        ["/models/draft", "attention backend", "[ngram]"],
        lambda: guards.check_draft("/models/draft", "qwen2", True, False, True),
    ),
    (
        "DCA-821",
        ["/models/draft", "advance_step_flashattn", "--profile full"],
        lambda: guards.check_draft("/models/draft", "qwen2", False, False, False),
    ),
    (
        "DCA-822",
        ["max_num_batched_tokens=253952", "28 heads", "24528 entries", "--max-num-batched-tokens 200064"],
        lambda: lists(28, 1, 253952),
    ),
    (
        "DCA-823",
        ["no attention kernels for float16", "--dtype bfloat16", "built with: dca wheel --recipe r --with fp16. "],
        lambda: guards.check_kernels(KERNELS, "float16", 128, ""),
    ),
    (
        "DCA-823",
        ["no attention kernels for head dimension 64. ", "with head dimension 128 only", "--recipe r --with hdim64. "],
        lambda: guards.check_kernels(KERNELS, "bfloat16", 64, "FLASH_ATTN"),
    ),
    (
        "DCA-823",
        ["head dimension 64 in float16", "--with fp16 --with hdim64"],
        lambda: guards.check_kernels(KERNELS, "float16", 64, guards.BACKEND),
    ),
    # A build of everything needs no group; the kernel for 256 serves 224.
    (
        "DCA-823",
        ["head dimension 224", "--recipe r --profile full. "],
        lambda: guards.check_kernels(KERNELS, "float16", 224, ""),
    ),
    (
        "DCA-823",
        ["sparse attention table and head dimension 64. ", "head dimension 128 only", "sparse_attention_enabled"],
        lambda: guards.check_sparse_heads({"sparse_attention_config": table_for(1, 1)}, 64, (128,)),
    ),
    (
        "DCA-823",
        ["head dimension 256. ", "128 and 192 only"],
        lambda: guards.check_sparse_heads(
            {"sparse_attention_config": table_for(1, 1), "sparse_attention_enabled": True}, 256, (128, 192)
        ),
    ),
    (
        "DCA-823",
        ["flash_attn_varlen_func was called in float16", "for float16. ", "--with fp16. "],
        lambda: guards.check_call(KERNELS, "flash_attn_varlen_func", "float16", 120),
    ),
    ("DCA-825", ["response_format", "0.9.2"], guards.refuse_structure),
]


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
    notices = {
        "DCA-812": guards.eager_notice(),
        "DCA-815": guards.length_notice(1048576, 1010000),
        "DCA-824": guards.plugins_notice({"VLLM_PLUGINS": "lora"}),
    }
    assert set(guards.CODES) == refused | set(notices)
    for code, notice in notices.items():
        assert_is_a_whole_message(notice, code)
    assert list(guards.CODES) == [f"DCA-{number}" for number in range(811, 826)]


@pytest.mark.parametrize("enforced", [False, True])
def test_only_a_request_that_the_engine_would_ignore_is_refused(
    monkeypatch: pytest.MonkeyPatch, enforced: bool
) -> None:
    @dataclass
    class Params:
        json: str

        def __post_init__(self) -> None:
            pass

    monkeypatch.setattr(guards.importlib.util, "find_spec", lambda name: object() if enforced else None)
    guards.guard_structure(Params)
    guards.guard_structure(Params)
    if not enforced:
        with pytest.raises(ValueError, match="DCA-825"):
            Params("{}")
    else:
        assert Params("{}").json == "{}"


def test_the_documentation_has_a_row_for_each_code() -> None:
    text = (ROOT / "docs" / "guards.md").read_text()
    overview, *sections = [
        re.findall(r"^\| (DCA-\d+)\b", part, re.MULTILINE) for part in re.split(r"^## ", text, flags=re.MULTILINE)
    ]
    assert overview == list(guards.CODES)
    for rows in sections:
        assert len(set(rows)) == len(rows)
        assert set(rows) <= set(guards.CODES)


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


def test_a_head_always_keeps_a_slash_line_in_its_chunk() -> None:
    slashes(100)
    # Prompts of one chunk, and attention without the table.
    slashes(1, longest=253952)
    slashes(1, sparse_attention_enabled=False)
    slashes(800, longest=113, chunk=112)
    slashes(1, longest=96, chunk=96)
    slashes(1, chunk=96, sparse_attention_enabled=False)
    guards.check_lines({}, 2, 4, 1, 1010000, 253952)


def test_a_gpu_with_room_for_five_keys_needs_them_for_one_head_alone() -> None:
    verticals([1, 5, 1, 1], 1)
    verticals([1, 5, 30, 1], 2)
    verticals([1, 1, 1, 1], 4, longest=253952)


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


@pytest.mark.parametrize(
    ("connector", "length", "original"),
    [(None, 1010000, 262144), ("LMCacheConnector", 262144, 262144), ("LMCacheConnector", 1010000, 0)],
)
def test_a_connector_is_accepted_where_keys_are_not_scaled(connector: str | None, length: int, original: int) -> None:
    guards.check_transfer(connector, length, original)


@pytest.mark.parametrize(
    ("config", "head_dim", "has"),
    [
        ({"sparse_attention_config": table_for(1, 1)}, 128, (128,)),
        ({"sparse_attention_config": table_for(1, 1), "sparse_attention_enabled": False}, 64, (128,)),
        ({"sparse_attention_config": []}, 64, (128,)),
        ({}, 64, (128,)),
    ],
)
def test_heads_that_have_sparse_kernels_or_need_none_are_accepted(
    config: dict[str, Any], head_dim: int, has: tuple[int, ...]
) -> None:
    guards.check_sparse_heads(config, head_dim, has)


@pytest.mark.parametrize(
    ("environ", "left_out"),
    [
        ({}, False),
        ({"VLLM_PLUGINS": "lora,dca_guards"}, False),
        ({"VLLM_PLUGINS": "lora"}, True),
        ({"VLLM_PLUGINS": ""}, True),
        # vLLM compares names as they stand between the commas.
        ({"VLLM_PLUGINS": "lora, dca_guards"}, True),
    ],
)
def test_a_list_of_plugins_without_the_guards_is_noticed(environ: dict[str, str], left_out: bool) -> None:
    assert (guards.plugins_notice(environ) is not None) is left_out


def test_the_flash_attention_package_says_that_the_guards_are_left_out(
    installed: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    """It is imported without the plugin, which cannot say so itself."""
    monkeypatch.setenv("VLLM_PLUGINS", "lora")
    installed("{}")
    [line] = [text for text in logged if "VLLM_PLUGINS" in text]
    assert_is_a_whole_message(line, "DCA-824")


@pytest.mark.parametrize("eager", [True, False, None])
def test_cuda_graphs_are_turned_off_and_that_is_said(
    eager: bool | None, monkeypatch: pytest.MonkeyPatch, logged: list[str]
) -> None:
    monkeypatch.setattr(os, "environ", {})
    model_config = SimpleNamespace(
        hf_config=SimpleNamespace(dual_chunk_attention_config=QWEN_1M), max_model_len=1000, enforce_eager=bool(eager)
    )
    args = SimpleNamespace(enforce_eager=eager, enable_prefix_caching=None)
    guards.check_model(model_config, args)
    assert args.enforce_eager is True
    assert model_config.enforce_eager is True
    said = [text for text in logged if "(DCA-812)" in text]
    assert len(said) == (0 if eager else 1)


@pytest.mark.parametrize("block_size", [16, 32, 64, 128])
def test_every_block_size_of_the_kernels_divides_the_chunks_of_qwen(block_size: int) -> None:
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


@pytest.mark.parametrize(("enabled", "length"), [(True, 1010000), (True, 100), (False, 253952), (False, 100)])
def test_chunked_prefill_may_be_off_within_one_chunk(enabled: bool, length: int) -> None:
    guards.check_chunked_prefill(enabled, length, CHUNKS.chunk_len)


@pytest.mark.parametrize(("dca", "has_op"), [(True, False), (True, True), (False, True), (False, False)])
def test_one_step_is_always_accepted(dca: bool, has_op: bool) -> None:
    guards.check_steps(1, dca, has_op)
    guards.check_draft("[ngram]", "qwen2", dca, dca, has_op)
    guards.check_draft("/models/heads", "medusa", dca, False, has_op)


def test_steps_and_drafts_are_accepted_with_the_op() -> None:
    guards.check_steps(8, False, True)
    guards.check_draft("/models/draft", "qwen2", False, False, True)
    # Drafts of DCA models are computed without it.
    guards.check_draft("/models/draft", "qwen2", True, True, False)


def test_every_offset_of_an_accepted_list_fits_into_32_bits() -> None:
    # As the kernel counts: the last list of the last head.
    def last(heads: int, tokens: int, widest: int) -> int:
        return (heads * -(-tokens // 64) - 1) * widest + widest - 1

    lists(28, 1, 200064)
    assert last(28, 200064, 24528) < 2**31 <= last(28, 200064 + 64, 24528)
    with pytest.raises(guards.GuardError):
        lists(28, 1, 200064 + 64)
    # What the model's card recommends, the same spread over GPUs, and no table at all.
    lists(28, 1, 131072)
    lists(40, 1, 131072, (15744, 18340))
    lists(28, 4, 1010000)
    guards.check_sparse_lists({}, 2, 64, 1, 1010000, CHUNKS.chunk_len)


def test_a_vertical_size_of_30_counts_as_130() -> None:
    table = [{str(head): ["vertical_and_slash", 30, 100, 0.5] for head in range(4200)}]
    with pytest.raises(guards.GuardError, match="up to 130 entries"):
        guards.check_sparse_lists({"sparse_attention_config": table}, 1, 4200, 1, 253952, CHUNKS.chunk_len)


def test_dense_by_accident_is_a_warning() -> None:
    notice = sparse({})
    assert notice is not None
    assert_is_a_whole_message(notice, "DCA-816")
    assert "slow" in notice


# --- the wheel's kernels -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "head_dim", "backend"),
    [
        ("bfloat16", 128, ""),
        ("bfloat16", 128, "DUAL_CHUNK_FLASH_ATTN"),
        ("float16", 128, "XFORMERS"),
        # vLLM takes another backend for sizes that flash-attention is not given.
        ("bfloat16", 80, ""),
        ("float16", 576, ""),
        ("float32", 128, ""),
    ],
)
def test_a_model_that_the_wheel_has_kernels_for_is_accepted(dtype: str, head_dim: int, backend: str) -> None:
    guards.check_kernels(KERNELS, dtype, head_dim, backend)


@pytest.mark.parametrize(
    "record",
    [
        None,
        # Wheels of earlier versions, which had both data types.
        {"serves": {"head_dims": [128]}},
        {"serves": {"head_dims": [], "dtypes": []}, "left_out": {"command": "", "head_dims": {}, "dtypes": {}}},
    ],
)
def test_a_wheel_without_anything_left_out_refuses_nothing(record: object) -> None:
    assert guards.read_kernels(record) is None


class Queries(NamedTuple):
    dtype: str
    shape: tuple[int, ...]


FLASH = """
def flash_attn_varlen_func(q, k, v, causal=False):
    return causal

def is_fa_version_supported(fa_version):
    return True

def _forward(q):
    return "private"
"""


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Any]]:
    """Installs the guards with a record, and imports a flash-attention package that calls them as the wheel's does."""

    def install(record: str) -> Any:
        site = tmp_path / "site"
        for name, text in {
            "vllm/__init__.py": "",
            "vllm/dca_guards.py": GUARDS_FILE.read_text(),
            "vllm/flash/interface.py": FLASH,
            "vllm/flash/__init__.py": "from .interface import *\nfrom .interface import _forward\n"
            "from vllm.dca_guards import guard_attention\n\nguard_attention(__name__)\n",
            "vllm-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: vllm\nVersion: 1.0\n",
            "vllm-1.0.dist-info/dca.json": record,
        }.items():
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(text)
        monkeypatch.syspath_prepend(str(site))
        return importlib.import_module("vllm.flash")

    yield install
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("queries", "words"),
    [
        (Queries("torch.float16", (9, 4, 128)), "float16"),
        (Queries("torch.bfloat16", (9, 4, 64)), "head dimension 64"),
    ],
)
def test_every_call_of_an_attention_function_is_checked(
    queries: Queries, words: str, installed: Callable[[str], Any]
) -> None:
    flash = installed(json.dumps(RECORD))
    for module in (flash, flash.interface):
        assert module.flash_attn_varlen_func(Queries("torch.bfloat16", (9, 4, 128)), None, None, causal=True) is True
        with pytest.raises(ValueError, match=f"no kernels for {words}[.] .*DCA-823"):
            module.flash_attn_varlen_func(queries, None, None)
        with pytest.raises(ValueError, match=f"no kernels for {words}[.] .*DCA-823"):
            module.flash_attn_varlen_func(k=None, v=None, q=queries)
        # Functions without queries, and those that others call, are left as they are.
        assert not hasattr(module.is_fa_version_supported, "__wrapped__")
        assert not hasattr(module._forward, "__wrapped__")


@pytest.mark.parametrize(
    "record", ["", "{}", "[1]", "{", '{"left_out": {}}', '{"serves": [], "left_out": {"head_dims": 1}}']
)
def test_a_record_that_cannot_be_read_refuses_nothing(record: str, installed: Callable[[str], Any]) -> None:
    flash = installed(record)
    assert flash.flash_attn_varlen_func(Queries("torch.float16", (9, 4, 64)), None, None) is False


# --- what hooks share, around stand-ins for vLLM's objects ---------------------------------------------------


def test_a_hook_is_put_on_once() -> None:
    class Owner:
        def method(self) -> int:
            return 1

    def plus_one(original: Callable[[Any], int], owner: Any) -> int:
        return original(owner) + 1

    guards.wrap(Owner, "method", plus_one)
    guards.wrap(Owner, "method", plus_one)
    assert Owner().method() == 2
    assert Owner.method.__name__ == "method"


class Derived:
    """Stands in for upstream's own rule, which ends at `longest`."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.asked: list[int | None] = []

    def __call__(self, length: int | None) -> int:
        self.asked.append(length)
        return self.longest if length is None else length


@pytest.mark.parametrize(
    ("asked", "longest", "length", "noticed"),
    [
        (None, 1010000, 1010000, None),
        (None, 1048576, 1010000, "1048576"),  # multiplied by rope_scaling's factor
        (262144, 1010000, 262144, None),
        (1010000, 1010000, 1010000, None),
        (1048576, 1010000, 1010000, "1048576"),
    ],
)
def test_a_length_never_passes_the_rotary_table(
    asked: int | None, longest: int, length: int, noticed: str | None, logged: list[str]
) -> None:
    derive = Derived(longest)
    assert guards.capped_length(derive, asked, 1010000) == length
    assert derive.asked == [asked if asked is None else min(asked, 1010000)]
    assert logged == ([] if noticed is None else [guards.length_notice(int(noticed), 1010000)])


@pytest.mark.parametrize("hf_config", [SimpleNamespace(), SimpleNamespace(dual_chunk_attention_config=None)])
def test_a_model_without_dca_is_left_alone(hf_config: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {})
    model_config = SimpleNamespace(hf_config=hf_config)
    # Any access to another attribute would be an AttributeError.
    assert guards.check_model(model_config, SimpleNamespace()) == {}
    guards.check_engine(SimpleNamespace(model_config=model_config, cache_config=None))
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
