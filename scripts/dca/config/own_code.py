"""What of a model is Python code of its own (`auto_map`), for which a release of vLLM has no class itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dca.catalogue.registries import Release
from dca.config import folder, text
from dca.foundation.errors import DcaError

TOKENIZER = "tokenizer_config.json"


def of(config: dict[str, Any], tokenizer: dict[str, Any], release: Release) -> Iterator[str]:
    """The parts, in words; transformers takes a class of its own where it has one, whatever `auto_map` says.

    Args:
        config: content of config.json.
        tokenizer: content of tokenizer_config.json; empty without one.
        release: of vLLM.
    """
    kind = config.get("model_type")
    if _brought(config, "AutoConfig") and kind not in release.types:
        yield f"the configuration class of the type `{kind}`" if kind else "its configuration class"
    name = tokenizer.get("tokenizer_class")
    if _brought(tokenizer, "AutoTokenizer") and isinstance(name, str) and not _known(name, release):
        yield f"the tokenizer `{name}`"


def _brought(part: dict[str, Any], name: str) -> bool:
    own = part.get("auto_map")
    return isinstance(own, dict) and bool(own.get(name))


def _known(name: str, release: Release) -> bool:
    """Whether transformers has a tokenizer; those that are general, and fast ones of version 4, are in no table."""
    plain = name.removesuffix("Fast")
    return plain in ("PreTrainedTokenizer", "TokenizersBackend") or not release.tokenizers.isdisjoint(
        (plain, f"{plain}Fast")
    )


def tokenizer_of(path: Path) -> dict[str, Any]:
    """The content of a folder's tokenizer_config.json; empty without one, or if it cannot be parsed."""
    if (path / TOKENIZER).exists():
        with contextlib.suppress(DcaError):
            return text.parse(folder.content(path / TOKENIZER), TOKENIZER).plain()
    return {}
