"""Runs torch's own operators on an emulated CUDA device: on the CPU, over the same memory.

torch's CUDA kernels are machine code, which is not emulated. They are replaced at the dispatcher's CUDA key, below
autograd and every mode, so that calls of C++, of other threads and under inference_mode reach them too. What only makes
storage or a view stays torch's own. An operator that the CPU lacks stays as well: its launch ends the program.
"""

from __future__ import annotations

import ctypes
import hashlib
import warnings
from collections.abc import Callable
from typing import Any

import torch

NAMESPACE = "aten"
KEY = "CUDA"
# They have no kernel of the device, or none that launches one: storage, its size, and what is asked about it.
OWN = frozenset(
    (
        "empty.memory_format",
        "empty_strided",
        "empty_like",
        "new_empty",
        "new_empty_strided",
        "resize_",
        "resize_as_",
        "set_",
        "set_.source_Storage",
        "set_.source_Storage_storage_offset",
        "set_.source_Tensor",
        "set_.source_Tensor_storage_offset",
        "record_stream",
        "is_pinned",
        "_pin_memory",
        "is_set_to",
        "lift",
        "_unsafe_view",
        # Of the operators that it is made of, one has its result on the CPU.
        "_pack_padded_sequence",
        "_pack_padded_sequence_backward",
    )
)
# They take tensors of several devices, as torch's own kernels do; the first one is on the device, or all are copied.
ANYWHERE = frozenset(
    (
        "copy",
        "copy_",
        "_to_copy",
        "_copy_from",
        "_copy_from_and_resize",
        "_foreach_copy",
        "_foreach_copy_",
        "_ctc_loss",
        "_ctc_loss_backward",
        "bernoulli",
        "bernoulli_",
    )
)
INDEXED = frozenset(
    (
        "index",
        "index_put",
        "index_put_",
        "_index_put_impl_",
        "_unsafe_index",
        "_unsafe_index_put",
        "_unsafe_masked_index",
    )
)
# The argument of softmax that makes float32 of float16 on the way.
HALF = "half_to_float"
# The state of a generator of CUDA: its seed and its offset, 8 bytes each.
STATE_BYTES = 16
# The offset after each use must be a multiple of this.
OFFSET_STEP = 4
_kept: list[torch.library.Library] = []


def attach() -> None:
    """Replace torch's kernels at the CUDA key."""
    library = torch.library.Library(NAMESPACE, "IMPL")
    device = _Device()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for schema in torch._C._jit_get_all_schemas():
            name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
            if schema.name.startswith(f"{NAMESPACE}::") and _is_replaced(name, schema):
                _replace(library, name.partition("::")[2], _Kernel(schema, device))
    _kept.append(library)


def _is_replaced(name: str, schema: Any) -> bool:
    """Whether an operator has a kernel for the device, and one for the CPU that does the same."""
    if name.partition("::")[2] in OWN or any(one.alias_info and not one.alias_info.is_write for one in schema.returns):
        return False
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    try:
        if has(name, "CompositeImplicitAutograd") and not has(name, KEY):
            return False
        explicit = has(name, "CompositeExplicitAutograd") or has(name, "CompositeExplicitAutogradNonFunctional")
        return bool(explicit or (has(name, KEY) and has(name, "CPU")))
    except RuntimeError:
        # An operator of TorchScript alone.
        return False


def _replace(library: torch.library.Library, name: str, function: Callable[..., Any]) -> None:
    try:
        library.impl(name, function, KEY, allow_override=True)
    except TypeError:
        # Before torch 2.7 nothing needs to be allowed.
        library.impl(name, function, KEY)


class _Device:
    """What is asked of the device itself."""

    def __init__(self) -> None:
        run_time = ctypes.CDLL(None)
        self._pending = ctypes.c_int.in_dll(run_time, "dca_emulation_pending")
        self._synchronize = run_time.cudaStreamSynchronize
        self._synchronize.argtypes = [ctypes.c_void_p]
        self._text = run_time.cudaGetErrorString
        self._text.restype = ctypes.c_char_p

    def settle(self) -> None:
        """Wait for what was queued in the current stream: an operator comes after it."""
        if self._pending.value:
            error = self._synchronize(torch._C._cuda_getCurrentRawStream(torch.cuda.current_device()))
            if error:
                raise RuntimeError(f"CUDA error: {self._text(error).decode()}")


class _Kernel:
    """An operator's kernel for the device.

    Args:
        schema: of the operator.
        device: the emulated device.
    """

    def __init__(self, schema: Any, device: _Device) -> None:
        self._name = schema.name.partition("::")[2]
        self._overload = schema.overload_name or "default"
        self._device = device
        self._positions = [one.name for one in schema.arguments]
        self._outputs = frozenset(
            one.name for one in schema.arguments if one.kwarg_only and one.alias_info and one.alias_info.is_write
        )
        self._operator: Any = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the operator on the CPU; the arguments and the result are the device's."""
        if self._operator is None:
            self._operator = getattr(getattr(torch.ops.aten, self._name), self._overload)
        self._device.settle()
        call = _Call(kwargs.get("device"))
        args = tuple(map(call.down, args))
        kwargs = {name: self._argument(call, name, one) for name, one in kwargs.items()}
        self._refuse_strangers(call)
        if HALF in self._positions and args[self._positions.index(HALF)]:
            # Only the device converts its input itself.
            flag = self._positions.index(HALF)
            args = (args[0].float(), *args[1:flag], False, *args[flag + 1 :])
        if torch.Tag.nondeterministic_seeded in self._operator.tags:
            return call.up(self._random(args, kwargs))
        return call.up(self._operator(*args, **kwargs))

    def _refuse_strangers(self, call: _Call) -> None:
        """Reject tensors of two devices, as torch's own kernels do: on the CPU they look alike."""
        if self._name in ANYWHERE or not (call.of_device and call.of_cpu):
            return
        if self._name not in INDEXED:
            raise RuntimeError(
                "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
                f"(when calling {self._name})"
            )
        if not call.first_of_device:
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")

    def _argument(self, call: _Call, name: str, value: Any) -> Any:
        if name in self._outputs and isinstance(value, torch.Tensor) and value.is_cuda:
            return call.output(value)
        if name == "pin_memory":
            return False
        return call.down(value)

    def _random(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Run an operator that draws numbers; those follow from the state of the device's generator."""
        named = dict(zip(self._positions, args))
        given = kwargs.get("generator", named.get("generator"))
        source = given if given is not None else torch.cuda.default_generators[torch.cuda.current_device()]
        if "generator" not in self._positions:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(_drawn(source))
                return self._operator(*args, **kwargs)
        own = torch.Generator().manual_seed(_drawn(source)) if source.device.type == "cuda" else source
        at = self._positions.index("generator")
        if at < len(args):
            return self._operator(*args[:at], own, *args[at + 1 :], **kwargs)
        return self._operator(*args, **dict(kwargs, generator=own))


def _drawn(source: torch.Generator) -> int:
    """A seed that follows from the state of the device's generator, which is moved on."""
    state = source.get_state()
    content = bytes(state.tolist()[:STATE_BYTES])
    offset = int.from_bytes(content[8:STATE_BYTES], "little") + OFFSET_STEP
    state[8:STATE_BYTES] = torch.tensor(list(offset.to_bytes(8, "little")), dtype=torch.uint8)
    source.set_state(state)
    return int.from_bytes(hashlib.sha256(content).digest()[:7], "little")


def on_cpu(tensor: torch.Tensor) -> torch.Tensor:
    """A CPU tensor over a device tensor's memory; it must not outlive it."""
    storage = tensor.untyped_storage()
    shared = torch._C._construct_storage_from_data_pointer(storage.data_ptr(), torch.device("cpu"), storage.nbytes())
    view = torch.empty(0, dtype=tensor.dtype, device="cpu")
    return view.set_(shared, tensor.storage_offset(), tensor.size(), tensor.stride())


def on_device(tensor: torch.Tensor) -> torch.Tensor:
    """A device tensor with a CPU tensor's values."""
    if tensor.layout is not torch.strided:
        return tensor
    copy = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cuda")
    if tensor.numel():
        on_cpu(copy).copy_(tensor)
    return copy


class _Call:
    """The arguments of one call, on the way to the CPU and back.

    Args:
        device: that the call names, if it does.
    """

    def __init__(self, device: Any) -> None:
        wanted = torch.device("cuda" if device is None else device)
        self._to_device = wanted.type == "cuda"
        if self._to_device and wanted.index:
            # A device that is not there; torch says so.
            torch.empty(0, device=wanted)
        # Whether there are tensors of the device, others with more than a single number, and which came first.
        self.of_device = self.of_cpu = self.first_of_device = False
        # By their identity on the CPU: a tensor is kept with it, so that the identity is not used again.
        self._back: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._outputs: list[tuple[torch.Tensor, torch.Tensor]] = []

    def down(self, value: Any) -> Any:
        """An argument on the CPU."""
        if isinstance(value, torch.Tensor):
            down = on_cpu(value) if value.is_cuda else value
            self.first_of_device |= value.is_cuda and not self._back
            self.of_device |= value.is_cuda
            self.of_cpu |= value.device.type == "cpu" and value.dim() > 0
            self._back[id(down)] = (down, value)
            return down
        if isinstance(value, torch.device) and value.type == "cuda":
            return torch.device("cpu")
        if isinstance(value, (list, tuple)):
            return type(value)(map(self.down, value))
        return value

    def output(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor for a result that is written to the given one afterwards, which then gets its size."""
        self.of_device = True
        down = torch.empty_strided(tensor.size(), tensor.stride(), dtype=tensor.dtype, device="cpu")
        self._back[id(down)] = (down, tensor)
        self._outputs.append((down, tensor))
        return down

    def up(self, value: Any) -> Any:
        """A result on the device."""
        for down, tensor in self._outputs:
            if tensor.size() != down.size():
                tensor.resize_(down.size())
            if down.numel():
                on_cpu(tensor).copy_(down)
        self._outputs = []
        return self._up(value)

    def _up(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            if id(value) in self._back:
                return self._back[id(value)][1]
            return on_device(value) if self._to_device else value
        if isinstance(value, (list, tuple)):
            return type(value)(map(self._up, value))
        return value
