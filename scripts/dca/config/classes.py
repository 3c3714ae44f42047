"""What models' classes take for what a config.json does not state: build/classes/classes.toml."""

from __future__ import annotations

from collections.abc import Mapping
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


class Scalings(Value):
    """The types of scaling that the configuration class of some types loads, besides none at all."""

    types: Annotated[tuple[Type, ...], Field(min_length=1)]
    takes: tuple[str, ...] = ()
    """Types of scaling; empty for every one."""
    needs: tuple[str, ...] = ()
    """Keys without which the class loads no scaling."""
    readers: str = ""
    """The readers that have this class, in words; empty for all of them."""

    @property
    def words(self) -> str:
        """What the class loads, in words."""
        # The first is what the class calls the others.
        names = " or ".join(f"`{name}`" for name in (self.takes[:1] if self.needs else self.takes))
        keys = " and ".join(f"`{key}`" for key in self.needs)
        if not keys:
            return f"{names} only"
        return f"{names} only, with {keys}" if names else f"a scaling only with {keys}"

    def refuses(self, scaling: Mapping[str, Any]) -> bool:
        """Whether the class does not load a scaling, which has a type."""
        name = scaling.get("rope_type", scaling.get("type"))
        if name in (None, "default"):
            return False
        return bool(self.takes and name not in self.takes) or any(scaling.get(key) is None for key in self.needs)


class Sizes(Value):
    """A transformer over patches of images or pieces of sound."""

    hidden_size: Count
    num_hidden_layers: Count
    intermediate_size: Count


class Known(Value):
    """build/classes/classes.toml."""

    schema_: Literal["dca.classes/1"] = Field(alias="schema")
    ungated: tuple[Type, ...]
    """Types whose MLPs have no gate."""
    gated: tuple[Type, ...]
    """Types whose MLPs have one, although their activation is usual for those without."""
    unrotated: tuple[Type, ...]
    """Types that do not rotate positions."""
    expanded: tuple[Type, ...]
    """Types with compressed keys and values in the weights, and expanded ones in the cache."""
    encoders: tuple[Type, ...]
    """Types that read whole texts and write none, unless the file says `is_decoder`: they cache nothing."""
    fused: tuple[Type, ...]
    """Types whose intermediate_size counts the gate and what it gates together."""
    undescribed: dict[Type, Sizes]
    """Types with a part for images that their class has, and their file does not describe."""
    gated_parts: tuple[Type, ...]
    """Types of parts for images and sound whose MLPs have a gate, whatever their activation is named."""
    joining_parts: tuple[Type, ...]
    """Types of parts for images whose MLPs are as wide as out_hidden_size; what joins patches has intermediate_size."""
    float_states: tuple[Type, ...]
    """Types whose states have 32-bit numbers where the file does not say of which type they are."""
    twice: tuple[Type, ...]
    """Types whose layers have attention and a dense MLP twice."""
    dual_chunk: tuple[Type, ...]
    """Types whose class computes dual chunk attention, in the engines that have it."""
    long_tables: tuple[Type, ...]
    """Types whose rotary table has as many rows as model_max_length says, where the file states it."""
    towers: dict[str, Sizes]
    """Parts for images and sound that files only name, by a text in the name."""
    original_lengths: dict[Type, Count]
    """original_max_position_embeddings of types whose class has one of its own."""
    original_inside: tuple[Type, ...]
    """Types whose class takes original_max_position_embeddings from the scaling."""
    scalings: tuple[Scalings, ...]
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


def refusing(text_type: str, scaling: Mapping[str, Any]) -> Scalings | None:
    """What the class of a language model loads, when it does not load a scaling; None when it does, or is not known.

    Args:
        text_type: its `model_type`.
        scaling: the object of the scaling, as it stands in a config.json.
    """
    of_type = (one for one in load().scalings if text_type in one.types)
    return next((one for one in of_type if one.refuses(scaling)), None)
