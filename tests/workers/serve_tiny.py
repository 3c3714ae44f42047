"""Makes a tiny random Qwen2 and serves it with transformers' own server.

Arguments: a folder with the packages of that server, the folder of the hub's cache, which the model is put into, and a
port.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

PACKAGES, HUB, PORT = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
sys.path.insert(0, PACKAGES)
os.environ |= {"HF_HUB_CACHE": str(HUB), "HF_HUB_OFFLINE": "1"}

import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.cli.transformers import main

NAME, REVISION = "tiny/random", "0" * 40
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(folder: Path) -> None:
    """A model of two layers, and a tokenizer with a token for every byte."""
    folder.mkdir(parents=True)
    names = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    vocabulary = {name: number for number, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    about = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": 4096,
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "unk_token": SPECIAL[0],
        "chat_template": TEMPLATE,
        "additional_special_tokens": list(SPECIAL[1:]),
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(names),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=vocabulary[SPECIAL[0]],
        eos_token_id=vocabulary[SPECIAL[2]],
        pad_token_id=vocabulary[SPECIAL[0]],
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    model = HUB / f"models--{NAME.replace('/', '--')}"
    make(model / "snapshots" / REVISION)
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
