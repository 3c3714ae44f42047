"""What models' classes take for what a config.json does not state: build/classes/classes.toml."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dca.config.models import Count
from dca.foundation import data, datafile
from dca.foundation.documents import Value

Type = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")]


class Defaults(Value):
    """Values that a class takes whatever the others are; None for those that depend on others."""

    num_hidden_layers: Count | None = None
    hidden_size: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    intermediate_size: Count | None = None
    vocab_size: Count | None = None
    max_position_embeddings: Count | None = None
    sliding_window: Count | None = None
    sliding_window_pattern: Count | None = None
    """Every how many layers one has full attention; the others have windows."""
    tie_word_embeddings: bool = False
    rope_theta: Annotated[float, Field(gt=0)] | None = None


class Known(Value):
    """build/classes/classes.toml."""

    schema_: Literal["dca.classes/1"] = Field(alias="schema")
    ungated: tuple[Type, ...]
    """Types whose MLPs have no gate."""
    unrotated: tuple[Type, ...]
    """Types that do not rotate positions."""
    expanded: tuple[Type, ...]
    """Types with compressed keys and values in the weights, and expanded ones in the cache."""
    encoders: tuple[Type, ...]
    """Types that read whole texts and write none, unless the file says `is_decoder`: they cache nothing."""
    fused: tuple[Type, ...]
    """Types whose intermediate_size counts the gate and what it gates together."""
    undescribed: tuple[Type, ...]
    """Types with a part for images that their file does not describe."""
    twice: tuple[Type, ...]
    """Types whose layers have attention and a dense MLP twice."""
    defaults: dict[Type, Defaults]


@cache
def load(path: Path | None = None) -> Known:
    """The classes.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return datafile.load(Known, path or data.classes_file())


def defaults(text_type: str) -> dict[str, Any]:
    """What the class of a language model takes for what its config does not state; empty for an unknown type."""
    found = load().defaults.get(text_type)
    return found.model_dump(exclude_none=True) if found else {}
