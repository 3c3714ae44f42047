# SPDX-License-Identifier: Apache-2.0
"""Puts the guards of `dca_guards` where the fork configures an engine.

vLLM calls `register` through its entry point group `vllm.general_plugins`: when engine arguments are made, which is
before any config is, and in the engine's and the workers' processes. The API server and the engine's process both
build the config and meet the hooks; workers inherit the environment and the checked config. Setting `VLLM_PLUGINS`
to a list without `dca_guards` leaves the guards out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from vllm import dca_guards


def register() -> None:
    """Put the guards around the fork's own functions; calling it again changes nothing."""
    from vllm import config
    from vllm.engine.arg_utils import EngineArgs

    # Where the length is decided: before upstream's own check, whose advice to override it is wrong here.
    dca_guards.wrap(config, "_get_and_verify_max_len", _verify_length)
    # The first place that knows the model's config; the backend is looked up later, when the model is made.
    dca_guards.wrap(EngineArgs, "create_model_config", _create_model_config)
    dca_guards.wrap(EngineArgs, "create_engine_config", _create_engine_config)


def _verify_length(original: Callable[..., int], hf_config: Any, max_model_len: int | None, **kwargs: Any) -> int:
    def derive(length: int | None) -> int:
        return original(hf_config=hf_config, max_model_len=length, **kwargs)

    if dca_guards.dca_config(hf_config) is None:
        return derive(max_model_len)
    return dca_guards.capped_length(derive, max_model_len, hf_config.max_position_embeddings)


def _create_model_config(original: Callable[..., Any], engine_args: Any) -> Any:
    model_config = original(engine_args)
    dca_guards.check_model(model_config, engine_args)
    return model_config


def _create_engine_config(original: Callable[..., Any], engine_args: Any, *args: Any, **kwargs: Any) -> Any:
    vllm_config = original(engine_args, *args, **kwargs)
    if vllm_config.device_config.device_type == "cuda":
        _check_steps(vllm_config)
    # Its flash-attention has sparse kernels for every head dimension that it has dense ones for.
    dca_guards.check_engine(vllm_config, sparse_head_dims=None)
    return vllm_config


def _check_steps(vllm_config: Any) -> None:
    """Every model's steps: a lean wheel lacks an op that the fork does not look for before it calls it."""
    import torch

    has_op = hasattr(torch.ops._C, dca_guards.STEP_OP)
    uses_dca = dca_guards.dca_config(vllm_config.model_config.hf_config) is not None
    dca_guards.check_steps(vllm_config.scheduler_config.num_scheduler_steps, uses_dca, has_op)
    speculation = vllm_config.speculative_config
    if speculation is None:
        return
    # Without a draft model, that of the model itself stands there.
    ngram = speculation.ngram_prompt_lookup_max > 0
    draft = speculation.draft_model_config
    dca_guards.check_draft(
        dca_guards.NGRAM if ngram else draft.model,
        draft.hf_config.model_type,
        uses_dca,
        dca_guards.dca_config(draft.hf_config) is not None,
        has_op,
    )
