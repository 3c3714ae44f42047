"""Recipe qwen-fork: the lines of its patches everywhere; the patched files and hooks where the source is there."""

from __future__ import annotations

import functools
import json
import os
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, SimpleNamespace
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from dca.catalogue import machine, recipes
from dca.compile import ops
from dca.foundation import runner, store
from dca.pipeline import workspace
from dca.toolchain import environments
from tests.support import ROOT, guards
from tests.support.guards import (
    EAGER,
    FITTING,
    HEADS_128,
    PATCHES,
    PLAIN,
    QWEN_1M,
    SIMULATED,
    Case,
    Fork,
    assert_is_a_whole_message,
    backend_answers,
    configured,
    load_hooks,
    messages,
    run_worker,
)

RECIPE = "qwen-fork"
FOLDER = PATCHES / RECIPE
DECODE = FOLDER / "0001-decode-past-one-chunk.patch"
PREFILL = FOLDER / "0002-prefill-of-several-sequences.patch"
COLUMNS = FOLDER / "flash-attention" / "0003-columns-of-every-sequence.patch"
KERNEL = Path("csrc/flash_attn/src/flash_fwd_sparse_kernel.h")
CHUNK_LEN = QWEN_1M["chunk_size"] - QWEN_1M["local_size"]
LONGEST = 1010000
hooks = load_hooks(RECIPE)


def sides(patch: Path) -> list[tuple[str, str]]:
    """What each hunk of a patch finds and what it leaves."""
    body = patch.read_text().partition("\ndiff --git a/")[2]
    hunks = re.split(r"^@@.*\n", body, flags=re.MULTILINE)[1:]
    return [
        (
            "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[:1] in (" ", "-")),
            "".join(f"{line[1:]}\n" for line in hunk.splitlines() if line[:1] in (" ", "+")),
        )
        for hunk in hunks
    ]


# --- D1: the lengths of decoding -----------------------------------------------------------------------------


class Length(int):
    """One element of a tensor of lengths, with the operations that the patched lines use."""

    def __add__(self, other: int) -> Length:
        return Length(int(self) + other)

    def __sub__(self, other: int) -> Length:
        return Length(int(self) - other)

    def __mul__(self, other: int) -> Length:
        return Length(int(self) * other)

    def clip(self, min: int) -> Length:  # noqa: A002 - as torch calls it
        return Length(max(int(self), min))

    def max(self) -> Length:
        return self

    def item(self) -> int:
        return int(self)


def succ_length(lines: str, length: int) -> int:
    """What a side of the patch makes of a length: how many keys of the previous chunk decoding sees."""
    scope: dict[str, Any] = {"chunk_num_curr": Length((length - 1) // CHUNK_LEN), "chunk_len": CHUNK_LEN}
    exec(compiled(lines), scope)
    return int(scope["seq_lens_succ"])


@functools.cache
def compiled(lines: str) -> CodeType:
    return compile(textwrap.dedent(lines), "patch", "exec")


def border_lengths() -> Iterator[int]:
    for border in range(0, LONGEST, CHUNK_LEN):
        yield from (length for length in range(border - 2, border + 3) if length > 0)
    yield from range(1, LONGEST, 97)
    yield from range(LONGEST - 2, LONGEST + 1)


def test_decode_splits_every_length_into_whole_chunks() -> None:
    [(_, patched)] = sides(DECODE)
    for length in border_lengths():
        earlier = (length - 1) // CHUNK_LEN
        intra, inter = length - earlier * CHUNK_LEN, max(earlier - 1, 0) * CHUNK_LEN
        assert 1 <= intra <= CHUNK_LEN
        succ = succ_length(patched, length)
        assert succ == (CHUNK_LEN if earlier else 0)
        assert intra + succ + inter == length


@pytest.mark.parametrize(("length", "seen"), [(253952, 0), (300000, 1), (600000, -253950), (1000000, -507901)])
def test_decode_saw_one_key_of_the_previous_chunk_before_the_patch(length: int, seen: int) -> None:
    [(before, _)] = sides(DECODE)
    assert succ_length(before, length) == seen


# Runs the property `decode_metadata` of the file itself, its base class replaced by the few fields that it reads.
DECODE_WORKER = """
import ast, dataclasses, json, math, random, sys
from typing import Any, Dict, List, Optional, Tuple, Type

import torch


@dataclasses.dataclass
class FlashAttentionMetadata:
    num_prefills: int
    num_decode_tokens: int
    orig_seq_lens_tensor: torch.Tensor
    block_tables: torch.Tensor

    def asdict_zerocopy(self):
        return {one.name: getattr(self, one.name) for one in dataclasses.fields(FlashAttentionMetadata)}

    @property
    def decode_metadata(self):
        return FlashAttentionMetadata(**self.asdict_zerocopy())


tree = ast.parse(open(sys.argv[1]).read())
name = "DualChunkFlashAttentionMetadata"
[body] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
scope = {"dataclass": dataclasses.dataclass, "torch": torch, "FlashAttentionMetadata": FlashAttentionMetadata,
         "Any": Any, "Dict": Dict, "List": List, "Optional": Optional, "Tuple": Tuple, "Type": Type}
exec(compile(ast.Module([body], []), "backend", "exec"), scope)
Metadata = scope[name]
CHUNK, LOCAL, LONGEST = 262144, 8192, 1010000
LEN = CHUNK - LOCAL


def problem(lengths, block, original=CHUNK):
    widest = -(-max(lengths) // block)
    # Each block has a number of its own, and none is 0, which is what the unused rest of a table holds.
    tables = torch.arange(1, len(lengths) * widest + 1, dtype=torch.int32).view(len(lengths), widest)
    try:
        made = Metadata(num_prefills=0, num_decode_tokens=len(lengths), block_tables=tables, block_size=block,
                        orig_seq_lens_tensor=torch.tensor(lengths, dtype=torch.int32), chunk_size=CHUNK,
                        local_size=LOCAL, original_max_position_embeddings=original).decode_metadata
    except RuntimeError as error:
        return str(error)
    numbers = [(length - 1) // LEN for length in lengths]
    wanted = {
        "intra": [length - number * LEN for length, number in zip(lengths, numbers)],
        "succ": [LEN if number >= 1 else 0 for number in numbers],
        "inter": [max(number - 1, 0) * LEN for number in numbers],
    }
    for name, values in wanted.items():
        if getattr(made, "seq_lens_" + name).tolist() != values:
            return f"{name} is {getattr(made, 'seq_lens_' + name).tolist()}, not {values}"
        if getattr(made, "max_seq_len_" + name) != max(values):
            return f"the longest {name} is {getattr(made, 'max_seq_len_' + name)}"
    for name in ("intra", "succ"):
        found, width = getattr(made, "block_tables_" + name), -(-max(wanted[name]) // block)
        if found is None and width == 0:
            continue
        if tuple(found.shape) != (len(lengths), width):
            return f"the table of {name} is {tuple(found.shape)}"
    for row, table in enumerate(tables):
        # In the order of the keys: what decoding reads of the older chunks, of the previous one and of its own.
        parts = [table[: wanted["inter"][row] // block]]
        if wanted["succ"][row]:
            parts.append(made.block_tables_succ[row, : wanted["succ"][row] // block])
        own = -(-wanted["intra"][row] // block)
        parts.append(made.block_tables_intra[row, :own])
        if not torch.equal(torch.cat(parts), table[: -(-lengths[row] // block)]):
            return f"the blocks of row {row} are not those of the sequence"
        if made.block_tables_intra[row, own:].any():
            return f"row {row} has blocks past its own"
    if original:
        factors = [max(1.0, 0.1 * math.log(length / original) + 1.0) for length in lengths]
        if not torch.allclose(made.scaling_factor, torch.tensor(factors)):
            return f"the factors are {made.scaling_factor.tolist()}"
    elif made.scaling_factor is not None:
        return "there is a factor without an original length"
    return None


borders = [LEN * chunk + step for chunk in range(4) for step in range(-2, 3) if LEN * chunk + step > 0]
borders += [LEN * chunk + step for chunk in range(4) for step in (15, 16, 17, 31, 32, 33)]
single = sorted({*borders, *range(1, LONGEST, 1009), *range(LONGEST - 2, LONGEST + 1)})
chance = random.Random(0)
batches = [[length] for length in single]
batches += [[chance.choice(borders + [LONGEST, chance.randrange(1, LONGEST)]) for _ in range(size)]
            for size in (2, 3, 5, 8) for _ in range(40)]
told = {}
for batch in batches:
    for block in (16,) if len(batch) == 1 else (16, 64):
        found = problem(batch, block)
        if found is not None:
            told[f"{batch} in blocks of {block}"] = found
found = problem([1, LEN + 1, LONGEST], 16, 0)
if found is not None:
    told["no original length"] = found
json.dump({"batches": len(batches), "told": told}, open(sys.argv[2], "w"))
"""


def decode_problems(python: Path, root: Path, home: Path) -> dict[str, str]:
    answer = home / "decode.json"
    run_worker(python, DECODE_WORKER, home, str(root / "vllm/attention/backends/dual_chunk_flash_attn.py"), str(answer))
    made = json.loads(answer.read_text())
    assert made["batches"] > 1000
    told: dict[str, str] = made["told"]
    return told


def test_decode_metadata_covers_every_key_once(fork: Fork, torch_python: Path, tmp_path: Path) -> None:
    assert decode_problems(torch_python, fork.patched, tmp_path) == {}


def test_decode_metadata_was_wrong_past_one_chunk(fork: Fork, torch_python: Path, tmp_path: Path) -> None:
    told = decode_problems(torch_python, fork.before, tmp_path)
    assert f"[{CHUNK_LEN}] in blocks of 16" not in told
    assert told[f"[{CHUNK_LEN + 1}] in blocks of 16"] == f"succ is [1], not [{CHUNK_LEN}]"
    assert "negative dimension" in told[f"[{LONGEST}] in blocks of 16"]


# --- D2: several sequences per prefill, and no factor ---------------------------------------------------------


class Factors(list[float]):
    """A tensor of factors, with the operations that the patched lines use."""

    def __getitem__(self, index: Any) -> Any:
        return Factors([list.__getitem__(self, index)])

    def item(self) -> float:
        if len(self) != 1:
            raise RuntimeError(f"a Tensor with {len(self)} elements cannot be converted to Scalar")
        return list.__getitem__(self, 0)


def dense_factors(side: int, factor: Factors | None) -> list[float]:
    """The factors that the dense call gets for each of two sequences, by a side of the patch."""
    default, call = (hunk[side] for hunk in sides(PREFILL))
    [expression] = [line.strip(" ,") for line in call.splitlines() if ".item()" in line]
    scope: dict[str, Any] = {
        "scaling_factor": factor,
        "orig_seq_lens": [3, 2],
        "torch": SimpleNamespace(ones=lambda size: Factors([1.0] * size)),
        "cu_seqlens_k": SimpleNamespace(cpu=lambda: SimpleNamespace(tolist=lambda: [0, 3, 5])),
    }
    exec(textwrap.dedent(default), scope)
    return [eval(expression, {**scope, "i": i}) for i in (0, 1)]


def test_dense_prefill_scales_each_sequence_by_its_own_factor() -> None:
    assert dense_factors(1, Factors([1.0, 1.5])) == [1.0, 1.5]
    assert dense_factors(1, None) == [1.0, 1.0]


def test_dense_prefill_failed_before_the_patch() -> None:
    with pytest.raises(RuntimeError, match="2 elements cannot be converted"):
        dense_factors(0, Factors([1.0, 1.5]))
    with pytest.raises(AttributeError, match="'NoneType' object has no attribute 'item'"):
        dense_factors(0, None)


# The dense branch goes one head at a time (two heads, two sequences), the sparse branch takes all heads at once.
FACTORS_OF_ONE = [[1.0] * 4, [1.0] * 2]
GIVEN_FACTORS = [[1.0, 1.0, 1.5, 1.5], [1.0, 1.5]]


def test_prefill_takes_several_sequences_and_no_factor(fork: Fork, torch_python: Path, tmp_path: Path) -> None:
    answers = backend_answers(torch_python, tmp_path, fork.patched)
    assert answers == {"none": FACTORS_OF_ONE, "given": GIVEN_FACTORS, "succ": [0, 16, 16, 16]}


def test_prefill_took_one_sequence_before_the_patch(fork: Fork, torch_python: Path, tmp_path: Path) -> None:
    answers = backend_answers(torch_python, tmp_path, fork.before)
    assert answers["none"] == ["'NoneType' object has no attribute 'item'", "'NoneType' object is not subscriptable"]
    assert answers["given"] == ["a Tensor with 2 elements cannot be converted to Scalar", GIVEN_FACTORS[1]]
    assert answers["succ"] == [0, 1, -14, -59]


# --- D8: the columns of every sequence -----------------------------------------------------------------------


def column_offset(text: str, name: str, batch: int, head: int) -> int:
    """Where the kernel takes the columns of keys or values from, in elements, for K and V of these strides."""
    found = re.search(rf"row_offset_{name}_token\s*=\s*([^;]*);", text)
    assert found is not None
    expression = " ".join(found[1].split()).replace("/", "//")
    strides = {f"{one}_{kind}_stride": value for one in "kv" for kind, value in STRIDES.items()}
    binfo = SimpleNamespace(k_offset=lambda batch_stride, row_stride, bidb: bidb * batch_stride)
    scope = {"params": SimpleNamespace(h_h_k_ratio=7, **strides), "binfo": binfo, "bidb": batch, "bidh": head}
    return int(eval(expression, scope))


# A contiguous K of 300 tokens with 4 heads of 128.
STRIDES = {"batch": 300 * 4 * 128, "row": 4 * 128, "head": 128}


def assert_columns_follow_the_batch(text: str) -> None:
    for name in "kv":
        for batch in range(3):
            for head in range(28):
                assert column_offset(text, name, batch, head) == batch * STRIDES["batch"] + head // 7 * STRIDES["head"]


def test_the_columns_of_a_sequence_are_read_from_it() -> None:
    [(before, patched)] = sides(COLUMNS)
    assert_columns_follow_the_batch(patched)
    assert column_offset(before, "k", 1, 0) == column_offset(before, "k", 0, 0)


def test_the_patched_kernel_reads_every_list_of_its_sequence(fork: Fork) -> None:
    text = (fork.kernels_patched / KERNEL).read_text()
    assert_columns_follow_the_batch(text)
    # Whatever else the kernel reads or writes counts sequences too: four lists, queries, keys, values, output, LSE.
    of_lists = re.findall(r"params\.(?:block|column)_\w+(?:\[| \+ \()\(bidb \* params\.h \+ bidh\)", text)
    lists = re.findall(r"params\.(?:block_count|block_offset|column_count|column_index)\b", text)
    assert len(of_lists) == len(lists) == 4
    for pointer in ("q", "k", "v", "o"):
        uses = re.findall(rf"params\.{pointer}_ptr\)\s*\+\s*([^;]*?),", text)
        assert uses
        assert all("bidb" in use or "binfo" in use or "row_offset" in use for use in uses)
    assert "get_lse_tile" in text


SPARSE_WORKER = """
import json, sys
import torch
from vllm.vllm_flash_attn import sparse_attn_func

torch.manual_seed(0)
q, k, v = (torch.randn(2, 128, 2, 128, dtype=torch.bfloat16, device="cuda") for _ in range(3))
ints = dict(dtype=torch.int32, device="cuda")
count = torch.ones(2, 2, 2, **ints)
offset = torch.full((2, 2, 2, 1), 64, **ints)
columns = torch.tensor([3, 17, 40], **ints).expand(2, 2, 2, 3).contiguous()
columns_count = torch.full((2, 2, 2), 3, **ints)


def attend(rows):
    lists = [one[rows].contiguous() for one in (count, offset, columns_count, columns)]
    return sparse_attn_func(q[rows], k[rows], v[rows], *lists, causal=False, return_softmax_lse=True)


both, first, second = attend(slice(0, 2)), attend(slice(0, 1)), attend(slice(1, 2))
far = [max((whole[i] - part[0]).abs().max().item() for i, part in enumerate(parts))
       for whole, parts in zip(both, zip(first, second))]
json.dump(far, open(sys.argv[1], "w"))
"""


@pytest.mark.gpu
def test_sparse_attention_of_a_batch_is_that_of_its_sequences(fork_python: Path, tmp_path: Path) -> None:
    if not os.environ.get("DCA_TEST_WHEEL_QWEN_FORK"):
        pytest.skip("needs a compiled wheel: name it in DCA_TEST_WHEEL_QWEN_FORK")
    run_worker(fork_python, SPARSE_WORKER, tmp_path, str(tmp_path / "far.json"))
    assert json.loads((tmp_path / "far.json").read_text()) == [0.0, 0.0]


# --- the hooks, around stand-ins for vLLM's objects ----------------------------------------------------------


@pytest.mark.parametrize("hf_config", [SimpleNamespace(), SimpleNamespace(dual_chunk_attention_config=None)])
def test_a_model_without_dca_passes_every_hook_unchanged(
    hf_config: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    model_config = SimpleNamespace(hf_config=hf_config)
    vllm_config = SimpleNamespace(model_config=model_config, device_config=SimpleNamespace(device_type="cpu"))
    args = SimpleNamespace()  # any access to an argument would be an AttributeError
    given: dict[str, Any] = {}

    def derive(**kwargs: Any) -> int:
        given.update(kwargs)
        return 7

    assert hooks._verify_length(derive, hf_config=hf_config, max_model_len=9, encoder_config=None) == 7
    assert given == {"hf_config": hf_config, "max_model_len": 9, "encoder_config": None}
    assert hooks._create_model_config(lambda _: model_config, args) is model_config
    assert hooks._create_engine_config(lambda _: vllm_config, args) is vllm_config
    assert os.environ == {}


# --- inside an environment of the fork: the engine's configuration --------------------------------------------

OP = "advance_step_flashattn"
DRAFT = {"speculative_model": PLAIN, "num_speculative_tokens": 3}

REFUSED: dict[str, tuple[Case, str, list[str]]] = {
    **guards.REFUSED,
    "blocks that the kernels do not read": (Case({**EAGER, "block_size": 8}), "DCA-819", ["block size is 8"]),
    "prefill in one piece because of LoRA": (
        Case({**EAGER, "enable_lora": True}, table=FITTING),
        "DCA-820",
        ["LoRA", "--enable-chunked-prefill"],
    ),
    "several steps": (
        Case({**EAGER, "num_scheduler_steps": 8}, ops=[OP]),
        "DCA-821",
        ["--num-scheduler-steps 8", "dual chunk attention"],
    ),
    "a draft model without DCA": (
        Case({**EAGER, **DRAFT, "enable_chunked_prefill": True}, ops=[OP]),
        "DCA-821",
        ["modelfirst", "attention backend"],
    ),
    "several steps without the op and without DCA": (
        Case({"num_scheduler_steps": 8}, dca=None),
        "DCA-821",
        ["--num-scheduler-steps 8", OP],
    ),
    "a draft model without the op and without DCA": (Case(DRAFT, dca=None), "DCA-821", ["modelfirst", OP]),
    # The fork computes it in float16.
    "a float32 model": (Case(EAGER, config={**HEADS_128, "torch_dtype": "float32"}), "DCA-823", ["--with fp16"]),
}

ACCEPTED: dict[str, Case] = {
    **guards.ACCEPTED,
    "several sequences": Case({**EAGER, "max_num_seqs": 16}, table=FITTING),
    "speculation without a draft model": Case(
        {
            **EAGER,
            "speculative_model": "[ngram]",
            "num_speculative_tokens": 3,
            "ngram_prompt_lookup_max": 4,
            "enable_chunked_prefill": True,
        },
        table=FITTING,
    ),
}

WITHOUT_DCA: dict[str, Case] = {
    "plain": Case(dca=None),
    "plain, too long": Case({"max_model_len": 1048576}, dca=None),
    "plain, with what DCA has not": Case(
        {"enable_prefix_caching": True, "kv_cache_dtype": "fp8", "enable_chunked_prefill": False}, dca=None
    ),
    "plain, several steps": Case({"num_scheduler_steps": 8}, dca=None, ops=[OP]),
    "plain, with a draft": Case(DRAFT, dca=None, ops=[OP]),
}

CASES = {**{name: case for name, (case, _, _) in REFUSED.items()}, **ACCEPTED, **WITHOUT_DCA}


@functools.cache
def outcomes(python: Path) -> dict[str, Any]:
    return configured(python, CASES)


def accepted(python: Path, name: str) -> dict[str, Any]:
    outcome: dict[str, Any] = outcomes(python)[name]
    assert outcome["error"] is None
    return outcome


@pytest.mark.slow
def test_the_fork_loads_the_guards_once_through_its_entry_point(fork_python: Path) -> None:
    assert outcomes(fork_python)["hooked once"] is True


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_an_engine_is_not_configured_with(name: str, fork_python: Path) -> None:
    _, code, words = REFUSED[name]
    outcome = outcomes(fork_python)[name]
    assert outcome["error_type"] == "GuardError", outcome["error"]
    assert_is_a_whole_message(outcome["error"], code)
    for word in words:
        assert word in outcome["error"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*ACCEPTED, *WITHOUT_DCA])
def test_an_engine_is_configured_with(name: str, fork_python: Path) -> None:
    if name != "plain, too long":
        accepted(fork_python, name)


@pytest.mark.slow
def test_the_backend_is_chosen_for_the_user(fork_python: Path) -> None:
    outcome = accepted(fork_python, "nothing set")
    assert outcome["environ"] == {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}
    [line] = messages(outcome)["INFO"]
    assert_is_a_whole_message(line, "DCA-811")
    assert list(messages(outcome)) == ["INFO"]
    by_user = accepted(fork_python, "all set")
    assert by_user["config"] == outcome["config"]
    assert messages(by_user) == {}
    assert by_user["config"]["max_model_len"] == 1010000


@pytest.mark.slow
@pytest.mark.parametrize("name", ["too long", "too long, overridden", "too long by rope_scaling"])
def test_the_length_is_capped_at_the_rotary_table(name: str, fork_python: Path) -> None:
    outcome = accepted(fork_python, name)
    assert outcome["config"]["max_model_len"] == 1010000
    assert outcome["config"]["scheduled_len"] == 1010000
    [line] = messages(outcome)["WARNING"]
    assert_is_a_whole_message(line, "DCA-815")
    assert "1048576" in line


@pytest.mark.slow
def test_a_model_that_will_run_dense_is_warned_about(fork_python: Path) -> None:
    [line] = messages(accepted(fork_python, "dense"))["WARNING"]
    assert_is_a_whole_message(line, "DCA-816")
    assert "WARNING" not in messages(accepted(fork_python, "dense on purpose"))


@pytest.mark.slow
def test_a_model_without_dca_is_configured_as_the_fork_does(fork_python: Path) -> None:
    plain = accepted(fork_python, "plain")
    assert plain["environ"] == {"VLLM_ATTENTION_BACKEND": None, "VLLM_USE_V1": None}
    too_long = outcomes(fork_python)["plain, too long"]
    assert too_long["error_type"] == "ValueError"
    assert "VLLM_ALLOW_LONG_MAX_MODEL_LEN" in too_long["error"]
    other = accepted(fork_python, "plain, with what DCA has not")
    assert (other["config"]["prefix_caching"], other["config"]["cache_dtype"]) == (True, "fp8")
    for name in WITHOUT_DCA:
        assert messages(outcomes(fork_python)[name]) == {}


# What `vllm serve` does: the arguments are made in the server's process and pickled for the engine's, which makes the
# config anew. An unpickled dataclass has not been through __post_init__, which loads the plugins.
SERVER_WORKER = (
    SIMULATED
    + """
import pickle
from vllm.engine.arg_utils import AsyncEngineArgs

(ROOT / "config.json").write_text(json.dumps({**BASE, "dual_chunk_attention_config": json.load(sys.stdin)}))
for name, more in (("graphs", {}), ("FP8 KV cache", {"kv_cache_dtype": "fp8"})):
    args = AsyncEngineArgs(model=str(ROOT), skip_tokenizer_init=True, enforce_eager=False, **more)
    (ROOT / f"{name}.pickle").write_bytes(pickle.dumps(args))
"""
)
ENGINE_WORKER = (
    SIMULATED
    + """
import pickle
import vllm.plugins
from vllm.engine.multiprocessing.engine import MQLLMEngine

told = {}
for name in ("FP8 KV cache", "graphs"):
    args = pickle.loads((ROOT / f"{name}.pickle").read_bytes())
    told["loaded before " + name] = vllm.plugins.plugins_loaded
    MQLLMEngine.__init__ = lambda self, vllm_config, **given: told.update(
        length=vllm_config.model_config.max_model_len, eager=vllm_config.model_config.enforce_eager
    )
    MQLLMEngine.cleanup = lambda self: None
    try:
        MQLLMEngine.from_engine_args(args, None, "")
    except ValueError as error:
        told[name] = str(error)
told["environ"] = {variable: os.environ.get(variable) for variable in VARIABLES}
(ROOT / "told.json").write_text(json.dumps(told))
"""
)


@pytest.mark.slow
def test_the_engines_process_meets_the_guards_too(fork_python: Path, tmp_path: Path) -> None:
    run_worker(fork_python, SERVER_WORKER, tmp_path, str(tmp_path), given=json.dumps(QWEN_1M))
    run_worker(fork_python, ENGINE_WORKER, tmp_path, str(tmp_path))
    told = json.loads((tmp_path / "told.json").read_text())
    assert told["loaded before FP8 KV cache"] is False
    assert_is_a_whole_message(told["FP8 KV cache"], "DCA-813")
    assert "graphs" not in told
    assert told["eager"] is True
    assert told["length"] == LONGEST
    assert told["environ"] == {"VLLM_ATTENTION_BACKEND": "DUAL_CHUNK_FLASH_ATTN", "VLLM_USE_V1": "0"}


# --- whole engines with every transformers that it can be installed with ---------------------------------------

RECORD_OPS = ROOT / "tests/workers/record_ops.py"
# What the lock pins is one of these; the recipe's cap keeps 5 out.
TRANSFORMERS = ("4.45.2", "4.48.3", "4.51.3", "4.57.6")


@pytest.fixture(scope="session")
def fork_bench(
    fork_python: Path, fork_recipe: recipes.Recipe, cache: store.Store, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """What the worker of whole engines is given: the ops of a lean wheel, and a stand-in for the driver."""
    if not os.environ.get("DCA_TEST_WHEEL_QWEN_FORK"):
        pytest.skip("needs a compiled wheel: name it in DCA_TEST_WHEEL_QWEN_FORK")
    [own] = fork_python.parent.parent.glob("lib/python3*/site-packages/vllm/_C.abi3.so")
    driver = ops.driver_stand_in(own, tmp_path_factory.mktemp("driver"))
    groups = [fork_recipe.groups[name] for name in fork_recipe.lean.groups]
    listed = sorted({op for group in groups for op in (*group.ops, *group.answers)})
    return {
        "driver": str(driver),
        "capability": [9, 0],
        "modules": {},
        "listed": listed,
        "scenarios": ["dual_chunk", "words"],
        "lacks": ["qwen3", "second_engine"],
    }


@pytest.mark.slow
@pytest.mark.whole
@pytest.mark.parametrize("version", TRANSFORMERS)
def test_engines_serve_with_every_transformers_that_the_wheel_allows(
    version: str, fork_bench: dict[str, Any], fork_python: Path, cache: store.Store, tmp_path: Path
) -> None:
    """Dense and sparse, by numbers and by words, on a simulated GPU; transformers lies in front of the lock's."""
    overlay = tmp_path / "overlay"
    [lock] = [one for one in ROOT.glob("build/locks/readers/*.txt") if f"\ntransformers=={version} " in one.read_text()]
    packages = tmp_path / "packages.txt"
    packages.write_text(workspace.locked(lock, ("transformers", "tokenizers", "huggingface-hub", "hf-xet")))
    done = runner.run(
        [
            machine.find_uv(),
            "pip",
            "install",
            "--python",
            fork_python,
            "--target",
            overlay,
            "--no-deps",
            "--require-hashes",
            "-r",
            packages,
        ],
        env=environments.uv_environment(cache),
        timeout=600.0,
    )
    assert done.ok, done.text
    given = tmp_path / "given.json"
    given.write_text(json.dumps({**fork_bench, "folder": str(tmp_path), "overlay": str(overlay)}))
    done = runner.run([fork_python, "-I", RECORD_OPS, given], cwd=tmp_path, env={"HOME": str(tmp_path)}, timeout=900.0)
    assert done.ok, done.text[-6000:]
    told = json.loads(next(line for line in done.tail if line.startswith("TOLD ")).removeprefix("TOLD "))
    assert told["failed"] == {}
    assert "vllm_flash_attn_c::fwd_sparse" in told["called"]
    assert f"transformers-{version}.dist-info" in {path.name for path in overlay.iterdir()}


def test_the_lock_and_the_cap_lie_within_the_versions_that_were_tried(all_recipes: tuple[recipes.Loaded, ...]) -> None:
    loaded = next(one for one in all_recipes if one.recipe.name == RECIPE)
    first, last = Version(TRANSFORMERS[0]), Version(TRANSFORMERS[-1])
    assert all(first <= Version(version) <= last for version in loaded.locked["transformers"])
    [cap] = [Requirement(text) for text in loaded.recipe.caps if text.startswith("transformers")]
    assert cap.specifier.contains(last)
    assert not cap.specifier.contains("5.0.0")
