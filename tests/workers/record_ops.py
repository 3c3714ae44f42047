"""Runs in an environment with vLLM: records which ops its Python looks up and calls, without a GPU.

Whole engines run on small random models. Tensors lie on the CPU and say that they are on the GPU; every op of the
extension modules is answered by a kernel that records the call and computes nothing, so what the Python does is what
it does on a GPU. Ops that are not listed are hidden, as if they were not registered.

Argument: a JSON file with
    driver      a stand-in for libcuda.so.1
    capability  [major, minor] of the simulated GPU
    modules     extension modules to load from other files, by name ("vllm._C")
    listed      ops that are there; null gives every op that is insisted on, and to every question whether an op is
                there the answer no, so that what only follows from such a question is not taken for needed
    scenarios   names of functions below, run one after the other
    folder      where models are written
    overlay     a folder of packages to take before the environment's; empty for none
    lacks       what this vLLM does not have: "qwen3", dual chunk attention for it ("qwen3_dual_chunk") and for prompts
                below the sparse threshold ("dense_dual_chunk"), "second_engine"

Prints one line "TOLD " and JSON: `called` and `insisted` (looked up where a missing op is an error) by op, with where.
"""

from __future__ import annotations

import contextlib
import dis
import importlib
import importlib.abc
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from importlib.machinery import ModuleSpec
from inspect import signature
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).parent))
import simulated_gpu

GIVEN = json.loads(Path(sys.argv[1]).read_text())
if GIVEN.get("overlay"):
    sys.path.insert(0, GIVEN["overlay"])
FOLDER = Path(GIVEN["folder"])
LACKS = set(GIVEN["lacks"])
LISTED = None if GIVEN["listed"] is None else set(GIVEN["listed"])
os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_HOST_IP": "127.0.0.1",
    "HF_HUB_OFFLINE": "1",
    "HOME": str(FOLDER),
}
simulated_gpu.load_driver(GIVEN["driver"])

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE, WordLevel

SPEC = importlib.util.find_spec("vllm")
assert SPEC is not None
assert SPEC.origin is not None
PACKAGE = f"{Path(SPEC.origin).parent}/"
NAMESPACES = ("_C", "_C_cache_ops", "_C_cuda_utils", "_C_custom_ar", "_moe_C", "_vllm_fa2_C", "vllm_flash_attn_c")
called: dict[str, str] = {}
insisted: dict[str, str] = {}


def caller() -> FrameType | None:
    """The nearest frame of vLLM itself."""
    frame: FrameType | None = sys._getframe(1)
    while frame and not frame.f_code.co_filename.startswith(PACKAGE):
        frame = frame.f_back
    return frame


def place(frame: FrameType | None) -> str:
    return f"vllm/{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}" if frame else "elsewhere"


class Names:
    """A namespace of torch.ops that notes what is looked up in it, and hides what is not listed."""

    def __init__(self, name: str) -> None:
        self._name, self._real = name, getattr(torch.ops, name)

    def __getattr__(self, op: str) -> Any:
        full = f"{self._name}::{op}"
        frame = sys._getframe(1)
        # torch itself walks over everything that is registered; that is no need of vLLM's.
        if frame.f_code.co_filename.startswith(PACKAGE):
            # `hasattr` asks whether an op is there; a plain attribute insists on it.
            insists = dis.opname[frame.f_code.co_code[frame.f_lasti]].startswith(("LOAD_ATTR", "LOAD_METHOD"))
            if insists:
                insisted.setdefault(full, place(frame))
            if not insists if LISTED is None else full not in LISTED:
                raise AttributeError(f"'_OpNamespace' '{self._name}' object has no attribute '{op}'")
        return getattr(self._real, op)

    def __iter__(self) -> Iterator[str]:
        return iter(self._real)


class Elsewhere(importlib.abc.MetaPathFinder):
    """Finds extension modules in other files than the installed ones."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        file = GIVEN["modules"].get(name)
        return importlib.util.spec_from_file_location(name, file) if file else None


def answer(schema: Any, arguments: tuple[Any, ...]) -> Any:
    """What an op returns: zeros of the right shape, and no for questions."""
    name = schema.name.split("::")[1]
    if name in ("varlen_fwd", "varlen_fwd_sparse"):
        query = arguments[0]
        return [torch.zeros_like(query), torch.zeros(query.shape[1], query.shape[0])]
    if name in ("fwd_kvcache", "fwd_sparse"):
        query = arguments[0]
        return [torch.zeros_like(query), torch.zeros(query.shape[0], query.shape[2], query.shape[1])]
    like = next((one for one in arguments if isinstance(one, torch.Tensor)), torch.zeros(1))
    kinds: dict[str, Callable[[], Any]] = {
        "Tensor": lambda: torch.zeros_like(like),
        "bool": lambda: False,
        "int": lambda: 1 << 10,
        "List[int]": lambda: [0],
    }
    found = [kinds[str(one.type)]() for one in schema.returns]
    return found[0] if len(found) == 1 else tuple(found) or None


def answer_ops() -> list[torch.library.Library]:
    """Give every op of the modules a kernel for the CPU that records the call."""
    libraries = []
    # torch before 2.8 lets kernels be replaced without being told to.
    allow = {"allow_override": True} if "allow_override" in signature(torch.library.Library.impl).parameters else {}
    for schema in torch._C._jit_get_all_schemas():
        namespace, name = schema.name.split("::")
        if namespace not in NAMESPACES:
            continue
        tensors = any("Tensor" in str(one.type) for one in schema.arguments)

        def kernel(*arguments: Any, schema: Any = schema) -> Any:
            called.setdefault(schema.name, place(caller()))
            return answer(schema, arguments)

        library = torch.library.Library(namespace, "IMPL")
        library.impl(name, kernel, "CPU" if tensors else "CompositeExplicitAutograd", **allow)
        libraries.append(library)
    return libraries


# --- models ---


def model(name: str, **changes: Any) -> str:
    """A folder with the config.json of a two-layer model."""
    config = {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "num_hidden_layers": 2,
        "vocab_size": 512,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "torch_dtype": "bfloat16",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "use_sliding_window": False,
        **changes,
    }
    folder = FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    # Some engines want a tokenizer even when told to do without.
    words = Tokenizer(WordLevel({str(number): number for number in range(512)}, unk_token="0"))
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return str(folder)


QWEN3 = {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 128, "attention_bias": False}
EXPERTS = {
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 256,
    "decoder_sparse_step": 1,
    "norm_topk_prob": True,
    "mlp_only_layers": [],
}
QWEN2_MOE = {
    "architectures": ["Qwen2MoeForCausalLM"],
    "model_type": "qwen2_moe",
    **EXPERTS,
    "shared_expert_intermediate_size": 256,
}
QWEN3_MOE = {**QWEN3, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", **EXPERTS}
FP8 = {
    "quantization_config": {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "fmt": "e4m3",
        "weight_block_size": [128, 128],
    }
}
PROMPTS = ([5 + i % 400 for i in range(1100)], [5] * 40)


def serve(folder: str, prompts: Any = PROMPTS, sampling: dict[str, Any] | None = None, **options: Any) -> None:
    """Run an engine over some prompts with Qwen's own sampling, which has a repetition penalty."""
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    given = {
        "max_model_len": 2048,
        "num_gpu_blocks_override": 512,
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "enable_chunked_prefill": True,
        "swap_space": 0.01,
        **options,
    }
    engine = LLM(model=folder, skip_tokenizer_init=True, load_format="dummy", enforce_eager=True, **given)
    chosen = {
        "max_tokens": 4,
        "temperature": 0.7,
        "top_p": 0.8,
        "top_k": 20,
        "repetition_penalty": 1.05,
        "detokenize": False,
        "ignore_eos": True,
        **(sampling or {}),
    }
    told = engine.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts], SamplingParams(**chosen), use_tqdm=False
    )
    lengths = [len(one.token_ids) for output in told for one in output.outputs]
    if lengths != [chosen["max_tokens"]] * len(prompts) * chosen.get("n", 1):
        raise RuntimeError(f"the engine answered with {lengths} tokens")
    del engine
    cleanup_dist_env_and_memory()


@contextlib.contextmanager
def environment(**variables: str) -> Any:
    os.environ |= variables
    yield
    for name in variables:
        del os.environ[name]


# --- scenarios ---


def dual_chunk() -> None:
    """V0 with dual chunk attention, dense and sparse: prefill in pieces over several chunks, decode."""
    chunks = {"chunk_size": 256, "local_size": 64, "original_max_position_embeddings": 1024}
    heads = {str(head): ["vertical_and_slash", 100, 200, 1.0] for head in range(2)}
    sparse = {
        "sparse_attention_config": [heads, heads],
        "sparse_attention_threshold": 256,
        "sparse_attention_enabled": True,
    }
    with environment(VLLM_USE_V1="0", VLLM_ATTENTION_BACKEND="DUAL_CHUNK_FLASH_ATTN"):
        prompts = PROMPTS[:1] if "dense_dual_chunk" in LACKS else PROMPTS
        if "dense_dual_chunk" not in LACKS:
            serve(model("dense", dual_chunk_attention_config=chunks))
        serve(model("sparse", dual_chunk_attention_config={**chunks, **sparse}), prompts)
        if not LACKS & {"qwen3", "qwen3_dual_chunk"}:
            serve(model("sparse3", **QWEN3, dual_chunk_attention_config={**chunks, **sparse}))


def words() -> None:
    """Dual chunk attention asked for in words: tokenizer, chat template, generation config, and the answer's text."""
    from vllm import LLM, SamplingParams

    chunks = {"chunk_size": 256, "local_size": 64, "original_max_position_embeddings": 1024}
    folder = Path(model("words", dual_chunk_attention_config=chunks))
    vocabulary = {letter: number for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer.add_special_tokens(special)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("")
    template = "{% for one in messages %}<|im_start|>{{ one.content }}<|im_end|>{% endfor %}"
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "eos_token": special[2],
                "pad_token": special[0],
                "additional_special_tokens": special[1:],
                "chat_template": template,
            }
        )
    )
    (folder / "generation_config.json").write_text(json.dumps({"top_k": 20, "eos_token_id": [258, 256]}))
    with environment(VLLM_USE_V1="0", VLLM_ATTENTION_BACKEND="DUAL_CHUNK_FLASH_ATTN"):
        engine = LLM(
            model=str(folder),
            load_format="dummy",
            enforce_eager=True,
            max_model_len=2048,
            swap_space=0.01,
            num_gpu_blocks_override=512,
            enable_chunked_prefill=True,
            max_num_batched_tokens=512,
        )
        sampling = SamplingParams(max_tokens=4, ignore_eos=True)
        [told] = engine.generate(["hello world " * 50], sampling, use_tqdm=False)
        [chat] = engine.chat([{"role": "user", "content": "hello"}], sampling, use_tqdm=False)
    wanted = [257, *(vocabulary[letter] for letter in "hello"), 258]
    # Nothing is computed, so what is answered says nothing; that tokens became a text does.
    [answer] = chat.outputs
    if len(told.prompt_token_ids) != 600 or chat.prompt_token_ids != wanted or len(answer.token_ids) != 4:
        raise RuntimeError(f"the engine took the words for {chat.prompt_token_ids} and answered {answer}")
    if answer.text is None or chat.prompt != "<|im_start|>hello<|im_end|>":
        raise RuntimeError(f"the engine answered {answer} to {chat.prompt}")


def first_engine() -> None:
    """V0 without it: several answers to each prompt, in so little room that blocks are copied and swapped."""
    prompts = [[5 + number] * 300 for number in range(4)]
    with environment(VLLM_USE_V1="0", VLLM_ATTENTION_BACKEND="FLASH_ATTN"):
        serve(
            model("plain"),
            prompts,
            {"n": 2, "max_tokens": 80},
            max_model_len=512,
            num_gpu_blocks_override=90,
            preemption_mode="swap",
            max_num_seqs=8,
        )
        if "qwen3" not in LACKS:
            serve(model("plain3", **QWEN3))


def second_engine() -> None:
    """V1: a prefix that many requests share (cascade attention), and weights kept in the CPU's memory."""
    prefix = [7 + i % 300 for i in range(512)]
    prompts = [[*prefix, 8 + number] for number in range(160)]
    with environment(VLLM_USE_V1="1"):
        serve(model("plain"), prompts, enable_prefix_caching=True, max_num_seqs=160, max_num_batched_tokens=2048)
        with simulated_gpu.devices_told():
            serve(model("plain3", **QWEN3), cpu_offload_gb=1)


def small_heads() -> None:
    """Head dimension 64."""
    with environment(VLLM_USE_V1="1"):
        serve(model("small", num_attention_heads=4, num_key_value_heads=2))


def tensors() -> None:
    """What CUDA graphs and kernel configurations ask for."""
    from vllm import utils

    utils.weak_ref_tensors([torch.zeros(2)])
    utils.get_max_shared_memory_bytes()


MEMORY_CALLS = ("cudaMalloc", "cudaIpcOpenMemHandle")


def all_reduce() -> None:
    """The all-reduce of two GPUs, called at once and inside of a graph; the other GPU says what this one says."""
    from vllm.distributed.device_communicators import custom_all_reduce as module

    others = SimpleNamespace(
        Backend=SimpleNamespace(NCCL="nccl"),
        get_backend=lambda group: "gloo",
        get_rank=lambda group: 0,
        get_world_size=lambda group: 2,
        get_process_group_ranks=lambda group: [0, 1],
        all_gather=lambda found, mine, group: None,
        all_gather_object=lambda found, mine, group: found.__setitem__(slice(None), [mine, mine]),
        broadcast_object_list=lambda found, src, group, device: found.__setitem__(slice(None), [[0], [0]]),
    )
    with contextlib.ExitStack() as changed:
        changed.enter_context(environment(CUDA_VISIBLE_DEVICES="0,1"))
        changed.enter_context(mock.patch.object(module, "dist", others))
        changed.enter_context(mock.patch.object(module, "in_the_same_node_as", return_value=[True, True]))
        changed.enter_context(mock.patch.object(module, "_can_p2p", return_value=True))
        if hasattr(module, "CudaRTLibrary"):
            # Older releases allocate what is shared with the CUDA runtime, and not with an op.
            runtime = mock.Mock(**{f"return_value.{name}.return_value.value": 1 << 12 for name in MEMORY_CALLS})
            changed.enter_context(mock.patch.object(module, "CudaRTLibrary", runtime))
        reducer = module.CustomAllreduce(None, "cuda:0")
        results = [reducer.custom_all_reduce(torch.zeros(8))]
        changed.enter_context(mock.patch.object(torch.cuda, "is_current_stream_capturing", return_value=True))
        with reducer.capture():
            results.append(reducer.custom_all_reduce(torch.zeros(8)))
        reducer.close()
    if any(one is None for one in results):
        raise RuntimeError("the custom all-reduce is switched off")


def passes() -> None:
    """The compilation passes over a graph with an op that they do not know: they compare it with all that they do."""
    from torch._higher_order_ops.auto_functionalize import auto_functionalized
    from vllm.compilation.inductor_pass import pass_context
    from vllm.compilation.pass_manager import PostGradPassManager
    from vllm.config import CompilationConfig, PassConfig, VllmConfig, set_current_vllm_config

    every = PassConfig(enable_fusion=True, enable_noop=True)
    config = VllmConfig(compilation_config=CompilationConfig(level=3, pass_config=every))
    graph = torch.fx.Graph()
    tensor = graph.placeholder("tensor")
    unknown = torch.ops.aten.add_.Tensor
    graph.output(graph.call_function(auto_functionalized, (unknown,), {"self": tensor, "other": tensor}))
    manager = PostGradPassManager()
    with set_current_vllm_config(config), pass_context(None):
        manager.configure(config)
        manager(torch.fx.GraphModule({}, graph).graph)


def fp8_weights() -> None:
    """FP8 weights, quantized while loading, stored with a scale for each tensor, and stored in blocks."""
    with environment(VLLM_USE_V1="1"):
        serve(model("plain"), quantization="fp8")
        serve(model("stored", quantization_config={"quant_method": "fp8", "activation_scheme": "static"}))
        serve(model("blocks3", **QWEN3, **FP8))


def experts() -> None:
    """Mixture of experts."""
    with environment(VLLM_USE_V1="1"):
        serve(model("experts2", **QWEN2_MOE))
        serve(model("experts3", **QWEN3_MOE))


def fp8_experts() -> None:
    """Mixture of experts with FP8 weights."""
    with environment(VLLM_USE_V1="1"):
        serve(model("experts3", **QWEN3_MOE), quantization="fp8")
        serve(model("expertblocks3", **QWEN3_MOE, **FP8))


SCENARIOS: dict[str, Callable[[], None]] = {
    one.__name__: one
    for one in (
        dual_chunk,
        words,
        first_engine,
        second_engine,
        small_heads,
        tensors,
        all_reduce,
        passes,
        fp8_weights,
        experts,
        fp8_experts,
    )
}


def main() -> None:
    sys.meta_path.insert(0, Elsewhere())
    for namespace in NAMESPACES:
        setattr(torch.ops, namespace, Names(namespace))
    importlib.import_module("vllm")
    simulated_gpu.simulate_platform(*GIVEN["capability"])
    simulated_gpu.register_on_cpu()
    # The modules are those of more groups than the wheel's record names.
    with contextlib.suppress(ImportError):
        setattr(importlib.import_module("vllm.dca_guards"), "wheel_kernels", lambda: None)  # noqa: B010 - no attribute
    # The extension modules must be there before their ops are answered.
    importlib.import_module("vllm._C")
    importlib.import_module("vllm.vllm_flash_attn")
    with contextlib.suppress(ImportError):
        importlib.import_module("vllm._moe_C")

    kept = answer_ops()
    simulated_gpu.simulate_tensors(*GIVEN["capability"])
    simulated_gpu.simulate_triton()
    import serving_modules

    failed = serving_modules.import_all(second_engine="second_engine" not in LACKS)
    from vllm.distributed.device_communicators import custom_all_reduce
    from vllm.model_executor.models import registry

    # vLLM looks at a model's class in a process of its own, which would not know of the simulated GPU.
    registry._run_in_subprocess = lambda function: function()
    for name in GIVEN["scenarios"]:
        SCENARIOS[name]()
    told = {"failed": failed, "custom_all_reduce": custom_all_reduce.custom_ar, "called": called, "insisted": insisted}
    print("TOLD " + json.dumps(told), flush=True)
    # Whatever vLLM started must not keep the process.
    os._exit(0 if kept else 1)


main()
