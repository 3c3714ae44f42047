"""`dca serve`."""

from __future__ import annotations

import click

from dca.cli.serve_check import check


@click.group("serve")
def command() -> None:
    """Will it fit, with which flags, and does the running server really answer."""


command.add_command(check)
