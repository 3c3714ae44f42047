# SPDX-License-Identifier: Apache-2.0
"""Puts the guards of `dca_guards` where vLLM 0.10.2 configures an engine.

vLLM calls `register` through its entry point group `vllm.general_plugins`, in every process. Only a process
that builds an engine config meets the hooks; engine and worker processes inherit the environment and the
checked config from it. Setting `VLLM_PLUGINS` to a list without `dca_guards` leaves the guards out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm import dca_guards


def register() -> None:
    """Put the guards around vLLM's own methods; calling it again changes nothing."""
    from vllm.config import ModelConfig
    from vllm.engine.arg_utils import EngineArgs

    # Where the length is decided: before upstream's own check, whose advice to override it is wrong here.
    dca_guards.wrap(ModelConfig, "get_and_verify_max_len", _verify_length)
    # The first place that knows the model's config; the choice between V0 and V1 comes right after it.
    dca_guards.wrap(EngineArgs, "create_model_config", _create_model_config)
    # A refusal inside the configs' own validation would come out wrapped in pydantic's text.
    dca_guards.wrap(EngineArgs, "create_engine_config", _create_engine_config)


def _verify_length(original: Callable[..., int], model_config: Any, max_model_len: int | None) -> int:
    if dca_guards.dca_config(model_config.hf_config) is None:
        return original(model_config, max_model_len)
    rows: int = model_config.hf_text_config.max_position_embeddings
    return dca_guards.capped_length(lambda length: original(model_config, length), max_model_len, rows)


def _create_model_config(original: Callable[..., Any], engine_args: Any) -> Any:
    model_config = original(engine_args)
    if dca_guards.ENGINE_VAR in dca_guards.check_model(model_config, engine_args):
        # While the variable was unset, upstream took V1's default seed.
        model_config.seed = engine_args.seed
    return model_config


def _create_engine_config(original: Callable[..., Any], engine_args: Any, *args: Any, **kwargs: Any) -> Any:
    vllm_config = original(engine_args, *args, **kwargs)
    dca_guards.check_engine(vllm_config)
    if dca_guards.dca_config(vllm_config.model_config.hf_config) is not None:
        from vllm.sampling_params import GuidedDecodingParams

        dca_guards.guard_structure(GuidedDecodingParams)
    return vllm_config
