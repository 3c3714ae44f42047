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
# Of commands whose interruption says nothing else.
CONTINUES = "Partial results were removed and finished ones kept; the same command continues from there."
# Each command is the `command` of the module with its name, which is imported only when the command is called, so that
# `dca --help` stays quick.
COMMANDS = {
    "doctor": "Check this machine, and show how to fix what is wrong.",
    "env": "Make an environment to build in, or to run a wheel in.",
    "plan": "Show what would be built and why; download nothing.",
    "fetch": "Download, check and patch the sources.",
    "patch": "Check, rebase and extend a recipe's patches.",
    "wheel": "Build a wheel: plan, fetch, patch, compile, package, inspect.",
    "matrix": "Build the wheels of a matrix, or write them as jobs of an engine.",
    "kernels": "Write a build's kernels for the Hugging Face kernels library.",
    "report": "Report where a build's time went, in one page.",
    "inspect": "Show what a wheel contains: modules, GPU archs, ops, torch, sizes.",
    "smoke": "Prove that a wheel's dual chunk attention computes correct results.",
    "emulate": "Run a program on an emulated CUDA device: its kernels on this CPU.",
    "engine": "Make environments with a real vLLM that serves on a CPU.",
    "plugin": "Check what a release of vLLM moved of what the plugin needs.",
    "config": "Show, check and change long-context settings in a model's config.json.",
    "serve": "Plan a server's memory and flags, start it, and check its answers.",
    "publish": "Publish wheels and their evidence to an index for pip and uv.",
    "index": "List, yank, remove and clean up the wheels of a published index.",
    "verify": "Check a wheel against its evidence.",
    "explain": "Explain the failure in a log, or an error code: cause and remedy.",
}


class Commands(click.Group):
    """Commands that are imported when they are used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Names, in the order in which a wheel passes through the commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:  # noqa: ARG002
        """The command of that name."""
        return importlib.import_module(f"dca.cli.{name}").command if name in COMMANDS else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command, or suggest the nearest name."""
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            from dca.foundation.suggestion import did_you_mean

            hint = did_you_mean(args[0], COMMANDS, f"commands: {', '.join(COMMANDS)}.", "`dca {}`")
            raise click.UsageError(f"there is no command `{args[0]}`. {hint[0].upper()}{hint[1:]}", ctx)
        return super().resolve_command(ctx, args)


@click.command(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="dca")
def root() -> None:
    """Build and prove vLLM wheels with dual chunk attention.

    Exit codes: 0 success; 1 a check failed; 2 wrong usage; 3 no plan is possible; 4 a source could not be downloaded
    or differs from its pin; 5 a patch does not apply; 6 compilation failed; 7 the wheel differs from its plan;
    8 a smoke test failed; 9 publishing failed; 130 interrupted.
    """


def _terminated(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - the signal module's signature
    from dca.foundation.errors import Interrupted

    raise Interrupted


def main() -> None:
    """Run the command line and exit with its code."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        # nohup ignores SIGHUP; that must stay so.
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _terminated)
    code = run(sys.argv[1:])
    if code == INTERRUPTED:
        # sys.exit would wait for threads that still use the network.
        sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command; every error becomes one message and an exit code."""
    from dca.foundation.errors import DcaError, Interrupted, from_os_error

    arguments = arguments or ["--help"]
    as_json = "--json" in arguments
    try:
        # Commands return nothing; a code is that of `Context.exit`.
        return root.main(args=arguments, prog_name="dca", standalone_mode=False) or 0
    except click.UsageError as error:
        # click's parser of options does not know whose they are.
        path = error.ctx.command_path if error.ctx else _path_of(arguments)
        return _say(DcaError("DCA-201", error.format_message(), remedy=f"see `{path} --help`."), as_json=as_json)
    except (KeyboardInterrupt, click.Abort, Interrupted) as error:
        # Everything is cleaned up already, so another Ctrl-C is ignored.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # click puts Ctrl-C into an exception of its own.
        said = str(error.__cause__ or "") or str(error)
        click.echo(f"Interrupted. {said or CONTINUES}", err=True)
        return INTERRUPTED
    except DcaError as error:
        return _say(error, as_json=as_json and not error.answered)
    except OSError as error:
        # Standard output itself may be what failed, so no JSON is written to it.
        return _say(from_os_error(error), as_json=False)


def _path_of(arguments: list[str]) -> str:
    """The command that the arguments name: `dca serve plan`."""
    context = click.Context(root, info_name="dca")
    for word in arguments:
        command = context.command.get_command(context, word) if isinstance(context.command, click.Group) else None
        if command is None:
            break
        context = click.Context(command, parent=context, info_name=word)
    return context.command_path


def explanation_of(error: DcaError) -> tuple[Known, ...]:
    """The known failures in the output of the program that an error is about."""
    if not error.output:
        return ()
    from dca.catalogue import logs

    return logs.explain_error(error)


def _say(error: DcaError, *, as_json: bool) -> int:
    from dca.cli.pasting import pasteable

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
    click.echo(pasteable(str(error)), err=True)
    for failure in known[:1]:
        show_known(failure)
    return error.exit_code


def show_known(failure: Known) -> None:
    """Print a known failure to standard error."""
    from dca.cli.pasting import pasteable

    text = f"  Known: {failure.title} ({failure.id}). {failure.cause}\n         {failure.remedy}"
    click.echo(pasteable(text), err=True)
