"""Options that several commands share, and the request they make."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from dca.catalogue import model_needs
from dca.catalogue.plan import Request
from dca.cli.terminal import Terminal
from dca.foundation.errors import DcaError
from dca.foundation.store import Store

if TYPE_CHECKING:
    from dca.pipeline.bundle import Bundle

F = TypeVar("F", bound=Callable[..., Any])


def output(function: F) -> F:
    """--json and --quiet."""
    function = click.option("--quiet", is_flag=True, help="Only errors and the result.")(function)
    return click.option("--json", "as_json", is_flag=True, help="The result as one JSON document.")(function)


def cache(function: F) -> F:
    """--cache-dir."""
    return click.option(
        "--cache-dir",
        envvar="DCA_CACHE_DIR",
        type=click.Path(path_type=Path, file_okay=False),
        help="Where downloads, environments and builds are kept [DCA_CACHE_DIR; the user's cache folder].",
    )(function)


def request(function: F) -> F:
    """What to build."""
    options = [
        click.option("--recipe", help="The source line to build; the first that can be built when not given."),
        click.option("--cuda", help="The CUDA line to run on, such as 12.1."),
        click.option(
            "--arch", "archs", multiple=True, help="GPU archs, such as 8.0,9.0 [the GPUs here, else 8.0,9.0]."
        ),
        click.option("--profile", default="lean", show_default=True, help="What is compiled."),
        click.option("--with", "groups", multiple=True, metavar="GROUP", help="A group in addition to the profile's."),
        click.option(
            "--model",
            type=click.Path(path_type=Path),
            metavar="CONFIG",
            help="A model's config.json, or its folder: the groups it needs are added.",
        ),
        click.option("--source", type=click.Path(path_type=Path), help="A local clone or the sdist."),
        click.option("--dirty", is_flag=True, help="Take a local folder as it is; publish refuses such a wheel."),
        click.option(
            "--companion", "companions", multiple=True, metavar="NAME=PATH", help="A companion's local clone."
        ),
        click.option("--prebuilt", multiple=True, metavar="NAME|all", help="Copy from the official wheel."),
        click.option("--toolkit", type=click.Path(path_type=Path), help="A CUDA toolkit's folder."),
        click.option("--strict-cuda", is_flag=True, help="Refuse another CUDA version than the one asked for."),
        click.option("--python", help="The Python version to build with, such as 3.12 [the tool's own]."),
        click.option(
            "--jobs",
            type=click.IntRange(1),
            metavar="N",
            help="How many compilers run at once [as many as cores and memory allow].",
        ),
        click.option(
            "--update",
            "update",
            flag_value="follow",
            default="",
            help="Probe again what can be reached, and build what branches are at now in place of what was pinned.",
        ),
        click.option("--pinned", "update", flag_value="pinned", help="Probe again, and go back to what recipes pin."),
    ]

    @functools.wraps(function)
    def wrapper(**values: Any) -> Any:
        # Each field of a request is filled by the option of its name.
        asked = {name: values.pop(name) for name in Request.model_fields}
        return function(request=make_request(asked), **values)

    wrapped: Any = wrapper
    for option in reversed(options):
        wrapped = option(wrapped)
    return wrapped  # type: ignore[no-any-return]


def make_request(values: dict[str, Any]) -> Request:
    """The request for some options; numbers and paths are checked here.

    Args:
        values: as click reads them, by the request's fields.

    Raises:
        DcaError: DCA-201 for a value of the wrong form, DCA-204 for a path that is not there.
    """
    check_cuda(values["cuda"])
    if values["python"] is not None and not re.fullmatch(r"3\.[0-9]{1,2}", values["python"]):
        raise DcaError("DCA-201", f"--python {values['python']} is not a Python version.", remedy="write it as 3.12.")
    if values["dirty"] and not (values["source"] or values["companions"]):
        raise DcaError(
            "DCA-201",
            "--dirty says how a local folder is taken, and none is named.",
            remedy="name one with --source or --companion.",
        )
    for flag, name in (("--arch", "archs"), ("--with", "groups"), ("--prebuilt", "prebuilt")):
        if values[name] and not _all_words(values[name]):
            raise DcaError("DCA-201", f"{flag} is empty.", remedy="give it a value, or leave it out.")
    checked = {
        "archs": arch_list(values["archs"]),
        "groups": _all_words(values["groups"]),
        "source": local("--source", values["source"]),
        "companions": companions(values["companions"]),
        "prebuilt": _all_words(values["prebuilt"]),
        "toolkit": local("--toolkit", values["toolkit"]),
        "model": model_needs.read(values["model"]) if values["model"] else None,
    }
    return Request(**values | checked)


def check_cuda(line: str | None) -> None:
    """Refuse a value of --cuda that is not a CUDA line such as 12.1; None is fine.

    Raises:
        DcaError: DCA-201.
    """
    if line is not None and not re.fullmatch(r"[0-9]{1,2}\.[0-9]", line):
        raise DcaError("DCA-201", f"--cuda {line} is not a CUDA version.", remedy="write it as 12.1.")


def _all_words(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The words of an option that may be given more than once and hold several, each once."""
    return tuple(dict.fromkeys(word for text in texts for word in _words(text)))


def _words(text: str) -> list[str]:
    return [word for word in re.split(r"[,;\s]+", text) if word]


def arch_list(values: tuple[str, ...]) -> tuple[str, ...]:
    """The archs of --arch, which may be given more than once and hold several."""
    return tuple(dict.fromkeys(arch(word) for word in _all_words(values)))


def arch(text: str) -> str:
    """A GPU arch as compute capability: 9.0, 90 and sm_90 are the same; +PTX may follow.

    Raises:
        DcaError: DCA-201.
    """
    match = re.fullmatch(r"(?:sm_?|compute_?)?([0-9]{1,2})\.?([0-9])(a?)(\+PTX)?", text, re.IGNORECASE)
    if match is None:
        raise DcaError(
            "DCA-201",
            f"--arch {text} is not a GPU architecture.",
            remedy="write compute capabilities, such as 8.0,9.0.",
        )
    return f"{match[1]}.{match[2]}{match[3].lower()}{(match[4] or '').upper()}"


def companions(values: tuple[str, ...]) -> dict[str, str]:
    """NAME=PATH pairs; one value may hold several, with spaces or commas between, as make hands them on."""
    paths: dict[str, str] = {}
    for text in (pair for several in values for pair in re.split(r"[\s,]+(?=[\w.+/-]+=)", several.strip())):
        name, separator, path = text.partition("=")
        if not separator or not name or not path:
            raise DcaError(
                "DCA-201",
                f"--companion {text} is not NAME=PATH.",
                remedy="write it as --companion NAME=/path/to/clone.",
            )
        if name in paths:
            raise DcaError("DCA-201", f"--companion {name} is given twice.", remedy="give it once.")
        paths[name] = str(local("--companion", Path(path)))
    return paths


def local(flag: str, path: Path | None) -> str | None:
    """The absolute path of something that the user named.

    Raises:
        DcaError: DCA-204 when it is not there.
    """
    if path is None:
        return None
    if not path.exists():
        raise DcaError("DCA-204", f"{flag}: {path} does not exist.", remedy="check the path.")
    return str(resolve(path))


def resolve(path: Path) -> Path:
    """An absolute path.

    Raises:
        DcaError: DCA-204 for links in a circle, DCA-201 for an empty one.
    """
    if not str(path).strip() or path == Path():
        raise DcaError("DCA-201", "a folder's name is empty.", remedy="name it, or `./` for this one.")
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise DcaError("DCA-204", f"{path} leads in a circle.", why=str(error), remedy="check the links.") from None


def can_be_written(path: Path) -> bool:
    """Whether a file or folder of that name can be made; asked before hours are spent."""
    above = path
    while not above.exists():
        above = above.absolute().parent
    if above != path and not above.is_dir():
        return False
    return os.access(above, os.W_OK | (os.X_OK if above.is_dir() else 0))


def open_cache(folder: Path | None, *, offline: bool = False) -> Store:
    """The cache named, or the user's own."""
    if folder is None:
        from platformdirs import user_cache_path

        folder = user_cache_path("dca")
    return Store(resolve(folder), offline=offline)


def offline(function: F) -> F:
    """--offline."""
    return click.option(
        "--offline", is_flag=True, help="Use no network: what is not in the cache or the bundle is an error."
    )(function)


def of_bundle(typed: Request, packed: Bundle) -> Request:
    """The request that a bundle was packed for, with what the command line says besides.

    Raises:
        DcaError: DCA-201 when the command line asks for another recipe.
    """
    own = packed.manifest.request
    if typed.recipe not in (None, own.recipe):
        raise DcaError(
            "DCA-201",
            f"--recipe {typed.recipe}: {packed.path.name} was packed for {own.recipe}.",
            remedy="leave --recipe out, or name another bundle.",
        )
    context = click.get_current_context()
    explicit = {
        name
        for name in Request.model_fields.keys() - {"recipe"}
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    return own.model_copy(update={name: getattr(typed, name) for name in explicit})


def terminal(*, as_json: bool, quiet: bool) -> Terminal:
    """Who shows progress: on standard error, so that standard output holds the result alone."""
    return Terminal(quiet=quiet or as_json)
