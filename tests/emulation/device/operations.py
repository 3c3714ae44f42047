"""What programs do with torch on a CUDA device; the tests run this file behind the emulated one.

Each function is a test of its own: it compares with the CPU, or with what CUDA and torch document. The program writes a
line of JSON for each, with its name and what went wrong. It needs torch and nothing else.
"""

from __future__ import annotations

import copy
import gc
import io
import json
import threading
import time
import traceback
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

GPU = "cuda"


def same(got: Any, wanted: Any, tolerance: float = 0.0) -> None:
    """Demand a tensor of the device with these values."""
    assert got.is_cuda
    torch.testing.assert_close(got.cpu(), torch.as_tensor(wanted), rtol=tolerance, atol=tolerance)


def fails(action: Any, *words: str) -> None:
    """Demand torch's own error."""
    text = ""
    try:
        action()
    except (RuntimeError, TypeError) as error:
        text = str(error)
    assert text, "it passed"
    assert all(word in text for word in words), text


def operators() -> None:
    x = torch.randn(33, 17)
    for function in (torch.sin, torch.softmax, torch.cumsum, torch.sort, torch.argmax, torch.sum, torch.flip):
        extra = () if function is torch.sin else ((0,),) if function is torch.flip else (0,)
        got, wanted = function(x.to(GPU), *extra), function(x, *extra)
        if isinstance(wanted, tuple):
            same(got[1], wanted[1])
            got, wanted = got[0], wanted[0]
        same(got, wanted, 1e-6)
    same(x.to(GPU) @ x.t().to(GPU), x @ x.t(), 1e-5)
    same(torch.linalg.solve(torch.eye(3, device=GPU) * 2, torch.ones(3, 1, device=GPU)), torch.full((3, 1), 0.5))
    same(torch.fft.fft(x.to(GPU)).real, torch.fft.fft(x).real, 1e-4)
    for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int8):
        same(torch.arange(5, device=GPU).to(dtype) * 2, torch.arange(5).to(dtype) * 2)


def convolutions_and_normalization() -> None:
    layers = torch.nn.Sequential(torch.nn.Conv2d(4, 8, 3, groups=4), torch.nn.BatchNorm2d(8), torch.nn.MaxPool2d(2))
    x = torch.randn(2, 4, 12, 12)
    wanted = layers(x)
    torch.backends.cudnn.enabled = True
    same(copy.deepcopy(layers).to(GPU)(x.to(GPU)), wanted, 1e-5)


def recurrent_layers() -> None:
    for kind in (torch.nn.LSTM, torch.nn.GRU, torch.nn.RNN):
        layer, x = kind(4, 8, 2, bidirectional=True), torch.randn(5, 2, 4)
        twin = copy.deepcopy(layer).to(GPU)
        same(twin(x.to(GPU))[0], layer(x)[0], 1e-6)
        twin(x.to(GPU))[0].sum().backward()
        layer(x)[0].sum().backward()
        same(twin.weight_hh_l0.grad, layer.weight_hh_l0.grad, 1e-4)
        packed = torch.nn.utils.rnn.pack_padded_sequence(x.to(GPU), torch.tensor([5, 3]))
        same(
            twin(packed)[0].data, layer(torch.nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3])))[0].data, 1e-6
        )
    for cell in (torch.nn.LSTMCell(4, 8), torch.nn.GRUCell(4, 8)):
        x, twin = torch.randn(3, 4), copy.deepcopy(cell).to(GPU)
        got, wanted = twin(x.to(GPU)), cell(x)
        same(got[0] if isinstance(got, tuple) else got, wanted[0] if isinstance(wanted, tuple) else wanted, 1e-6)


def attention_whatever_kernel_is_asked_for() -> None:
    from torch.nn.attention import SDPBackend, sdpa_kernel

    q, k, v = torch.randn(3, 1, 2, 9, 16).unbind(0)
    wanted = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    for kernel in (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
        with sdpa_kernel(kernel):
            same(functional.scaled_dot_product_attention(q.to(GPU), k.to(GPU), v.to(GPU), is_causal=True), wanted, 1e-5)


def indexing() -> None:
    x, y = torch.arange(24, device=GPU).view(4, 6), torch.arange(24).view(4, 6)
    for z in (x, y):
        at = torch.tensor([0, 2], device=z.device)
        z[0] = 7
        z[1, z[1] > 8] = -1
        z[at, at] = 100
        z.index_put_((torch.tensor([3], device=z.device),), torch.tensor([5], device=z.device), accumulate=True)
        z.scatter_(1, at[:, None], 9)
        z[:, ::2] += 1
    same(x, y)
    assert x[1, 2].item() == y[1, 2].item()
    same(x[torch.tensor([True, False, True, False])], y[torch.tensor([True, False, True, False])])
    same(x[x > 20], y[y > 20])


def views_that_are_not_contiguous() -> None:
    x, y = torch.arange(60, device=GPU).view(3, 4, 5), torch.arange(60).view(3, 4, 5)
    for z in (x, y):
        z.transpose(0, 2)[1:, ::2].mul_(2)
        z.diagonal(dim1=0, dim2=1).add_(3)
        z.as_strided((2, 2), (1, 7), 3).fill_(-4)
        z.permute(2, 0, 1).unfold(0, 2, 1).sub_(1)
    same(x, y)
    turned = torch.randn(4, 6).t()
    assert turned.to(GPU).stride() == turned.stride()
    same(turned.to(GPU), turned)


def empty_tensors() -> None:
    nothing = torch.empty(0, device=GPU)
    assert nothing.sum().item() == 0
    same(torch.cat([nothing, torch.ones(2, device=GPU)]), torch.ones(2))
    same(torch.empty(2, 0, device=GPU) @ torch.empty(0, 3, device=GPU), torch.zeros(2, 3))
    assert torch.empty(0, 5, device=GPU).t().contiguous().cpu().shape == (5, 0)
    assert torch.empty(0).to(GPU).tolist() == []


def outputs_that_are_given() -> None:
    one, target, view = torch.ones(3, device=GPU), torch.empty(0, device=GPU), torch.zeros(6, device=GPU)
    torch.mul(one, 3, out=target)
    torch.add(one, one, out=view[::2])
    same(target, [3.0] * 3)
    same(view, [2.0, 0, 2, 0, 2, 0])


def gradients() -> None:
    x = torch.randn(4, 4, requires_grad=True)
    y = x.detach().to(GPU).requires_grad_()
    for z in (x, y):
        (z.t()[1:].exp() * z[0, 0]).sum().backward()
    same(y.grad, x.grad, 1e-5)
    third = torch.tensor(3.0, device=GPU, requires_grad=True)
    (slope,) = torch.autograd.grad(third**3, third, create_graph=True)
    assert torch.autograd.grad(slope, third)[0].item() == 18


def training() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 3)).to(GPU)
    optimizer, scaler = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=True), torch.amp.GradScaler(GPU)
    x, y = torch.randn(32, 8, device=GPU), torch.randint(3, (32,), device=GPU)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        with torch.autocast(GPU, dtype=torch.float16):
            loss = functional.cross_entropy(model(x), y)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def no_grad() -> None:
    x = torch.ones(3, device=GPU, requires_grad=True)
    with torch.no_grad():
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad


def inference_mode() -> None:
    with torch.inference_mode():
        x = torch.nn.Linear(3, 3).to(GPU)(torch.ones(2, 3, device=GPU))
        x.add_(1)
        x[0] = 5
        assert x.is_inference()
        same(x[0].view(3, 1).expand(3, 2).contiguous(), [[5.0, 5.0]] * 3)


def other_threads() -> None:
    results: list[Any] = []

    def work(number: int) -> None:
        try:
            x = torch.full((8, 8), float(number), device=GPU, requires_grad=True)
            (x @ x).sum().backward()
            with torch.inference_mode():
                results.append((x * 2).sum().item() == 128 * number and x.grad is not None and x.grad.is_cuda)
        except BaseException as error:
            results.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 6, results


def copies() -> None:
    x = torch.arange(1000)
    stream, done = torch.cuda.Stream(), torch.cuda.Event()
    pinned, back = x.pin_memory(), torch.empty(1000, dtype=torch.long).pin_memory()
    assert pinned.is_pinned()
    with torch.cuda.stream(stream):
        y = pinned.to(GPU, non_blocking=True)
        y.add_(1)
        back.copy_(y, non_blocking=True)
        done.record()
    done.synchronize()
    assert torch.equal(back, x + 1)
    torch.cuda.current_stream().wait_stream(stream)
    same(y * 2, 2 * x + 2)
    half = torch.zeros(1000)
    half[::2].copy_(y.to(torch.float16)[::2])
    assert torch.equal(half[::2], (x + 1).half().float()[::2])
    assert half[1::2].eq(0).all()


def streams_and_events() -> None:
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    time.sleep(0.05)
    end.record()
    torch.cuda.synchronize()
    assert end.query()
    assert 40 < start.elapsed_time(end) < 10_000
    high = torch.cuda.Stream(priority=-1)
    high.wait_event(end)
    high.synchronize()
    assert high.query()
    assert high != torch.cuda.current_stream()
    x = torch.ones(4, device=GPU)
    x.record_stream(high)


def random_numbers() -> None:
    torch.manual_seed(3)
    first, second = torch.randn(50, device=GPU), torch.randn(50, device=GPU)
    torch.manual_seed(3)
    same(torch.randn(50, device=GPU), first.cpu())
    assert not torch.equal(first, second)
    own = torch.Generator(GPU).manual_seed(1)
    drawn = torch.rand(5, device=GPU, generator=own)
    same(torch.rand(5, device=GPU, generator=own.manual_seed(1)), drawn.cpu())
    state = torch.cuda.get_rng_state()
    kept = functional.dropout(torch.ones(64, device=GPU))
    torch.cuda.set_rng_state(state)
    same(functional.dropout(torch.ones(64, device=GPU)), kept.cpu())


def kept_and_copied_tensors() -> None:
    x, file = torch.ones(3, device=GPU), io.BytesIO()
    torch.save({"x": x}, file)
    for place in (None, "cpu"):
        file.seek(0)
        assert torch.load(file, map_location=place)["x"].is_cuda is (place is None)
    other = copy.deepcopy(x)
    torch.from_dlpack(other).add_(1)
    same(other, [2.0] * 3)
    assert "device='cuda:0'" in repr(x)
    fails(x.numpy, "Use Tensor.cpu()")


def the_default_device() -> None:
    with torch.device(GPU):
        assert all(one.is_cuda for one in (torch.ones(2), torch.tensor([1]), torch.arange(3), torch.eye(2)))
        assert torch.nn.Linear(2, 2)(torch.ones(2)).is_cuda


def tensors_of_two_devices() -> None:
    x, cpu, at = torch.ones(3, device=GPU), torch.ones(3), torch.tensor([0])
    same(x * torch.tensor(2.0), [2.0] * 3)
    same(x[at], [1.0])
    for action in (
        lambda: x + cpu,
        lambda: x.add_(cpu),
        lambda: torch.add(cpu, 1, out=x),
        lambda: torch.cat([x, cpu]),
        lambda: functional.linear(cpu, x.view(1, 3)),
        lambda: functional.embedding(at, x.view(3, 1)),
        lambda: torch.where(x > 0, x, cpu),
    ):
        fails(action, "Expected all tensors to be on the same device")
    fails(lambda: cpu[at.to(GPU)], "indices should be either on cpu")


def a_second_device() -> None:
    assert torch.cuda.device_count() == 1
    for action in (
        lambda: torch.ones(2, device="cuda:1"),
        lambda: torch.ones(2).to("cuda:1"),
        lambda: torch.ones(2, device=GPU).to("cuda:2"),
        lambda: torch.randn(2, device="cuda:1"),
        lambda: torch.cuda.set_device(1),
    ):
        fails(action, "invalid device ordinal")
    # As on a GPU, the device works on after it.
    same(torch.ones(2, device="cuda:0") + 1, [2.0, 2.0])


def memory_is_counted() -> None:
    gc.collect()
    free, total = torch.cuda.mem_get_info()
    before = torch.cuda.memory_allocated()
    x = torch.empty(1 << 26, dtype=torch.uint8, device=GPU)
    assert torch.cuda.mem_get_info() == (free - (1 << 26), total)
    y = torch.empty(1 << 26, dtype=torch.uint8, device=GPU)
    assert torch.cuda.memory_allocated() - before == 1 << 27
    del y
    assert torch.cuda.max_memory_allocated() >= 1 << 27
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == torch.cuda.memory_allocated() == before + (1 << 26)
    del x
    assert torch.cuda.memory_allocated() == before
    fails(lambda: torch.empty(1 << 50, dtype=torch.uint8, device=GPU), "out of memory")
    same(torch.ones(2, device=GPU), [1.0, 1.0])


def compiled_functions() -> None:
    @torch.jit.script  # type: ignore[untyped-decorator]
    def scripted(x: Tensor) -> Tensor:
        return torch.relu(x) + x.sin()

    x = torch.randn(9)
    for _ in range(4):
        same(scripted(x.to(GPU)), torch.relu(x) + x.sin(), 1e-6)
    traced = torch.compile(lambda y: torch.relu(y) + y.sin(), backend="eager")
    same(traced(x.to(GPU)), torch.relu(x) + x.sin(), 1e-6)


def profiles() -> None:
    with torch.profiler.profile() as profile:
        torch.ones(3, device=GPU).sin_()
    assert "aten::sin_" in {event.key for event in profile.key_averages()}


def facts_of_the_device() -> None:
    properties = torch.cuda.get_device_properties(0)
    assert torch.cuda.is_available()
    assert torch.cuda.get_device_capability() == (properties.major, properties.minor) == (8, 0)
    assert torch.cuda.current_device() == 0
    assert torch.cuda.is_bf16_supported()


def main() -> None:
    """Run every test of this file."""
    for name, function in list(globals().items()):
        if getattr(function, "__module__", "") != __name__ or name in ("same", "fails", "main"):
            continue
        try:
            function()
            wrong = ""
        except Exception:
            wrong = traceback.format_exc()
        print(json.dumps({"name": name, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main()
