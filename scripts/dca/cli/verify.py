"""`dca verify`."""

from __future__ import annotations

from pathlib import Path

import click

from dca import documents, evidence, signing, store
from dca.cli import options
from dca.errors import DcaError
from dca.rebuild import rebuild
from dca.verify import Verification, verify

SIGNS = {"proven": "ok  ", "wrong": "FAIL", "not proven": "--  "}


@click.command("verify")
@click.argument("wheel", type=click.Path(path_type=Path))
@click.option(
    "--key", "keys", type=click.Path(path_type=Path), multiple=True, metavar="FILE",
    help="An Ed25519 key in PEM, public or private, that must have signed the evidence; one of several is enough.",
)  # fmt: skip
@click.option(
    "--evidence", "folder", type=click.Path(path_type=Path), metavar="DIR",
    help="Where its documents lie [what runs on this machine left of it].",
)  # fmt: skip
@click.option(
    "--rebuild", "again", is_flag=True,
    help="Also build it again from its provenance, from nothing, and compare; takes as long as building it.",
)  # fmt: skip
@click.option("--source", type=click.Path(path_type=Path), help="With --rebuild: a local clone or the sdist.")
@click.option(
    "--companion", "companions", multiple=True, metavar="NAME=PATH",
    help="With --rebuild: a companion's local clone.",
)  # fmt: skip
@options.cache
@options.output
def command(
    wheel: Path, keys: tuple[Path, ...], folder: Path | None, again: bool, source: Path | None,
    companions: tuple[str, ...], cache_dir: Path | None, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Check a wheel against its evidence, and say in words what is proven and what is not.

    Nothing of the wheel is run.
    """
    if not wheel.is_file():
        raise DcaError("DCA-204", f"{wheel} is not a file.", remedy="name a .whl file.")
    if folder is not None and not folder.is_dir():
        raise DcaError("DCA-204", f"--evidence: {folder} is not a folder.", remedy="check the path.")
    public = tuple(map(signing.public_key, keys))
    sha256, cache = store.sha256_file(wheel), options.open_cache(cache_dir)
    files = evidence.read(folder) if folder else evidence.collect(wheel, sha256, cache)
    found = verify(wheel, files, public)
    if again:
        local = {"source": options.local("--source", source), "companions": options.companions(companions)}
        with options.terminal(as_json=as_json, quiet=quiet) as reporter:
            told = rebuild(wheel, sha256, files, cache, reporter, **local)
        found = found.model_copy(update={"findings": (*found.findings, told)})
    if as_json:
        click.echo(documents.dumps(found).decode(), nl=False)
    elif not quiet:
        click.echo(render(found))
    if found.wrong:
        raise DcaError(
            "DCA-111",
            f"{found.wheel} is not what its evidence says: {len(found.wrong)} of {len(found.findings)} checks failed.",
            why="\n".join(one.says for one in found.wrong),
            remedy="do not install it; get it, with its evidence, from where it was published.",
            answered=as_json,
        )


def render(found: Verification) -> str:
    """A verification as text."""
    width = max(len(one.check) for one in found.findings)
    lines = ["", found.wheel, f"  sha256 {found.sha256}", ""]
    lines += [
        f"  {SIGNS[one.status]}  {one.check:<{width}}  {'not proven: ' * (one.status == 'not proven')}{one.says}"
        for one in found.findings
    ]
    return "\n".join(lines)
