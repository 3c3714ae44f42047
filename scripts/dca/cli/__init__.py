"""The command line: the only place that prints."""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

import click

from dca import __version__

if TYPE_CHECKING:
    from dca.catalogue.failures import Known
    from dca.foundation.errors import DcaError

# The value of dca.foundation.errors.ExitCode.INTERRUPTED, without importing it.
INTERRUPTED = 130
# Each command's module is imported only when it is called, so that `dca --help` stays quick.
COMMANDS = {
    "doctor": ("dca.cli.doctor", "What is right on this machine, what is wrong, and what mends it."),
    "env": ("dca.cli.env", "An environment to build in, with compilers and a CUDA toolkit, or to run a wheel in."),
    "plan": ("dca.cli.plan", "What would be built and why; nothing is fetched."),
    "fetch": ("dca.cli.fetch", "The sources only: pinned, checked and patched."),
    "patch": ("dca.cli.patch", "A recipe's patches: what becomes of each, rebasing them, adding one."),
    "wheel": ("dca.cli.wheel", "A wheel: plan, fetch, patch, compile, package, inspect."),
    "inspect": ("dca.cli.inspect", "What is in a wheel: modules, GPU archs, ops, torch, sizes."),
    "smoke": ("dca.cli.smoke", "Proof that a wheel's dual chunk attention computes what it should."),
    "config": ("dca.cli.config", "YaRN and dual-chunk settings in a model's config.json."),
    "serve": ("dca.cli.serve", "A server: will it fit, with which flags, its command, and does it answer."),
    "publish": ("dca.cli.publish", "Wheels and their evidence to an index that pip and uv install from."),
    "index": ("dca.cli.index", "A published index: list its wheels, yank or remove some, clean it up."),
    "verify": ("dca.cli.verify", "A wheel against its evidence: what is proven of it, and what is not."),
    "explain": ("dca.cli.explain", "What a log's failure is, or a code: cause and remedy."),
}


class Commands(click.Group):
    """Commands that are loaded when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names, in the order of the way through the house."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        """The command of that name; for the list of commands only its first line."""
        if name not in COMMANDS:
            return None
        module, help_text = COMMANDS[name]
        if ctx.resilient_parsing or ctx.meta.get("dca.listing"):
            return click.Command(name, short_help=help_text)
        command: click.Command = importlib.import_module(module).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or name the nearest one."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from dca.foundation.suggestion import did_you_mean

            hint = did_you_mean(args[0], COMMANDS, f"commands: {', '.join(COMMANDS)}.", "`dca {}`")
            raise click.UsageError(f"there is no command `{args[0]}`. {hint[0].upper()}{hint[1:]}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dca")
def root() -> None:
    """Builds and proves vLLM wheels with dual chunk attention.

    Exit codes: 0 fine; 1 a check failed; 2 wrong usage; 3 no plan possible; 4 source could not be had or is not what
    was pinned; 5 a patch does not apply; 6 compile failed; 7 the wheel is not what was planned;
    8 smoke failed; 9 publish failed; 130 interrupted.
    """


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
    from dca.foundation.errors import Interrupted

    raise Interrupted


def main() -> None:
    """Run the command line and end with its exit code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # Under nohup SIGHUP is ignored, and stays so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminated)
    code = run(sys.argv[1:])
    if code == INTERRUPTED:
        # sys.exit would wait for threads that still ask the network.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; every error becomes one message and an exit code."""
    from dca.foundation.errors import DcaError, Interrupted, from_os_error

    arguments = arguments or ["--help"]
    as_json = "--json" in arguments
    try:
        root.main(args=arguments, prog_name="dca", standalone_mode=False)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.UsageError as error:
        return _say(DcaError("DCA-201", error.format_message(), remedy=_usage(error)), as_json=as_json)
    except (KeyboardInterrupt, click.Abort, Interrupted):
        # Everything has been cleaned up, so another Ctrl-C is ignored.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        click.echo(
            "Interrupted. Nothing half-made was left, and what is finished is kept: the same command goes on there.",
            err=True,
        )
        return INTERRUPTED
    except DcaError as error:
        return _say(error, as_json=as_json and not error.answered)
    except OSError as error:
        # Standard output itself may be what failed, so no JSON is written to it.
        return _say(from_os_error(error), as_json=False)
    return 0


def _usage(error: click.UsageError) -> str:
    path = error.ctx.command_path if error.ctx else "dca"
    return f"see `{path} --help`."


def explanation_of(error: DcaError) -> tuple[Known, ...]:
    """What the catalogue knows of the program that an error is about; nothing when it is about none."""
    if not error.output:
        return ()
    from dca.catalogue import failures
    from dca.foundation.errors import DcaError

    try:
        known = failures.explain_lines(error.output)
    except DcaError:
        return ()
    return tuple(
        failure
        for failure in known
        if failure.kind in ("cause", "consequence") and not failures.CODE.fullmatch(failure.id)
    )


def _say(error: DcaError, *, as_json: bool) -> int:
    known = explanation_of(error)
    if as_json:
        document = {
            "schema": "dca.error/1",
            "code": error.code,
            "exit": error.exit_code,
            "what": error.what,
            "why": error.why,
            "next": error.remedy,
            "known": [failure.model_dump(mode="json") for failure in known],
        }
        click.echo(json.dumps(document, indent=2, sort_keys=True))
    click.echo(str(error), err=True)
    for failure in known[:1]:
        click.echo(f"  Known: {failure.title} ({failure.id}). {failure.cause}\n         {failure.remedy}", err=True)
    return error.exit_code
