"""Runs examples that need vLLM's Python API on a machine without a GPU.

The engine is stood in for: transformers generates on the CPU. All else is vLLM's own: the signatures of LLM and of its
methods, EngineArgs, SamplingParams, and the outputs. The one argument is a file with a request as JSON: folders put in
front of sys.path, the model that is loaded whatever is asked for, and the examples with their arguments and
environments. For each, one line of JSON: what it printed, what the engine was given, and the error that ended it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import inspect
import io
import json
import os
import runpy
import sys
import tempfile
from pathlib import Path
from typing import Any

REQUEST = json.loads(Path(sys.argv[1]).read_text())
sys.path[:0] = REQUEST["paths"]
MODEL = REQUEST["model"]
try:
    importlib.metadata.version("triton")
except importlib.metadata.PackageNotFoundError:
    # An environment for builds has some of its files, which would pass for the package.
    sys.modules["triton"] = None  # type: ignore[assignment]

import torch
import vllm
from transformers import AutoModelForCausalLM, AutoTokenizer
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.llm import LLM
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import SamplingParams

TOLD: dict[str, Any] = {}


class OnTransformers:
    """vLLM's LLM, with transformers in place of its engine."""

    def __init__(self, *given: Any, **named: Any) -> None:
        bound = inspect.signature(LLM.__init__).bind(self, *given, **named)
        told = {name: value for name, value in bound.arguments.items() if name not in ("self", "kwargs")}
        told |= bound.arguments.get("kwargs", {})
        # A name that the engine does not know is an error here as there.
        args = EngineArgs(**told)
        known = {field.name for field in dataclasses.fields(args)}
        TOLD["engine"] = {name: getattr(args, name) for name in told if name in known}
        self.tokenizer = AutoTokenizer.from_pretrained(MODEL)
        self.model = AutoModelForCausalLM.from_pretrained(MODEL)

    def chat(self, *given: Any, **named: Any) -> list[RequestOutput]:
        """Answer one conversation, or several."""
        bound = inspect.signature(LLM.chat).bind(self, *given, **named)
        messages, sampling = bound.arguments["messages"], bound.arguments.get("sampling_params")
        assert isinstance(sampling, SamplingParams), "the engine's defaults repeat themselves"
        TOLD["sampling"] = [sampling.temperature, sampling.top_p, sampling.repetition_penalty]
        conversations = messages if isinstance(messages[0], list) else [messages]
        return [self._answer(number, one, sampling) for number, one in enumerate(conversations)]

    def _answer(self, number: int, messages: list[dict[str, str]], sampling: SamplingParams) -> RequestOutput:
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = self.tokenizer(text, return_tensors="pt")
        prompt = inputs["input_ids"][0].tolist()
        torch.manual_seed(number)
        made = self.model.generate(
            **inputs,
            do_sample=True,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            repetition_penalty=sampling.repetition_penalty,
            max_new_tokens=min(sampling.max_tokens, 12),
        )[0, len(prompt) :].tolist()
        answer = CompletionOutput(
            index=0,
            text=self.tokenizer.decode(made),
            token_ids=made,
            cumulative_logprob=None,
            logprobs=None,
            finish_reason="length",
        )
        return RequestOutput(
            request_id=str(number),
            prompt=text,
            prompt_token_ids=prompt,
            prompt_logprobs=None,
            outputs=[answer],
            finished=True,
        )


HUB = f"""
import os, pathlib

def snapshot_download(name, *, local_dir):
    pathlib.Path(local_dir).parent.mkdir(parents=True, exist_ok=True)
    pathlib.Path(local_dir).symlink_to({MODEL!r})
    os.environ["DOWNLOADED"] = name
    return local_dir
"""


def stand_in_for_modelscope(folder: Path) -> None:
    """A hub that has the one model, found on the path as the real package is: behind the example's own folder."""
    (folder / "modelscope").mkdir()
    (folder / "modelscope/__init__.py").write_text(HUB)
    sys.path.append(str(folder))


def run(example: dict[str, Any]) -> dict[str, Any]:
    """One example, from its first line to its last."""
    TOLD.clear()
    printed, before = io.StringIO(), dict(os.environ)
    os.environ.update(example.get("env", {}))
    sys.argv = [example["file"], *example["words"]]
    # As `python FILE` does.
    sys.path.insert(0, str(Path(example["file"]).parent))
    error = ""
    try:
        with contextlib.redirect_stdout(printed):
            runpy.run_path(example["file"], run_name="__main__")
    except (Exception, SystemExit) as ended:
        error = f"{type(ended).__name__}: {ended}"
    finally:
        sys.path.pop(0)
        TOLD["downloaded"] = os.environ.get("DOWNLOADED", "")
        os.environ.clear()
        os.environ.update(before)
    return {"out": printed.getvalue(), "error": error, **TOLD}


if __name__ == "__main__":
    vllm.LLM = OnTransformers
    with tempfile.TemporaryDirectory() as hub:
        stand_in_for_modelscope(Path(hub))
        for one in REQUEST["examples"]:
            print("RAN " + json.dumps(run(one)), flush=True)
