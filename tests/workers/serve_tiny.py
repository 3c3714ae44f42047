"""Makes a tiny random Qwen2 and serves it with transformers' own server.

Arguments: a folder with the packages of that server, the folder of the hub's cache, which the model is put into, and a
port.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PACKAGES, HUB, PORT = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
sys.path[:0] = [PACKAGES, str(Path(__file__).parent)]
os.environ |= {"HF_HUB_CACHE": str(HUB), "HF_HUB_OFFLINE": "1"}

import tiny_chat
import torch
from transformers.cli.transformers import main

NAME, REVISION = "tiny/random", "0" * 40


if __name__ == "__main__":
    model = HUB / f"models--{NAME.replace('/', '--')}"
    tiny_chat.make(model / "snapshots" / REVISION, positions=4096, heads=4, dim=8)
    (model / "refs").mkdir()
    (model / "refs/main").write_text(REVISION)
    torch.set_num_threads(1)
    sys.argv = [
        "transformers",
        "serve",
        NAME,
        "--host",
        "127.0.0.1",
        "--port",
        PORT,
        "--device",
        "cpu",
        "--dtype",
        "float32",
    ]
    main()
