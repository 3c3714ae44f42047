"""Makes a tiny random Qwen2 that chats, with a token for every byte.

As a program: the one argument is the folder to make.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = (
    "{% for one in messages %}<|im_start|>{{ one.role }}\n{{ one.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make(folder: Path, *, positions: int, heads: int, dim: int) -> None:
    """Write a model of two layers and its tokenizer.

    Args:
        folder: to make.
        positions: tokens of the longest request.
        heads: of the queries; half as many of the keys.
        dim: of a head; engines have kernels for some only.
    """
    # The folder with the packages is put in front only once this module has been found.
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder.mkdir(parents=True)
    names = [*sorted(ByteLevel.alphabet()), *SPECIAL]
    vocabulary = {name: number for number, name in enumerate(names)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    about = {
        "tokenizer_class": "Qwen2Tokenizer",
        "model_max_length": positions,
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
        hidden_size=heads * dim,
        intermediate_size=2 * heads * dim,
        num_hidden_layers=2,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=positions,
        bos_token_id=vocabulary[SPECIAL[0]],
        eos_token_id=vocabulary[SPECIAL[2]],
        pad_token_id=vocabulary[SPECIAL[0]],
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    make(Path(sys.argv[1]), positions=16384, heads=4, dim=32)
