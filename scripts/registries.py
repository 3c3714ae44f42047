"""Prints a release's entry of build/classes/registries.toml: the classes of models that its vLLM has.

Run it in an environment with the release's transformers (`dca engine make` makes one); for a release without one, that
of a newer release names more classes than it may serve, which keeps errors away that are none:

    ENVIRONMENT/bin/python scripts/registries.py 0.33.0 VLLM/model_executor/models/registry.py [--removed]

Only names and versions are read, without importing vLLM. With --removed it prints the classes that vLLM's own table of
earlier ones names instead, with their last version.
"""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path
from typing import Any

GONE = "_PREVIOUSLY_SUPPORTED_MODELS"
ELSEWHERE = ("_VLLM_MODELS", "_OOT_SUPPORTED_MODELS", GONE)
GENERATING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")


def tables(file: Path) -> dict[str, dict[str, Any]]:
    """The tables of a registry.py, by name; values that are no constants are None."""
    found = {}
    for node in ast.parse(file.read_text("utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and target.id.endswith("_MODELS") and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            found[target.id] = {
                str(key.value): getattr(one, "value", None) for key, one in pairs if isinstance(key, ast.Constant)
            }
    return found


def by_transformers(own: set[str]) -> list[str]:
    """Classes that vLLM can take from transformers, and does not have itself."""
    import transformers  # type: ignore[import-not-found, unused-ignore]  # in the environment that runs this

    names = (name for name in dir(transformers) if name.endswith(GENERATING) and name not in own)
    return [name for name in names if fits(transformers, name)]


def fits(transformers: Any, name: str) -> bool:
    """Whether a class is one that vLLM's layers can replace parts of; some need packages that are not there."""
    try:
        kind = getattr(transformers, name)
        return bool(kind.is_backend_compatible() or kind._can_set_attn_implementation())
    except Exception:
        return False


def listed(name: str, values: list[str]) -> str:
    """A list in TOML, in lines of at most 128 columns."""
    lines, line = [], "   "
    for value in values:
        one = f" {json.dumps(value)},"
        if len(line) + len(one) > 128:
            lines.append(line)
            line = "   "
        line += one
    return "\n".join([f"{name} = [", *lines, line, "]"])


def main() -> None:
    """Print the entry."""
    version, file = sys.argv[1], Path(sys.argv[2])
    found = tables(file)
    if "--removed" in sys.argv:
        pairs = sorted(found[GONE].items())
        sys.stdout.write("[removed]\n" + "".join(f"{name} = {json.dumps(last)}\n" for name, last in pairs))
        return
    own = {name for table, names in found.items() if table not in ELSEWHERE for name in names}
    sys.stdout.write(f"[[registries]]\nversion = {json.dumps(version)}\n")
    sys.stdout.write(listed("classes", sorted(own)) + "\n")
    sys.stdout.write(listed("by_transformers", sorted(by_transformers(own))) + "\n\n")


if __name__ == "__main__":
    main()
