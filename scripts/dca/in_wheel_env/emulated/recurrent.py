"""Recurrent layers on an emulated CUDA device, made of operators that the CPU has too.

torch makes them of kernels that only a GPU has, and chooses those by a tensor's device.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear

# Whole layers, which torch has in Python as well.
LAYERS = ("lstm.input", "lstm.data", "gru.input", "gru.data")
KEYS = ("AutogradCUDA", "CUDA")
_kept: list[torch.library.Library] = []


def attach() -> None:
    """Replace layers and cells, with and without autograd."""
    from torch._decomp import decomposition_table

    library = torch.library.Library("aten", "IMPL")
    for key in KEYS:
        for name in LAYERS:
            packet, _, overload = name.partition(".")
            library.impl(name, decomposition_table[getattr(getattr(torch.ops.aten, packet), overload)], key)
        library.impl("lstm_cell", lstm_cell, key)
        library.impl("gru_cell", gru_cell, key)
    _kept.append(library)


def lstm_cell(
    x: Tensor, state: list[Tensor], w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """One step, as torch.nn.LSTMCell documents it: the new hidden state and cell, [batch, hidden]."""
    hidden, cell = state
    enter, forget, value, leave = (linear(x, w_x, b_x) + linear(hidden, w_h, b_h)).chunk(4, 1)
    cell = forget.sigmoid() * cell + enter.sigmoid() * value.tanh()
    return leave.sigmoid() * cell.tanh(), cell


def gru_cell(
    x: Tensor, hidden: Tensor, w_x: Tensor, w_h: Tensor, b_x: Tensor | None = None, b_h: Tensor | None = None
) -> Tensor:
    """One step, as torch.nn.GRUCell documents it: the new hidden state, [batch, hidden]."""
    reset_x, update_x, new_x = linear(x, w_x, b_x).chunk(3, 1)
    reset_h, update_h, new_h = linear(hidden, w_h, b_h).chunk(3, 1)
    new = (new_x + (reset_x + reset_h).sigmoid() * new_h).tanh()
    return new + (update_x + update_h).sigmoid() * (hidden - new)
