"""Reads from a model's config.json what a wheel needs to serve it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dca.foundation.documents import Value
from dca.foundation.errors import DcaError

# How models name the number of their experts, by family of architectures.
EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
# The data type of a config that states none.
UNSTATED_DTYPE = "float32"


class Model(Value):
    """What a model needs from a wheel.

    Args:
        name: of its folder, for messages.
        architectures: classes that implement it, as config.json names them.
        head_dim: elements of one attention head.
        experts: number of routed experts; 0 for a dense model.
        dtype: the data type that config.json states for its weights and activations, as torch names it.
        quantization: how its weights are stored ("fp8", "awq", …); empty if they are not quantized.
        dual_chunk: whether its config.json sets dual chunk attention.
    """

    name: str
    architectures: tuple[str, ...]
    head_dim: int
    dtype: str = "bfloat16"
    experts: int = 0
    quantization: str = ""
    dual_chunk: bool = False


class Serves(Value):
    """Which models need a group of ops: those with any of these properties."""

    experts: bool = False
    """Mixture-of-experts layers."""
    head_dims: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    """That the engine computes attention in, as torch names them."""
    quantizations: tuple[str, ...] = ()
    """As `quant_method` in a model's config.json."""

    def helps(self, model: Model) -> bool:
        """Whether a model needs the group."""
        return (
            (self.experts and model.experts > 0)
            or model.head_dim in self.head_dims
            or model.dtype in self.dtypes
            or model.quantization in self.quantizations
        )


# The architectures of a wheel that is not to serve with.
NO_MODEL = ("none",)


class Coverage(Value):
    """The models that a wheel can serve.

    Args:
        architectures: those whose ops it has; empty for all, NO_MODEL for none.
        head_dims: those of its attention kernels; empty for all that upstream has.
        dtypes: those of its attention kernels, as torch names them; empty for all that upstream has.
        experts: whether it has the kernels for mixture-of-experts layers.
        quantizations: of weights, as `quant_method` in config.json.
        everything: whether nothing was left out; then the other fields do not matter.
    """

    architectures: tuple[str, ...] = ()
    head_dims: tuple[int, ...] = ()
    dtypes: tuple[str, ...] = ()
    experts: bool = False
    quantizations: tuple[str, ...] = ()
    everything: bool = False


class LeftOut(Value):
    """Attention kernels that upstream has and a wheel does not, each with the options of a build that adds them.

    Args:
        command: that builds the wheel again, without paths of the machine that built it.
        head_dims: the options by head dimension.
        dtypes: the options by data type, as torch names it.
    """

    command: str = ""
    head_dims: dict[int, str] = {}
    dtypes: dict[str, str] = {}

    @property
    def by_option(self) -> dict[str, list[str]]:
        """The head dimensions and data types by the options that add them."""
        values: dict[str, list[str]] = {}
        for value, option in (*sorted(self.head_dims.items()), *self.dtypes.items()):
            values.setdefault(option, []).append(str(value))
        return values

    def build(self, model: Model) -> str:
        """The command that builds the wheel with the kernels that a model needs; empty if none of them was left out."""
        options = together([self.head_dims.get(model.head_dim, ""), self.dtypes.get(model.dtype, "")])
        return f"{self.command} {options}" if options else ""


def together(options: Iterable[str]) -> str:
    """The options of one build that has what each of some options adds: a build of everything needs no group besides.

    >>> together(["--with hdim64", "", "--with fp16"])
    '--with fp16 --with hdim64'
    >>> together(["--with fp16", "--profile full"])
    '--profile full'
    """
    given = sorted(set(options) - {""})
    return next((option for option in given if not option.startswith("--with")), " ".join(given))


def read(path: Path) -> Model:
    """What the config.json at `path`, or in the folder `path`, says.

    Raises:
        DcaError: DCA-204 if there is no such file, DCA-205 if it is not a model's configuration.
    """
    file = path / "config.json" if path.is_dir() else path
    if not file.is_file():
        raise DcaError("DCA-204", f"--model: {file} is not a file.", remedy="name a model's folder or its config.json.")
    try:
        config = _object(file.read_bytes())
        return Model(
            name=file.resolve().parent.name if file.name == "config.json" else file.name,
            architectures=tuple(map(str, _list(config, "architectures"))),
            head_dim=_head_dim(config),
            dtype=_dtype(config),
            experts=next((_integer(config, key) for key in EXPERTS if config.get(key) is not None), 0),
            quantization=_quantization(config),
            dual_chunk=bool(config.get("dual_chunk_attention_config")),
        )
    except (ValueError, RecursionError) as error:
        raise DcaError(
            "DCA-205",
            f"{file} is not a language model's config.json.",
            why=str(error),
            remedy="name the folder that was downloaded with the weights.",
        ) from None


def lacks(model: Model, serves: Coverage) -> list[str]:
    """What a model needs and a wheel lacks, each as the words that complete "it lacks …".

    Args:
        model: with the data type that the engine computes in (`Recipe.computing`).
        serves: by the wheel.
    """
    if serves.everything:
        return []
    if serves.architectures == NO_MODEL:
        return ["the ops and the attention kernels that every model needs: it is not a wheel to serve with"]
    missing = []
    if serves.architectures and not set(model.architectures) & set(serves.architectures):
        missing.append(
            f"the architecture {', '.join(model.architectures)} (it has ops for {', '.join(serves.architectures)})"
        )
    if serves.head_dims and model.head_dim not in serves.head_dims:
        missing.append(
            f"attention kernels for head dimension {model.head_dim} (it has {', '.join(map(str, serves.head_dims))})"
        )
    if serves.dtypes and model.dtype not in serves.dtypes:
        missing.append(f"attention kernels for {model.dtype} (it has {', '.join(serves.dtypes)})")
    if model.experts and not serves.experts:
        missing.append(f"kernels for mixture of experts ({model.experts} experts)")
    if model.quantization and model.quantization not in serves.quantizations:
        has = ", ".join(serves.quantizations) or "none"
        missing.append(f"kernels for {model.quantization} weights (it has {has})")
    return missing


def _object(content: bytes) -> dict[str, Any]:
    config = json.loads(content)
    if not isinstance(config, dict):
        raise ValueError("it is not a JSON object.")  # noqa: TRY004 - the file is wrong, not a type in the code
    return config


def _list(config: dict[str, Any], key: str) -> list[Any]:
    value = config.get(key)
    if not isinstance(value, list) or not value:
        raise ValueError(f"`{key}` is not a list of names.")
    return value


def _integer(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"`{key}` is not a count: {value!r}.")
    return value


def _head_dim(config: dict[str, Any]) -> int:
    if config.get("head_dim") is not None:
        return _integer(config, "head_dim")
    size, heads = _integer(config, "hidden_size"), _integer(config, "num_attention_heads")
    if heads == 0 or size % heads:
        raise ValueError(f"hidden_size {size} is not a multiple of num_attention_heads {heads}.")
    return size // heads


def _dtype(config: dict[str, Any]) -> str:
    # transformers 5 renamed the key.
    value = next((config[key] for key in ("torch_dtype", "dtype") if config.get(key) is not None), UNSTATED_DTYPE)
    if not isinstance(value, str) or not value:
        raise ValueError(f"`torch_dtype` is not the name of a data type: {value!r}.")
    return value.removeprefix("torch.")


def _quantization(config: dict[str, Any]) -> str:
    quantization = config.get("quantization_config")
    if quantization is None:
        return ""
    method = quantization.get("quant_method") if isinstance(quantization, dict) else None
    if not isinstance(method, str) or not method:
        raise ValueError("`quantization_config` has no `quant_method`.")
    return method.lower()
