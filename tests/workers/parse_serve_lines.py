"""Reads command lines with vLLM's own parser of `vllm serve`, and arguments with its own Python interface.

Runs in the environment of an engine. The one argument is a file with JSON: `lines`, the words after `vllm` of each
command; `calls`, the arguments of `LLM` of each script. Prints one line of JSON: for each line what the parser made of
it, or its own message; for each call the same; the parser's options; and the variables that the engine reads.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import inspect
import io
import json
import sys
from pathlib import Path
from typing import Any

import vllm.envs
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli import serve
from vllm.entrypoints.llm import LLM

try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from vllm.utils import FlexibleArgumentParser

PLAIN = (str, int, float, bool, list, type(None))


def parser() -> tuple[Any, Any, Any]:
    """The parser of `vllm`, that of `vllm serve` in it, and the command, as the program itself makes them."""
    whole = FlexibleArgumentParser(prog="vllm")
    commands = whole.add_subparsers(dest="subparser")
    (command,) = (one for one in serve.cmd_init() if one.name == "serve")
    return whole, command.subparser_init(commands), command


def parsed(whole: Any, command: Any, words: list[str]) -> dict[str, Any]:
    """What the parser makes of a line, or what it says against it."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            arguments: argparse.Namespace = whole.parse_args(words)
            command.validate(arguments)
    except (SystemExit, Exception) as refused:  # any kind of message is the engine's answer
        return {"error": f"{said.getvalue()[-300:]} {refused!r}"}
    return {"values": {name: value for name, value in vars(arguments).items() if isinstance(value, PLAIN)}}


def called(arguments: dict[str, Any]) -> dict[str, Any]:
    """What the engine's Python interface makes of arguments, or what it says against them."""
    try:
        bound = inspect.signature(LLM.__init__).bind(None, **arguments).arguments
        given = {name: value for name, value in bound.items() if name not in ("self", "kwargs")}
        made = EngineArgs(**given, **bound.get("kwargs", {}))
    except Exception as refused:  # any kind of message is the engine's answer
        return {"error": repr(refused)}
    known = {field.name for field in dataclasses.fields(made)}
    return {"values": {name: getattr(made, name) for name in arguments if name in known}}


if __name__ == "__main__":
    request = json.loads(Path(sys.argv[1]).read_text())
    whole, own, command = parser()
    told = {
        "lines": [parsed(whole, command, words) for words in request["lines"]],
        "calls": [called(arguments) for arguments in request["calls"]],
        "options": sorted(own._option_string_actions),
        "variables": sorted(vllm.envs.environment_variables),
    }
    print("TOLD " + json.dumps(told, default=str))
