"""The known models, build/models/*.toml, and which of them a config.json belongs to."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from dca.catalogue.recipes import Name
from dca.foundation import data, datafile
from dca.foundation.documents import Value
from dca.foundation.errors import DcaError
from dca.foundation.suggestion import did_you_mean

Count = Annotated[int, Field(gt=0, strict=True)]
Base = Annotated[float, Field(gt=1)]


class DualChunk(Value):
    """A model's dual chunk attention, lengths in tokens."""

    chunk_size: Count
    local_size: Count
    original_max_position_embeddings: Count
    max_position_embeddings: Count
    """With dual chunk attention; the model's own config.json may have another number."""


class OwnYarn(Value):
    """The YaRN setting on the model's card."""

    factor: Annotated[float, Field(ge=1)]
    original: Count


class Sizes(Value):
    """What a model's memory depends on besides its layers and heads; the keys are config.json's."""

    vocab_size: Count
    intermediate_size: Count
    attention_bias: bool
    """Whether the projections to queries, keys and values have a bias."""
    num_experts: Count | None = None
    num_experts_per_tok: Count | None = None
    moe_intermediate_size: Count | None = None


class SparseSizes(Value):
    """The largest entries of a model's sparse table."""

    vertical: Count
    slash: Count


class KnownModel(Value):
    """A model of build/models."""

    schema_: Literal["dca.model/1"] = Field(alias="schema")
    name: Name
    publisher: Name | None = None
    """The organisation before its name on a hub."""
    title: str
    architectures: Annotated[tuple[str, ...], Field(min_length=1)]
    model_type: str
    layers: Count
    hidden_size: Count
    heads: Count
    kv_heads: Count
    head_dim: Count
    rope_theta: Base
    max_position_embeddings: Count
    native_length: Count
    """Tokens without dual chunk attention or YaRN."""
    vram_gb: Count | None = None
    """GPU memory over all GPUs that its card requires at its full length."""
    unverified: tuple[str, ...] = ()
    """Keys whose numbers come from a secondary source."""
    dual_chunk: DualChunk | None = None
    yarn: OwnYarn | None = None
    sizes: Sizes | None = None
    sparse: SparseSizes | None = None

    def has_shape_of(self, config: dict[str, Any]) -> bool:
        """Whether a config's class, layers and heads are the model's."""
        return (
            config.get("model_type") == self.model_type
            and config.get("num_hidden_layers") == self.layers
            and config.get("hidden_size") == self.hidden_size
            and config.get("num_attention_heads") == self.heads
            and config.get("num_key_value_heads") == self.kv_heads
        )


@cache
def load_all(folder: Path | None = None) -> tuple[KnownModel, ...]:
    """Every model, by name.

    Raises:
        DcaError: DCA-202 for a wrong key or value.
    """
    return tuple(_load(path) for path in sorted((folder or data.models_folder()).glob("*.toml")))


@cache
def types() -> frozenset[str]:
    """The model types of build/models."""
    return frozenset(model.model_type for model in load_all())


def _load(path: Path) -> KnownModel:
    model = datafile.load(KnownModel, path)
    if model.name != path.stem:
        raise DcaError(
            "DCA-202",
            f"{path}: the model is named `{model.name}`, the file `{path.stem}`.",
            remedy="give both the same name.",
        )
    return model


def named(name: str, known: tuple[KnownModel, ...]) -> KnownModel | None:
    """The model of that name, in any case and with or without its organisation; None without one."""
    lower = name.rpartition("/")[2].lower()
    return next((model for model in known if model.name.lower() == lower), None)


def find(name: str, known: tuple[KnownModel, ...]) -> KnownModel:
    """The model of that name, in any case and with or without its organisation.

    Raises:
        DcaError: DCA-214 with the nearest name.
    """
    lower = name.rpartition("/")[2].lower()
    if found := named(name, known):
        return found
    names = [model.name for model in known]
    raise DcaError(
        "DCA-214",
        f"there is no model `{name}` in build/models.",
        why=f"the models are: {', '.join(names)}.",
        remedy=did_you_mean(lower, names, "choose one of them, or give the numbers by hand.", any_case=True),
    )


def match(config: dict[str, Any], folder: str, known: tuple[KnownModel, ...]) -> KnownModel | None:
    """The model that a config.json belongs to, by its shape and then by name; None when that is ambiguous.

    Args:
        config: the file's content.
        folder: its folder's name, or a path that contains the model's name, as in hub caches.
        known: the models.
    """
    alike = [model for model in known if model.has_shape_of(config)]
    words = f"{folder} {config.get('_name_or_path', '')}".lower().replace("/", " ").replace("--", " ").split()
    named = [model for model in alike if model.name.lower() in words]
    if named:
        return named[0]
    # A model with dual chunk attention and one without may have the same shape; the settings tell them apart.
    if config.get("dual_chunk_attention_config"):
        alike = [model for model in alike if model.dual_chunk or model.native_length >= 1 << 18]
    else:
        alike = [model for model in alike if model.max_position_embeddings == config.get("max_position_embeddings")]
    # Models that agree in everything the rules read are interchangeable.
    kinds = {(m.rope_theta, m.max_position_embeddings, m.native_length, m.dual_chunk) for m in alike}
    if len(kinds) != 1:
        return None
    return alike[0].model_copy(update={"name": " or ".join(model.name for model in alike)})
