"""Configs of models, made from the few facts that matter here, and ways to spoil them."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

# layers, hidden size, heads, key heads, head_dim, rope_theta, max_position_embeddings
SHAPES: dict[str, tuple[int, int, int, int, int | None, float, int]] = {
    "Qwen2.5-7B-Instruct-1M": (28, 3584, 28, 4, None, 10000000.0, 1010000),
    "Qwen2.5-14B-Instruct-1M": (48, 5120, 40, 8, None, 10000000.0, 1010000),
    "Qwen3-30B-A3B-Instruct-2507": (48, 2048, 32, 4, 128, 10000000.0, 262144),
    "Qwen2.5-7B-Instruct": (28, 3584, 28, 4, None, 1000000.0, 32768),
    "Qwen2.5-14B-Instruct": (48, 5120, 40, 8, None, 1000000.0, 32768),
    "Qwen2-7B-Instruct": (28, 3584, 28, 4, None, 1000000.0, 32768),
    "Qwen1.5-7B-Chat": (32, 4096, 32, 32, None, 1000000.0, 32768),
}
ORDINARY = "Qwen2.5-7B-Instruct"
MILLION = "Qwen2.5-7B-Instruct-1M"
MOE = "Qwen3-30B-A3B-Instruct-2507"
DCA = {"chunk_size": 262144, "local_size": 8192, "original_max_position_embeddings": 262144}
# As its documents have it.
DOCUMENTED = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}


def config(name: str = ORDINARY, **changed: Any) -> dict[str, Any]:
    """A model's config, with some keys changed; None removes one."""
    layers, size, heads, few, dim, base, length = SHAPES[name]
    moe = name.startswith("Qwen3")
    values: dict[str, Any] = {
        "architectures": ["Qwen3MoeForCausalLM" if moe else "Qwen2ForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": size,
        "intermediate_size": 1024,
        "max_position_embeddings": length,
        "max_window_layers": layers,
        "model_type": "qwen3_moe" if moe else "qwen2",
        "num_attention_heads": heads,
        "num_hidden_layers": layers,
        "num_key_value_heads": few,
        "rms_norm_eps": 1e-06,
        "rope_theta": base,
        "sliding_window": None,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "use_sliding_window": False,
        "vocab_size": 152064,
    }
    if dim:
        values["head_dim"] = dim
    if moe:
        values |= {"num_experts": 128, "num_experts_per_tok": 8, "moe_intermediate_size": 768}
    if name.endswith("-1M"):
        values["dual_chunk_attention_config"] = dict(DCA)
    return {key: value for key, value in {**values, **changed}.items() if value is not None or key == "sliding_window"}


def table(layers: int, heads: int, vertical: int = 1000, slash: int = 6096) -> list[dict[str, Any]]:
    return [{str(h): ["vertical_and_slash", vertical, slash, 0.5] for h in range(heads)} for _ in range(layers)]


def write(folder: Path, value: Any, name: str = "config.json", **style: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(json.dumps(value, **({"indent": 2} | style)) + "\n", encoding="utf-8")
    return folder


def listing(folder: Path) -> list[tuple[str, str]]:
    """Names in a folder, each with what it is."""
    return sorted(
        (path.name, f"-> {path.readlink()}" if path.is_symlink() else f"{path.lstat().st_mode:o}")
        for path in folder.iterdir()
    )


# --- spoilt ones ---------------------------------------------------------------------------------------------------

ODD: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1,
    4,
    4.0,
    0.5,
    1e-300,
    1e300,
    10**30,
    10**380,
    "",
    "yarn",
    "4.0",
    "\ud800",
    "\x7f",
    [],
    {},
    [1, 2],
    {"a": 1},
    {"rope_type": "yarn"},
    [[[]]],
    "vertical_and_slash",
    2**63,
    -0.0,
    32768,
    131072.5,
]
KEYS = [
    "max_position_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "dual_chunk_attention_config",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "num_hidden_layers",
    "head_dim",
    "model_type",
    "sliding_window",
    "use_sliding_window",
    "_name_or_path",
    "new key",
    "\u00e9\u4e2d",
    'a"b\\c',
]
INNER = [
    "rope_type",
    "type",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "attn_factor",
    "beta_fast",
    "beta_slow",
    "rope_theta",
    "truncate",
    "chunk_size",
    "local_size",
    "sparse_attention_enabled",
    "sparse_attention_config",
    "full_attention",
]
SCALINGS: list[Any] = [
    dict(DOCUMENTED),
    {**DOCUMENTED, "rope_type": "linear"},
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 32768, "beta_fast": 16, "rope_theta": 1e6},
    {"rope_type": "default", "rope_theta": 1000000.0},
    dict(DCA),
    {"full_attention": {"rope_type": "yarn"}},
]


def changed(chance: random.Random) -> dict[str, Any]:
    """A config with some keys replaced, removed, added or in another order."""
    values = config(chance.choice(list(SHAPES)))
    for _ in range(chance.randrange(5)):
        key = chance.choice(KEYS)
        what = chance.randrange(5)
        if what == 0:
            values.pop(key, None)
        elif what == 1:
            values[key] = chance.choice(ODD)
        elif what == 2:
            values[key] = {**chance.choice(SCALINGS)}
        elif isinstance(values.get(key), dict):
            values[key] = {**values[key], chance.choice(INNER): chance.choice(ODD)}
        else:
            values["rope_scaling"] = {**chance.choice(SCALINGS), chance.choice(INNER): chance.choice(ODD)}
    if chance.random() < 0.3:
        keys = list(values)
        chance.shuffle(keys)
        values = {key: values[key] for key in keys}
    return values


def styled(value: dict[str, Any], chance: random.Random) -> bytes:
    """It as text, in one of the ways that people and programs write JSON."""
    indent = chance.choice([None, 0, 1, 2, 2, 2, 4, "\t"])
    separators = chance.choice([None, None, (",", ":"), (" , ", " : ")]) if indent is None else None
    text = json.dumps(value, indent=indent, separators=separators, ensure_ascii=chance.random() < 0.5 or _odd(value))
    text = chance.choice(["", "", "", "\n", "  "]) + text + chance.choice(["\n", "\n", "", "\n\n", " \t"])
    if chance.random() < 0.2:
        text = text.replace("\n", "\r\n")
    # Spellings of the same number.
    if chance.random() < 0.3:
        text = text.replace("1000000.0", chance.choice(["1e6", "1.0E+6", "1000000.000"]))
    return (b"\xef\xbb\xbf" if chance.random() < 0.1 else b"") + text.encode()


def _odd(value: Any) -> bool:
    return "\\ud800" in json.dumps(value)


def spoilt(data: bytes, chance: random.Random) -> bytes:
    """Bytes that are no such config any more, or hardly."""
    at = chance.randrange(len(data) + 1)
    nested = chance.choice([b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000])
    tokens = [
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1" * 5000,
        b"1e999",
        b"-1e400",
        b"0123",
        b"+1",
        b".5",
        b"'a'",
        b"// x\n",
        b"\xff\xfe",
        b"\xc3",
        b"\x00",
        b'"\\ud800"',
        b'"\\x"',
        b",",
        b"}",
        b'"',
        b'"max_position_embeddings": 1,',
        b'"rope_scaling": null,',
        nested,
    ]
    what = chance.randrange(7)
    if what == 0:
        return data[:at]
    if what == 1:
        return data[:at] + chance.choice(tokens) + data[at:]
    if what == 2:
        # Right behind the first brace: keys twice, and values in their place.
        first = data.find(b"{") + 1
        return (
            data[:first]
            + chance.choice([b'"rope_theta": 1, ', b'"a": ' + chance.choice(tokens) + b", "])
            + data[first:]
        )
    if what == 3:
        return data.replace(b"1000000.0", chance.choice(tokens), 1)
    if what == 4:
        return bytes(byte ^ (chance.randrange(256) if chance.random() < 0.002 else 0) for byte in data)
    if what == 5:
        return chance.choice([b"", b" ", b"\xef\xbb\xbf", b"null", b"[]", b"1", b'"x"', b"{}", b"{", nested])
    return data.decode("utf-8", "replace").encode(chance.choice(["utf-16", "utf-32", "utf-8"]))
