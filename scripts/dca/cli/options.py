"""Options that several commands share, what they mean, and how a result is shown."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click
from pydantic import BaseModel

from dca.catalogue import model_needs
from dca.catalogue.compiler_caches import CacheOption
from dca.catalogue.plan import Request
from dca.cli.packing import packed
from dca.cli.pasting import pasteable
from dca.cli.terminal import Terminal
from dca.foundation import documents, hub
from dca.foundation.documents import Document
from dca.foundation.errors import DcaError
from dca.foundation.printable import printable
from dca.foundation.store import Store

if TYPE_CHECKING:
    from dca.pipeline.bundle import Bundle

FILE = click.Path(path_type=Path, dir_okay=False)
FOLDER = click.Path(path_type=Path, file_okay=False)
PATH = click.Path(path_type=Path)


_DOWNLOAD = "dca.download"
"""Key of a command's context: whether --download was given."""


def _downloaded(model: str, ctx: click.Context | None) -> None:
    """Download what a hub's name stands for, if --download was given."""
    if ctx is not None and ctx.meta.get(_DOWNLOAD) and hub.is_name(model):
        from dca.sources import hub_files

        hub_files.download(model)


class ModelPath(click.Path):
    """A model's folder or config.json, or its name on a hub whose snapshot is in the hub's cache."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The path of the folder, or of the file."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        _downloaded(str(path), ctx)
        return hub.located(path)


class ModelName(click.ParamType[Any]):
    """A model by a path or a name, of which only --download needs to know more."""

    name = "model"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ARG002
        """The text as it is."""
        _downloaded(str(value), ctx)
        return value


MODEL, MODEL_NAME = ModelPath(path_type=Path), ModelName()


def _ask_hub(ctx: click.Context, _: click.Parameter, value: Any) -> None:
    ctx.meta[_DOWNLOAD] = value


# It is read before the model's name, wherever it stands.
download = click.option(
    "--download",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_ask_hub,
    help="Download the config.json of a hub's ORG/NAME or ORG/NAME@REVISION into the hub's cache.",
)


@dataclass(frozen=True)
class Output:
    """How a command shows its progress and its result."""

    as_json: bool
    quiet: bool

    def terminal(self) -> Terminal:
        """Shows progress on standard error, so that standard output holds the result alone."""
        return Terminal(quiet=self.quiet or self.as_json)

    def show(self, result: BaseModel | dict[str, Any], text: str, *, always: bool = False) -> None:
        """Print a result.

        Args:
            result: what --json prints.
            text: what is printed without it.
            always: whether --quiet prints the text too.
        """
        if self.as_json:
            document = result.model_dump(mode="json") if isinstance(result, BaseModel) else result
            click.echo(documents.canonical(document).decode(), nl=False)
        elif text and (always or not self.quiet):
            click.echo(printable(pasteable(text)))


json = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON document.")
output = packed(Output, "output", json, click.option("--quiet", is_flag=True, help="Print only errors and the result."))
cache = click.option(
    "--cache-dir",
    envvar="DCA_CACHE_DIR",
    type=FOLDER,
    show_envvar=True,
    show_default="the user's cache folder",
    help="Folder for downloads, environments and builds.",
)
offline = click.option(
    "--offline", is_flag=True, help="Use no network; fail if something is missing from the cache and the bundle."
)


def schema(kind: type[Document]) -> Callable[[Any], Any]:
    """--schema, for a command whose result is a `kind`."""

    def show(context: click.Context, _: click.Parameter, asked: bool) -> None:
        if asked and not context.resilient_parsing:
            click.echo(documents.canonical(documents.json_schema(kind)).decode(), nl=False)
            context.exit()

    return click.option(
        "--schema",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Print the JSON Schema of the result and exit.",
    )


def request(function: Any) -> Any:
    """What to build, as the parameter `request`; and `update`."""
    for option in (
        click.option(
            "--pinned",
            "update",
            flag_value="pinned",
            help="Check again what can be downloaded, and return to the commits that recipes pin.",
        ),
        click.option(
            "--update",
            "update",
            flag_value="follow",
            default="",
            help="Check again what can be downloaded, and build the newest commits of branches instead of the pinned "
            "ones.",
        ),
        packed(
            make_request,
            "request",
            click.option("--recipe", show_default="the first that can be built", help="Recipe to build."),
            click.option("--cuda", show_default="the recipe's own", help="CUDA version to build for, such as 12.1."),
            click.option(
                "--arch",
                "archs",
                multiple=True,
                show_default="the GPUs of this machine, else 8.0,9.0",
                help="GPU architectures, such as 8.0,9.0.",
            ),
            click.option(
                "--driver",
                metavar="VERSION",
                show_default="this machine's",
                help="NVIDIA driver of the machine that the wheel is for, such as 550.54.",
            ),
            click.option("--profile", default="lean", show_default=True, help="Profile: which modules to compile."),
            click.option("--with", "groups", multiple=True, metavar="GROUP", help="Group to add to the profile's."),
            click.option(
                "--model",
                type=MODEL,
                metavar="CONFIG",
                help="Model's config.json, folder or name on a hub; adds the groups it needs.",
            ),
            download,
            click.option("--source", type=PATH, help="Local clone or sdist to build from."),
            click.option(
                "--dirty",
                is_flag=True,
                help="Build a local folder as it is, with its changes; `dca publish` rejects such a wheel.",
            ),
            click.option(
                "--companion", "companions", multiple=True, metavar="NAME=PATH", help="Local clone of a companion."
            ),
            click.option(
                "--prebuilt",
                multiple=True,
                metavar="NAME|all",
                help="Module or companion to copy from the official wheel instead of compiling it.",
            ),
            click.option(
                "--prebuilt-whole",
                is_flag=True,
                help="Keep every kernel of copied modules, also for head dimensions and data types of no group.",
            ),
            click.option(
                "--variants",
                is_flag=True,
                help="Make the wheel a variant, which installers choose by GPU and driver. Experimental.",
            ),
            click.option("--toolkit", type=PATH, help="Folder of the CUDA toolkit to use."),
            click.option(
                "--try-toolkit",
                is_flag=True,
                help="Also use a toolkit of a CUDA version outside the recipe's range, of the same major version.",
            ),
            click.option(
                "--strict-cuda", is_flag=True, help="Fail if the build would use another CUDA version than --cuda."
            ),
            click.option(
                "--python", show_default="the version that runs dca", help="Python version to build for, such as 3.12."
            ),
            click.option(
                "--jobs",
                type=click.IntRange(1),
                metavar="N",
                show_default="as many as cores and memory allow",
                help="Number of compilers that run at once.",
            ),
            click.option(
                "--compiler-cache",
                type=click.Choice(get_args(CacheOption)),
                default="auto",
                show_default=True,
                help="Compiler cache to use; auto uses one that variables such as SCCACHE_REDIS_ENDPOINT share.",
            ),
        ),
    ):
        function = option(function)
    return function


def make_request(**values: Any) -> Request:
    """The request that these options make; their numbers and paths are checked.

    Args:
        values: as click reads them, by the request's fields.

    Raises:
        DcaError: DCA-201 for a value of the wrong form, DCA-204 for a path that does not exist.
    """
    check_cuda(values["cuda"])
    if values["python"] is not None and not re.fullmatch(r"3\.[0-9]{1,2}", values["python"]):
        raise DcaError("DCA-201", f"--python {values['python']} is not a Python version.", remedy="write it as 3.12.")
    check_driver(values["driver"])
    if values["dirty"] and not (values["source"] or values["companions"]):
        raise DcaError(
            "DCA-201",
            "--dirty needs a local folder.",
            remedy="name one with --source or --companion.",
        )
    for flag, name in (("--arch", "archs"), ("--with", "groups"), ("--prebuilt", "prebuilt")):
        if values[name] and not all_words(values[name]):
            raise DcaError("DCA-201", f"{flag} is empty.", remedy="give it a value, or omit it.")
    checked = {
        "archs": arch_list(values["archs"]),
        "groups": all_words(values["groups"]),
        "source": local("--source", values["source"]),
        "companions": companions(values["companions"]),
        "prebuilt": all_words(values["prebuilt"]),
        "toolkit": local("--toolkit", values["toolkit"]),
        "model": model_needs.read(values["model"]) if values["model"] else None,
    }
    return Request(**values | checked)


def spelled(asked: Request) -> list[str]:
    """The options that make a request, as words of a command line; its model has no words, but its groups have.

    Args:
        asked: the request.
    """
    words = []
    for option in reversed(request(lambda **_: None).__click_params__):
        value = getattr(asked, option.name, None)
        if option.name == "model" or value in (None, False, (), {}):
            continue
        if value is True:
            words.append(option.opts[0])
        elif isinstance(value, dict):
            words += [word for name, path in value.items() for word in (option.opts[0], f"{name}={path}")]
        elif value != Request.model_fields[option.name].default:
            words += [option.opts[0], ",".join(value) if isinstance(value, tuple) else str(value)]
    return words


def check_cuda(line: str | None) -> None:
    """Reject a value of --cuda that is not a CUDA version such as 12.1.

    Raises:
        DcaError: DCA-201.
    """
    if line is not None and not re.fullmatch(r"[0-9]{1,2}\.[0-9]", line):
        raise DcaError("DCA-201", f"--cuda {line} is not a CUDA version.", remedy="write it as 12.1.")


def check_driver(version: str | None) -> None:
    """Reject a value of --driver that is not the version of a driver.

    Raises:
        DcaError: DCA-201.
    """
    if version is not None and not re.fullmatch(r"[0-9]{3,4}(\.[0-9]{1,4}){0,2}", version):
        raise DcaError(
            "DCA-201",
            f"--driver {version} is not a driver version.",
            remedy="write it as 550.54.15, as nvidia-smi shows it.",
        )


def all_words(texts: tuple[str, ...]) -> tuple[str, ...]:
    """The distinct words of an option that may be repeated, and may hold several words."""
    return tuple(dict.fromkeys(word for text in texts for word in re.split(r"[,;\s]+", text) if word))


def arch_list(values: tuple[str, ...]) -> tuple[str, ...]:
    """The archs of --arch, which may be repeated and may hold several."""
    return tuple(dict.fromkeys(arch(word) for word in all_words(values)))


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
            remedy="give compute capabilities, such as 8.0,9.0.",
        )
    return f"{match[1]}.{match[2]}{match[3].lower()}{(match[4] or '').upper()}"


def companions(values: tuple[str, ...]) -> dict[str, str]:
    """NAME=PATH pairs; one value may hold several, separated by spaces or commas, as make passes them."""
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
    """The absolute path of an option's file or folder.

    Raises:
        DcaError: DCA-204 when it does not exist.
    """
    if path is None:
        return None
    if not path.exists():
        raise DcaError("DCA-204", f"{flag}: {path} does not exist.", remedy="check the path.")
    return str(resolve(path))


def resolve(path: Path) -> Path:
    """An absolute path.

    Raises:
        DcaError: DCA-204 for a circle of symbolic links, DCA-201 for an empty path.
    """
    if not str(path).strip() or path == Path():
        raise DcaError("DCA-201", "the name of a folder is empty.", remedy="name it, or use `./` for the current one.")
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:
        raise DcaError(
            "DCA-204", f"{path} is a circle of symbolic links.", why=str(error), remedy="check them."
        ) from None


def check_writable(flag: str, path: Path | None) -> None:
    """Reject, before hours are spent, a file or folder that cannot be written.

    Raises:
        DcaError: DCA-204.
    """
    if path is None:
        return
    above = path
    while not above.exists():
        above = above.absolute().parent
    is_folder = above.is_dir()
    if not (above == path or is_folder) or not os.access(above, os.W_OK | (os.X_OK if is_folder else 0)):
        raise DcaError("DCA-204", f"{flag}: {path} cannot be written.", remedy="choose another path.")


def check_file(flag: str, path: Path | None) -> None:
    """Reject a path that is not a file.

    Raises:
        DcaError: DCA-204.
    """
    if path is not None and not path.is_file():
        raise DcaError("DCA-204", f"{flag}: {path} is not a file.", remedy="check the path.")


def program(flag: str, name: Path | str) -> Path:
    """The absolute path of a program; links are kept, because the Python of a virtual environment is one.

    Raises:
        DcaError: DCA-204.
    """
    if (path := shutil.which(name)) is None:
        raise DcaError("DCA-204", f"{flag}: {name} is not a program.", remedy="check the path.")
    return Path(path).absolute()


def open_cache(folder: Path | None, *, offline: bool = False) -> Store:
    """The named cache, or the user's own."""
    if folder is None:
        from platformdirs import user_cache_path

        folder = user_cache_path("dca")
    return Store(resolve(folder), offline=offline)


def of_bundle(typed: Request, packed: Bundle) -> Request:
    """The request that a bundle was packed for, changed by the options on the command line.

    Raises:
        DcaError: DCA-201 when the command line names another recipe.
    """
    own = packed.manifest.request
    if typed.recipe not in (None, own.recipe):
        raise DcaError(
            "DCA-201",
            f"--recipe {typed.recipe}: {packed.path.name} was packed for {own.recipe}.",
            remedy="omit --recipe, or name another bundle.",
        )
    context = click.get_current_context()
    explicit = {
        name
        for name in Request.model_fields.keys() - {"recipe"}
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    }
    return own.model_copy(update={name: getattr(typed, name) for name in explicit})
