"""Prints build/classes/classes.toml: what transformers' classes take for what a config.json does not state.

Run it in an environment with transformers (`dca config readers --install transformers-5` makes one):

    PYTHONPATH=READER ENVIRONMENT/bin/python scripts/class_defaults.py > build/classes/classes.toml

Only values that a class takes whatever the others are belong in it: whether one changes with another is tried out by
doubling that other one. The lists and tables before it are written by hand, and copied from it.
"""

from __future__ import annotations

import importlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

NUMBERS = (
    "num_hidden_layers",
    "hidden_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
    "sliding_window",
)
FILE = Path(__file__).resolve().parent.parent / "build/classes/classes.toml"


def value(config: Any, name: str) -> Any:
    """A value of a config; None for one that it does not have, or has for each layer."""
    vars(config)["allow_global_per_layer_attribute_access"] = True
    try:
        return getattr(config, name, None)
    except Exception:
        return None


def made(kind: Any, **given: int) -> Any:
    """A config of a class; None for values that it rejects."""
    try:
        return kind(**given)
    except Exception:
        return None


def pattern(types: Any) -> int:
    """Every how many layers one has full attention, the last of each; 0 when all have, or it is not so."""
    if not isinstance(types, list) or "sliding_attention" not in types or "full_attention" not in types:
        return 0
    every = types.index("full_attention") + 1
    same = all((name == "full_attention") == ((index + 1) % every == 0) for index, name in enumerate(types))
    return every if same else 0


def base(config: Any) -> float | None:
    """The default rope_theta of the layers with full attention."""
    own = value(config, "rope_parameters")
    if not isinstance(own, dict):
        return None
    own = own.get("full_attention", own)
    theta = own.get("rope_theta") if isinstance(own, dict) else None
    return float(theta) if isinstance(theta, (int, float)) else None


def defaults(kind: Any) -> dict[str, Any]:
    """The values that a class takes whatever the others are."""
    config = made(kind)
    if config is None or value(config, "text_config") is not None:
        return {}
    found: dict[str, Any] = {name: value(config, name) for name in NUMBERS}
    usual = {name: one for name, one in found.items() if isinstance(one, int) and not isinstance(one, bool) and one > 0}
    found = dict(usual)
    for other, name in itertools.product(("hidden_size", "num_attention_heads"), tuple(found)):
        if other in usual and other != name:
            twice = made(kind, **{other: 2 * usual[other]})
            if twice is None or value(twice, name) != usual[name]:
                found.pop(name, None)
    if value(config, "use_sliding_window") is False:
        found.pop("sliding_window", None)
    if every := pattern(value(config, "layer_types")):
        found["sliding_window_pattern"] = every
    tied, theta = value(config, "tie_word_embeddings"), base(config)
    if tied is True:
        found["tie_word_embeddings"] = True
    if theta is not None:
        found["rope_theta"] = theta
    return found


def main() -> None:
    """Print the file."""
    transformers = importlib.import_module("transformers")
    transformers.logging.set_verbosity_error()
    table = importlib.import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    causal = importlib.import_module("transformers.models.auto.modeling_auto").MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    names = sorted(name for name in table.keys() if name in causal or name.endswith(("_text", "_text_model")))  # noqa: SIM118
    before = FILE.read_text("utf-8").partition("\n[defaults]")[0].strip()
    sys.stdout.write(f"{before}\n\n[defaults]\n# transformers {transformers.__version__}\n")
    for name in names:
        found = defaults(table[name])
        if found.get("hidden_size") and (name in causal or "rope_theta" in found):
            words = ", ".join(f"{key} = {json.dumps(one)}" for key, one in found.items())
            sys.stdout.write(f"{json.dumps(name)} = {{ {words} }}\n")


if __name__ == "__main__":
    main()
