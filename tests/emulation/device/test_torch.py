"""torch behind the emulated device, as programs use it: each of them works, or ends with one clear message."""

from __future__ import annotations

import ast
import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from dca.catalogue import kept_ptx
from tests.support import RunDca

pytestmark = pytest.mark.whole
OPERATIONS = Path(__file__).with_name("operations.py")
HELPERS = ("same", "fails", "main")
NAMES = [one.name for one in ast.parse(OPERATIONS.read_text()).body if isinstance(one, ast.FunctionDef)]
Emulate = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def emulate(dca: RunDca, run_python: Path, wheel: Path) -> Emulate:
    """Runs the Python of an environment with the wheel behind the device."""

    def run(*words: str | Path, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        program = run_python.with_name("vllm") if words[0] == "vllm" else run_python
        ptx = ("--ptx", str(kept_ptx.beside(wheel)))
        rest = words[1:] if words[0] == "vllm" else words
        return dca("emulate", "--quiet", *ptx, *options, "--", program, *rest)

    return run


@pytest.fixture(scope="module")
def results(emulate: Emulate) -> dict[str, str]:
    """What went wrong in each function of the program; empty where nothing did."""
    done = emulate(OPERATIONS)
    assert done.returncode == 0, done.stderr[-3000:]
    return {one["name"]: one["wrong"] for one in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in HELPERS])
def test_what_programs_do_with_a_device(name: str, results: dict[str, str]) -> None:
    assert results[name] == "", results[name]


# What a user tries first. The last words are in what is printed.
SNIPPETS = {
    "print(torch.cuda.is_available(), torch.cuda.get_device_name())": "True emulated sm_80",
    "x = torch.randn(64, 64, device='cuda'); print((x @ x).shape)": "torch.Size([64, 64])",
    "print(torch.nn.Linear(8, 2).cuda()(torch.ones(1, 8).cuda()).device)": "cuda:0",
    "x = torch.ones(3).cuda().requires_grad_(); (x * x).sum().backward(); print(x.grad)": "tensor([2., 2., 2.], device",
    "print(torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2).cuda()))": "tensor([2., 2.], device='cuda:0')",
    "print(torch.nn.Conv2d(3, 4, 3).cuda()(torch.ones(1, 3, 8, 8).cuda()).shape)": "torch.Size([1, 4, 6, 6])",
    "torch.cuda.synchronize(); print(torch.cuda.memory_allocated())": "0",
    "print(torch.ones(2, device='cuda') + 1)": "tensor([2., 2.], device='cuda:0')",
    "torch.ones(4, 4).cuda().half().mm(torch.ones(4, 4).cuda().half()).sum().item(); print('done')": "done",
    "torch.manual_seed(0); print(torch.rand(1000, device='cuda').mean().item() < 0.6)": "True",
}


@pytest.mark.parametrize("code", SNIPPETS)
def test_what_a_user_tries_first_works(code: str, emulate: Emulate) -> None:
    done = emulate("-c", f"import torch; {code}")
    assert done.returncode == 0, done.stderr
    assert SNIPPETS[code] in done.stdout


# Ends the program, at once and with one message.
ENDS = {
    "torch.sparse_coo_tensor([[0, 0]], [1.0, 2.0], (2,), device='cuda').coalesce()": (
        "DCA-835",
        "libtorch_cuda.so has",
    ),
    "g = torch.cuda.CUDAGraph()\nwith torch.cuda.graph(g): torch.ones(3, device='cuda')": (
        "DCA-836",
        "cudaStreamBeginCapture, which is not emulated",
    ),
    "import torch.distributed as d; d.init_process_group('nccl', store=d.HashStore(), rank=0, world_size=1)\n"
    "d.all_reduce(torch.ones(3, device='cuda'))": ("DCA-836", "libnccl.so.2 has CUDA's run time linked into it"),
}


@pytest.mark.parametrize("code", ENDS)
def test_what_cannot_be_emulated_ends_with_one_message(code: str, emulate: Emulate) -> None:
    done = emulate("-c", f"import torch\n{code}\nprint('went on')")
    number, text = ENDS[code]
    assert (done.returncode, done.stdout) == (8, "")
    assert done.stderr.count("DCA-") == 1
    assert f"{number}: " in done.stderr
    assert text in done.stderr


TRITON = """
import torch, triton
import triton.language as tl
@triton.jit
def store(x, N: tl.constexpr):
    at = tl.arange(0, N)
    tl.store(x + at, at)
store[(1,)](torch.zeros(16, device="cuda"), 16)
torch.cuda.synchronize()
print("went on")
"""


def test_a_kernel_that_triton_compiles_ends_the_program_with_its_name(emulate: Emulate, tmp_path: Path) -> None:
    (tmp_path / "kernel.py").write_text(TRITON)
    done = emulate(tmp_path / "kernel.py")
    assert (done.returncode, done.stdout) == (8, "")
    assert "DCA-835: the kernel store is launched" in done.stderr


CHILDREN = """
import multiprocessing, os, subprocess, sys
def count(number):
    import torch
    return torch.full((2,), float(number), device="cuda").sum().item()
if __name__ == "__main__":
    code = "import torch; print(torch.ones(3, device='cuda').sum().item(), flush=True)"
    for env in ({}, {"LD_PRELOAD": "", "LD_LIBRARY_PATH": "/nowhere", "PYTHONPATH": "/nowhere"}):
        subprocess.run([sys.executable, "-I", "-c", code], env=env, check=True)
    subprocess.run(["/bin/sh", "-c", f'"{sys.executable}" -c "{code}"'], env={}, check=True)
    for how in ("spawn", "fork", "forkserver"):
        with multiprocessing.get_context(how).Pool(1) as pool:
            print(pool.map(count, [1, 2]), flush=True)
"""


def test_the_processes_of_a_program_have_the_device_too(emulate: Emulate, tmp_path: Path) -> None:
    (tmp_path / "children.py").write_text(CHILDREN)
    done = emulate(tmp_path / "children.py")
    assert (done.returncode, done.stdout) == (0, "3.0\n" * 3 + "[2.0, 4.0]\n" * 3), done.stderr


def test_a_tensor_that_is_sent_to_another_process_is_an_error(emulate: Emulate) -> None:
    code = "import torch.multiprocessing; from multiprocessing.reduction import ForkingPickler as P"
    done = emulate("-c", f"{code}; P.dumps(torch.ones(2, device='cuda'))")
    assert done.returncode == 1
    assert "DCA-836: memory of the emulated device cannot be shared" in done.stderr


# flash-attention's C++ fills the log-sum-exp itself where there are no keys.
MODULE = """
import threading, torch
from vllm.vllm_flash_attn import flash_attn_varlen_func
def attend():
    q, k = (torch.ones(n, h, 128, dtype=torch.bfloat16, device="cuda") for n, h in ((4, 2), (0, 1)))
    starts, none = (torch.tensor([0, n], dtype=torch.int32, device="cuda") for n in (4, 0))
    out, lse = flash_attn_varlen_func(
        q, k, k, 4, starts, 0, none, softmax_scale=1.0, return_softmax_lse=True, out=torch.full_like(q, torch.nan)
    )
    print(out.abs().max().item(), lse.min().item(), flush=True)
attend()
with torch.inference_mode():
    attend()
thread = threading.Thread(target=attend)
thread.start()
thread.join()
"""


def test_operators_that_a_modules_own_code_calls_run_too(emulate: Emulate, tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(MODULE)
    done = emulate(tmp_path / "module.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0.0 inf\n" * 3


PERSISTENT = """
import torch, vllm._custom_ops as ops
x, cache = torch.ones(4, 2, 64, device="cuda"), torch.zeros(2, 16, 2, 64, device="cuda")
slots, scale = torch.tensor([0, 1, 1 << 20, 3], device="cuda"), torch.ones(1, device="cuda")
for _ in range(3):
    try:
        ops.reshape_and_cache_flash(x, x, cache, cache.clone(), slots, "auto", scale, scale)
        torch.cuda.synchronize()
        print("went on")
    except RuntimeError as error:
        print(str(error).splitlines()[0])
for action in (lambda: x + 1, lambda: x.cpu(), lambda: torch.ones(2, device="cuda")):
    try:
        action()
        print("went on")
    except RuntimeError as error:
        print(str(error).splitlines()[0])
"""


def test_a_wrong_access_of_a_kernel_stays_an_error(emulate: Emulate, tmp_path: Path) -> None:
    (tmp_path / "persistent.py").write_text(PERSISTENT)
    done = emulate(tmp_path / "persistent.py")
    # The engine's first line comes before.
    assert done.stdout.splitlines()[-6:] == ["CUDA error: an illegal memory access was encountered"] * 6, done.stderr
    assert "went on" not in done.stdout
    assert "DCA-837: " in done.stderr
    assert "reshape_and_cache_flash" in done.stderr


@pytest.mark.parametrize("arch", ["8.0", "9.0"])
def test_the_engine_takes_its_own_platform(arch: str, emulate: Emulate) -> None:
    code = "from vllm.platforms import current_platform as p; "
    code += "print(p.is_cuda(), *p.get_device_capability(), type(p).__name__)"
    done = emulate("-c", code, options=("--arch", arch))
    assert done.stdout.splitlines()[-1:] == [f"True {arch.replace('.', ' ')} NvmlCudaPlatform"], done.stderr


def test_the_engines_command_line_starts(emulate: Emulate) -> None:
    done = emulate("vllm", "serve", "--help")
    assert done.returncode == 0, done.stderr
    assert "--help=ModelConfig" in done.stdout
