"""Makes vLLM believe in a GPU that is not there: tensors lie on the CPU and say that they are on the GPU."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

MEMORY = 80 << 30


def load_driver(stand_in: str) -> None:
    """Load the driver, or its stand-in, so that modules that are linked with it load."""
    try:
        ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
    except OSError:
        ctypes.CDLL(stand_in, mode=ctypes.RTLD_GLOBAL)


def simulate_platform(major: int, minor: int) -> None:
    """Make the current platform a CUDA one of some compute capability."""
    import vllm.platforms
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class SimulatedGpu(NonNvmlCudaPlatform):
        """A CUDA platform that answers for a GPU which is not there."""

        dist_backend = "gloo"

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(major, minor)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "simulated"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return MEMORY

        @classmethod
        def is_fully_connected(cls, device_ids: list[int]) -> bool:
            return True

        @classmethod
        def get_current_memory_usage(cls, device: Any = None) -> float:
            return 0.0

        @classmethod
        def check_if_supports_dtype(cls, torch_dtype: torch.dtype) -> None:
            return None

    vllm.platforms._current_platform = SimulatedGpu()
    torch.cuda.get_device_capability = lambda device=None: (major, minor)


class _OnCpu(TorchFunctionMode):
    """Puts on the CPU whatever is asked to go to the GPU."""

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        if func is torch.Tensor.cuda:
            return args[0]
        if func is torch.Tensor.pin_memory:
            return args[0]
        given = {key: _cpu(value) for key, value in (kwargs or {}).items()}
        if given.get("pin_memory"):
            given["pin_memory"] = False
        return func(*(_cpu(value) for value in args), **given)


def _cpu(value: Any) -> Any:
    if isinstance(value, torch.device) and value.type == "cuda":
        return torch.device("cpu")
    return "cpu" if isinstance(value, str) and (value == "cuda" or value.startswith("cuda:")) else value


class _Nothing:
    """A stream, an event or a graph: anything may be asked of it, and nothing happens."""

    def __init__(self, *_args: Any, **_kwargs: Any) -> None:
        self.cuda_stream = 0

    def __enter__(self) -> _Nothing:
        return self

    def __exit__(self, *_args: Any) -> None:
        return None

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *_args, **_kwargs: None


class _Properties:
    name, total_memory, multi_processor_count = "simulated", MEMORY, 132
    warp_size, shared_memory_per_block, regs_per_multiprocessor = 32, 49152, 65536

    def __init__(self, major: int, minor: int) -> None:
        self.major, self.minor = major, minor


class _Generator(torch.Generator):
    """Random numbers on the CPU, whatever device was asked for."""

    def __new__(cls, device: Any = None) -> _Generator:
        generator: _Generator = super().__new__(cls, torch.device("cpu"))
        return generator


def _over_gloo(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with gloo in place of NCCL."""

    def call(*given: Any, **named: Any) -> Any:
        named = {key: "gloo" if value == "nccl" else value for key, value in named.items()}
        return function(*("gloo" if value == "nccl" else value for value in given), **named)

    return call


def simulate_tensors(major: int, minor: int) -> None:
    """Let tensors lie on the CPU and say that they are on the GPU, and let torch.cuda answer without one."""
    _OnCpu().__enter__()
    torch.Tensor.is_cuda = property(lambda _self: True)
    torch.Tensor.is_pinned = lambda _self, *_args, **_kwargs: True
    torch.Generator = _Generator
    for name in ("init_process_group", "new_group"):
        setattr(torch.distributed, name, _over_gloo(getattr(torch.distributed, name)))
    cuda = torch.cuda
    cuda.is_available = lambda: True
    cuda.device_count = lambda: 1
    cuda.current_device = lambda: 0
    # A little less is free each time: vLLM insists that a profiling run has used some.
    asked = itertools.count(1)
    cuda.mem_get_info = lambda device=None: (MEMORY - (next(asked) << 26), MEMORY)
    cuda.get_device_properties = lambda device=None: _Properties(major, minor)
    cuda.get_device_name = lambda device=None: "simulated"
    cuda.memory_stats = lambda device=None: {"allocated_bytes.all.peak": 0, "allocated_bytes.all.current": 0}
    cuda.memory_reserved = cuda.memory_allocated = cuda.max_memory_allocated = lambda device=None: 0
    cuda.is_current_stream_capturing = lambda: False
    for name in (
        "set_device",
        "synchronize",
        "empty_cache",
        "reset_peak_memory_stats",
        "manual_seed_all",
        "set_stream",
    ):
        setattr(cuda, name, lambda *_args, **_kwargs: None)
    for name in ("Stream", "Event", "CUDAGraph"):
        setattr(cuda, name, _Nothing)
    for name in ("stream", "device", "current_stream", "default_stream", "graph"):
        setattr(cuda, name, lambda *_args, **_kwargs: _Nothing())


@contextlib.contextmanager
def devices_told() -> Iterator[None]:
    """Let tensors name the GPU as their device as well.

    Not always: inside of an op that Python implements nothing puts on the CPU what is asked to go to such a device.
    """
    before = torch.Tensor.device
    torch.Tensor.device = property(lambda _self: torch.device("cuda", 0))
    yield
    torch.Tensor.device = before


def register_on_cpu() -> None:
    """Let vLLM register its own Python ops for the CPU, where the tensors are; to be called before it does."""
    from vllm import utils

    register = utils.direct_register_custom_op
    utils.direct_register_custom_op = lambda *given, **named: register(*given, **{**named, "dispatch_key": "CPU"})


def simulate_triton() -> None:
    """Let Triton's kernels be launched without running: what they would write stays as it was."""
    from triton.runtime import driver
    from triton.runtime.jit import JITFunction

    driver.set_active(_Nothing())
    JITFunction.run = lambda *_args, **_kwargs: None
