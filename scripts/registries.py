"""Prints a release's entry of build/classes/registries.toml: what its vLLM has that the release before did not.

    python scripts/registries.py 0.34.0 SOURCE --transformers FOLDER

SOURCE is the unpacked source distribution of the release, and FOLDER the `transformers` package that it is tested with,
which requirements/test of the source names. `--removed` prints the classes that vLLM's own table of earlier ones names
instead, with their last version. `--by-transformers` prints the classes that vLLM may take from transformers; run it
with the Python of an environment that has the transformers package (`dca engine make` makes one).

Only names and versions are read, without importing vLLM.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

GONE = "_PREVIOUSLY_SUPPORTED_MODELS"
ELSEWHERE = ("_VLLM_MODELS", "_OOT_SUPPORTED_MODELS", GONE)
GENERATING = ("ForCausalLM", "ForConditionalGeneration", "LMHeadModel")
REGISTRY = "vllm/model_executor/models/registry.py"
TYPES = "vllm/transformers_utils/config.py"


def _assigned(file: Path) -> Iterator[tuple[str, ast.expr]]:
    """The names that a module assigns, each with its value."""
    for node in ast.parse(file.read_text("utf-8")).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        value = getattr(node, "value", None)
        if isinstance(target, ast.Name) and isinstance(value, ast.expr):
            yield target.id, value


def tables(file: Path) -> dict[str, dict[str, Any]]:
    """The tables of a registry.py, by name; values that are no constants are None."""
    found = {}
    for name, value in _assigned(file):
        if name.endswith("_MODELS") and isinstance(value, ast.Dict):
            pairs = zip(value.keys, value.values, strict=True)
            found[name] = {
                str(key.value): getattr(one, "value", None) for key, one in pairs if isinstance(key, ast.Constant)
            }
    return found


def classes(source: Path) -> set[str]:
    """The classes of models that a release has."""
    found = tables(source / REGISTRY)
    return {name for table, names in found.items() if table not in ELSEWHERE for name in names}


def _keys(value: ast.expr, file: Path) -> Iterator[str]:
    """The keys of a table: a literal, one filled by keywords or pairs, and those that it is made of."""
    if isinstance(value, ast.Name):
        yield from keys(file, value.id)
    elif isinstance(value, ast.Dict):
        for key, one in zip(value.keys, value.values, strict=True):
            if isinstance(key, ast.Constant):
                yield str(key.value)
            elif key is None:
                yield from _keys(one, file)
    elif isinstance(value, ast.Call):
        for one in value.args:
            yield from _keys(one, file)
        for keyword in value.keywords:
            yield from [keyword.arg] if keyword.arg else _keys(keyword.value, file)
    elif isinstance(value, (ast.List, ast.Tuple)):
        for pair in value.elts:
            if isinstance(pair, ast.Tuple) and pair.elts and isinstance(pair.elts[0], ast.Constant):
                yield str(pair.elts[0].value)


@cache
def keys(file: Path, table: str) -> frozenset[str]:
    """The keys of a module's table, also those that it adds by `update`, or when it replaces the table."""
    values = [value for name, value in _assigned(file) if name == table]
    for node in ast.parse(file.read_text("utf-8")).body:
        call = node.value if isinstance(node, ast.Expr) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) == f"{table}.update":
            values += call.args
    # A table that is made of itself has what it had.
    own = [one for value in values for one in ast.walk(value) if isinstance(one, ast.Name) and one.id == table]
    for name in own:
        name.id = ""
    return frozenset(key for value in values for key in _keys(value, file))


def types(source: Path, transformers: Path) -> set[str]:
    """The types of models (`model_type`) that a release and its transformers have a configuration class for."""
    auto = transformers / "models" / "auto"
    # Newer releases of transformers have most of the table in a module of its own.
    files = [auto / name for name in ("configuration_auto.py", "auto_mappings.py") if (auto / name).is_file()]
    return set(keys(source / TYPES, "_CONFIG_REGISTRY")).union(*(keys(file, "CONFIG_MAPPING_NAMES") for file in files))


def tokenizers(transformers: Path) -> set[str]:
    """The classes of tokenizers that transformers has."""
    tree = ast.parse((transformers / "models" / "auto" / "tokenization_auto.py").read_text("utf-8"))
    texts = {str(one.value) for one in ast.walk(tree) if isinstance(one, ast.Constant)}
    return {text for text in texts if re.fullmatch(r"[A-Z]\w*Tokenizer(Fast)?", text)}


def by_transformers() -> list[str]:
    """Classes that vLLM can take from transformers."""
    import transformers  # type: ignore[import-not-found, unused-ignore]  # in the environment that runs this

    names = (name for name in dir(transformers) if name.endswith(GENERATING))
    return [name for name in names if fits(transformers, name)]


def fits(transformers: Any, name: str) -> bool:
    """Whether a class is one that vLLM's layers can replace parts of; some need packages that are not there."""
    try:
        kind = getattr(transformers, name)
        return bool(kind.is_backend_compatible() or kind._can_set_attn_implementation())
    except Exception:
        return False


def listed(name: str, values: list[str]) -> str:
    """A list in TOML, in lines of at most 128 columns; empty without values."""
    if not values:
        return ""
    lines, line = [], "   "
    for value in values:
        one = f" {json.dumps(value)},"
        if len(line) + len(one) > 128:
            lines.append(line)
            line = "   "
        line += one
    return "\n".join([f"{name} = [", *lines, line, "]"]) + "\n"


def entry(version: str, source: Path, transformers: Path) -> str:
    """A release's entry: what it has that the one before in the file does not, and the other way round."""
    from dca.catalogue import registries, releases

    older = [one for one in registries.load().all_releases() if releases.order(one.version) < releases.order(version)]
    now = {"classes": classes(source), "types": types(source, transformers), "tokenizers": tokenizers(transformers)}
    text = f"[[releases]]\nversion = {json.dumps(version)}\n"
    for name, names in now.items():
        before = getattr(older[-1], name) if older else frozenset()
        text += listed(name, sorted(names - before)) + listed(f"no_{name}", sorted(before - names))
    return text + "\n"


def main() -> None:
    """Print the entry."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("version")
    parser.add_argument("source", type=Path, nargs="?")
    parser.add_argument("--transformers", type=Path)
    parser.add_argument("--removed", action="store_true")
    parser.add_argument("--by-transformers", action="store_true")
    asked = parser.parse_args()
    if asked.by_transformers:
        text = f"[[by_transformers]]\nfrom = {json.dumps(asked.version)}\n" + listed("classes", by_transformers())
    elif asked.removed:
        pairs = sorted(tables(asked.source / REGISTRY)[GONE].items())
        text = "[removed]\n" + "".join(f"{name} = {json.dumps(last)}\n" for name, last in pairs)
    else:
        text = entry(asked.version, asked.source, asked.transformers)
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
