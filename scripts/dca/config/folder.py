"""A model's folder: reads its config.json, replaces it atomically, and records what `undo` needs.

`.dca-undo.json` beside config.json is a stack of the content before each change. It is written before the change and
shortened after an undo; a step that was recorded but not carried out is recognised by its hashes, and dropped.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

from dca.config import text
from dca.config.text import Json
from dca.foundation import documents, store
from dca.foundation.documents import Document, Value
from dca.foundation.errors import DcaError

CONFIG, ONE_MILLION, TABLE, UNDO = "config.json", "config_1m.json", "sparse_attention_config.json", ".dca-undo.json"
QUANTIZATION = "hf_quant_config.json"
ADAPTER = "adapter_config.json"
# What folders have that are no transformers model, or a part of one.
WITHOUT = (
    (".gguf", "GGUF files, which hold their config", "name a folder with the config.json of the original model."),
    ("params.json", "params.json of another format", "download the model's config.json beside it, if it has one."),
    ("model_index.json", "a pipeline of diffusers", "name the folder of a language model, maybe one inside it."),
    (".safetensors.index.json", "weights alone", "download the model's config.json beside them."),
    (".safetensors", "weights alone", "download the model's config.json beside them."),
)
# The tool's own files begin with it.
KEPT = ".dca-undo"
WAIT_SECONDS = 20.0


class Was(Value):
    """An earlier config.json.

    Args:
        sha256: SHA-256 of the content, also behind a link.
        text: content of a plain file, byte-order mark included; empty for a link.
        mode: permissions.
        link: target of the link; None for a plain file.
        kept: name in the folder under which a file with other names (hard links) is kept; empty for others.
    """

    sha256: str
    text: str = ""
    mode: int = 0o644
    link: str | None = None
    kept: str = ""


class Step(Value):
    """One change.

    Args:
        command: the command that made it.
        before: config.json before it.
        after: SHA-256 of config.json after it.
    """

    command: str
    before: Was
    after: str


class Steps(Document):
    """All changes that can be undone, the latest last."""

    SCHEMA: ClassVar[str] = "dca.config-undo/1"

    steps: tuple[Step, ...] = ()


class Change(Value):
    """What a command did to a folder, or would do.

    Args:
        file: the config.json.
        changed: whether anything differs.
        written: whether it was written; false for a dry run.
        diff: unified diff of the lines.
        can_undo: how many changes of that folder can now be undone.
    """

    file: str
    changed: bool
    written: bool
    diff: str = ""
    can_undo: int = 0


def readable(path: Path) -> str:
    """A path as valid UTF-8; bytes that are not UTF-8 are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def read(folder: Path, name: str = CONFIG) -> Json:
    """A file of a model's folder.

    Raises:
        DcaError: DCA-204 when it does not exist, DCA-207 when it is not a regular file, DCA-206 when it cannot be
            parsed.
    """
    return text.parse(content(_folder(folder) / name), str(folder / name))


def _folder(folder: Path) -> Path:
    if not folder.is_dir():
        what = f"{folder} is not a folder." if folder.exists() else f"{folder} does not exist."
        raise DcaError("DCA-204", what, remedy="name the model's folder, which contains config.json.")
    return folder


def content(path: Path) -> bytes:
    """A file's content; never blocks on a FIFO, never reads a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except FileNotFoundError:
        what, remedy = f"{path} does not exist.", "name a folder that contains the model's files."
        if path.is_symlink():
            what = f"{path} is a broken link."
        elif path.name == ONE_MILLION and (path.parent / CONFIG).exists():
            what = f"the folder {path.parent} has no {ONE_MILLION}, which few models are published with."
            remedy = "keep the file as it is, or write the settings with `dca config set-dca` or `dca config set-yarn`."
        elif path.name == CONFIG and (found := _instead(path.parent)):
            what, remedy = f"{path} does not exist: {found[0]}.", found[1]
        raise DcaError("DCA-204", what, remedy=remedy) from None
    except OSError as error:
        raise DcaError(
            "DCA-207",
            f"{path} cannot be read.",
            why=error.strerror or str(error),
            remedy="check its type and permissions.",
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise DcaError("DCA-207", f"{path} is not a regular file.", remedy="replace it with the model's own file.")
        with os.fdopen(descriptor, "rb", closefd=False) as stream:
            return stream.read(text.MOST_BYTES + 1)
    finally:
        os.close(descriptor)


def _instead(folder: Path) -> tuple[str, str] | None:
    """What a folder without a config.json has, as a clause, and what to do; None when it has nothing that is known."""
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    if ADAPTER in names:
        base = ""
        with contextlib.suppress(DcaError):
            base = str(text.parse(content(folder / ADAPTER), ADAPTER).plain().get("base_model_name_or_path") or "")
        return (
            f"the folder has an adapter{f' of {base}' if base else ''}, not a model",
            "name its base model; vLLM serves both with `--enable-lora --lora-modules NAME=DIR`.",
        )
    if "snapshots" in names:
        return "the folder is one of a hub's cache", "name the folder in its `snapshots`, or the model as ORG/NAME."
    for ending, what, remedy in WITHOUT:
        if any(name.endswith(ending) for name in names):
            return f"the folder has {what}", remedy
    return None


# --- changes -------------------------------------------------------------------------------------------------------


def change(
    folder: Path, command: str, edit: Callable[[Json], Json], *, dry_run: bool = False, out: Path | None = None
) -> Change:
    """Edit a folder's config.json, or make a new folder with the edited one.

    Args:
        folder: the model's folder.
        command: the command's name, for the record.
        edit: returns the edited file, given the current one.
        dry_run: only show what would change.
        out: a new folder to make, with links to everything else in the old one.

    Raises:
        DcaError: DCA-204, 206 and 207 for what cannot be read or written, DCA-210 when another process is changing the
            folder, and what `edit` raises. Nothing is changed then.
    """
    if dry_run:
        source = read(folder)
        return _change_of((out or folder) / CONFIG, source.text, edit(source).text, 0)
    _folder(folder)
    with _held(folder):
        source = read(folder)
        edited = edit(source)
        if out is not None:
            return _new_folder(folder, out, source, edited)
        steps = pending_dropped(_steps(folder), _now(folder))
        if edited.data == source.data:
            return _change_of(folder / CONFIG, source.text, edited.text, len(steps))
        _must_be_writable(folder)
        before = _now(folder)
        if before.link is None:
            before = before.model_copy(update={"text": source.data.decode("utf-8"), "kept": _keep(folder, len(steps))})
        steps = (*steps, Step(command=command, before=before, after=store.sha256_bytes(edited.data)))
        documents.write(Steps(steps=steps), folder / UNDO)
        store.write_bytes(folder / CONFIG, edited.data, mode=before.mode)
        return _change_of(folder / CONFIG, source.text, edited.text, len(steps), written=True)


def undo(folder: Path, *, dry_run: bool = False, force: bool = False) -> tuple[Change, str]:
    """Restore config.json as it was before the last change, byte for byte, and a link as a link.

    Args:
        folder: the model's folder.
        dry_run: only show what would change.
        force: undo even if the file has changed since.

    Returns:
        The change, and the command that was undone.

    Raises:
        DcaError: DCA-209 when there is nothing to undo or the file has changed since, and those of `change`.
    """
    _folder(folder)
    with contextlib.nullcontext() if dry_run else _held(folder):
        now = _now(folder)
        steps = pending_dropped(_steps(folder), now)
        if not steps:
            raise DcaError("DCA-209", f"{folder} has no change to undo.", remedy="nothing to do.")
        last = steps[-1]
        if now.sha256 != last.after and not force:
            raise DcaError(
                "DCA-209",
                f"{folder / CONFIG} has changed since `{last.command}`.",
                why="undo would lose that change.",
                remedy=f"--force restores the file from before `{last.command}`.",
            )
        before = _content(folder, last.before)
        old, new = (data.decode("utf-8", "replace") for data in (_bytes_if_there(folder), before))
        if not dry_run:
            _must_be_writable(folder)
            _restore(folder, last.before, before)
            _record(folder, steps[:-1])
        return _change_of(folder / CONFIG, old, new, len(steps) - (not dry_run), written=not dry_run), last.command


def first(folder: Path) -> bytes | None:
    """config.json before all changes that can be undone; None without any, or when it no longer exists."""
    steps = pending_dropped(_steps(folder), _now(folder))
    with contextlib.suppress(DcaError):
        return _content(folder, steps[0].before) if steps else None
    return None


def pending_dropped(steps: tuple[Step, ...], now: Was) -> tuple[Step, ...]:
    """The steps without those recorded but never carried out, and those undone but still recorded."""
    while steps and steps[-1].after != now.sha256 and _same(steps[-1].before, now):
        steps = steps[:-1]
    return steps


def _same(was: Was, now: Was) -> bool:
    return (was.sha256, was.link) == (now.sha256, now.link)


def _now(folder: Path) -> Was:
    """The current config.json without its text; the hash is empty when it does not exist."""
    path = folder / CONFIG
    if not path.exists():
        return Was(sha256="")
    return Was(
        sha256=store.sha256_bytes(content(path)),
        mode=stat.S_IMODE(path.stat().st_mode),
        link=str(path.readlink()) if path.is_symlink() else None,
    )


def _bytes_if_there(folder: Path) -> bytes:
    path = folder / CONFIG
    return content(path) if path.exists() else b""


def _content(folder: Path, was: Was) -> bytes:
    """The bytes of an earlier config.json.

    Raises:
        DcaError: DCA-209 when it was a link, and the link's target is missing or has changed.
    """
    if was.link is None:
        return was.text.encode("utf-8")
    with contextlib.suppress(DcaError):
        data = content(folder / was.link)
        if store.sha256_bytes(data) == was.sha256:
            return data
    raise DcaError(
        "DCA-209",
        f"{folder / CONFIG} was a link to {was.link}, which is missing or has changed since.",
        remedy="download the model's config.json again.",
    )


def _steps(folder: Path) -> tuple[Step, ...]:
    path = folder / UNDO
    if not path.exists():
        return ()
    content(path)
    return documents.read(Steps, path).steps


def _keep(folder: Path, number: int) -> str:
    """Give a config.json that has other names one more, so that undo restores the file itself; its name, or none."""
    if (folder / CONFIG).stat().st_nlink < 2:
        return ""
    name = f"{KEPT}-{number}.json"
    with contextlib.suppress(OSError):
        (folder / name).unlink(missing_ok=True)
        (folder / name).hardlink_to(folder / CONFIG)
        return name
    # A file system without hard links: the bytes are recorded, as for every file.
    return ""


def _restore(folder: Path, was: Was, data: bytes) -> None:
    kept = folder / was.kept if was.kept else None
    if was.link is not None:
        store.write_link(folder / CONFIG, was.link)
    elif kept is not None and _unchanged(kept, was):
        kept.replace(folder / CONFIG)
    else:
        store.write_bytes(folder / CONFIG, data, mode=was.mode)


def _unchanged(kept: Path, was: Was) -> bool:
    """Whether a kept file is still what it was; its other names may have been written through."""
    with contextlib.suppress(DcaError):
        return store.sha256_bytes(content(kept)) == was.sha256 and stat.S_IMODE(kept.stat().st_mode) == was.mode
    return False


def _record(folder: Path, steps: tuple[Step, ...]) -> None:
    if steps:
        documents.write(Steps(steps=steps), folder / UNDO)
    else:
        (folder / UNDO).unlink(missing_ok=True)
    used = {step.before.kept for step in steps}
    for kept in folder.glob(f"{KEPT}-*.json"):
        if kept.name not in used:
            kept.unlink(missing_ok=True)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    with store.folder_lock(folder, WAIT_SECONDS) as held:
        if not held:
            raise DcaError(
                "DCA-210",
                f"another dca process is changing {folder}.",
                remedy="run the command again when that process has ended.",
            )
        yield


def _must_be_writable(folder: Path) -> None:
    """Reject a read-only file or folder, for root too."""
    path = folder / CONFIG
    for place in (folder, *(() if path.is_symlink() or not path.exists() else (path,))):
        if not place.stat().st_mode & 0o222 or not os.access(place, os.W_OK):
            raise DcaError(
                "DCA-207",
                f"{place} is read-only.",
                remedy="make it writable, or make a new folder with links to this one: --out DIR.",
            )


def _change_of(file: Path, before: str, after: str, can_undo: int, *, written: bool = False) -> Change:
    return Change(
        file=readable(file), changed=before != after, written=written, diff=diff(before, after), can_undo=can_undo
    )


def diff(before: str, after: str) -> str:
    """The lines that differ, as a unified diff."""
    # Not splitlines, which also splits at characters inside strings.
    old, new = ([f"{line}\n" for line in text.replace("\r\n", "\n").split("\n")] for text in (before, after))
    return "".join(difflib.unified_diff(old, new, f"a/{CONFIG}", f"b/{CONFIG}", n=2))


# --- a new folder --------------------------------------------------------------------------------------------------


def _new_folder(folder: Path, out: Path, source: Json, edited: Json) -> Change:
    """A folder with its own config.json and links to everything else; it is made under a temporary name and moved."""
    if out.resolve().is_relative_to(folder.resolve()):
        raise DcaError("DCA-207", f"--out: {out} is inside {folder}.", remedy="name a folder elsewhere.")
    if out.exists() or out.is_symlink():
        with contextlib.suppress(DcaError):
            if read(out).data == edited.data and _leads_to(out, folder):
                return Change(file=readable(out / CONFIG), changed=False, written=False)
        raise DcaError("DCA-207", f"--out: {out} exists already.", remedy="name a new folder, or remove it.")
    if not out.parent.is_dir():
        raise DcaError("DCA-204", f"--out: {out.parent} is not a folder.", remedy="make it, or name another.")
    with store.incoming_folder(out) as part:
        for entry in others(folder):
            (part / entry.name).symlink_to(entry.absolute())
        store.write_bytes(part / CONFIG, edited.data)
    return _change_of(out / CONFIG, source.text, edited.text, 0, written=True).model_copy(update={"changed": True})


def others(folder: Path) -> list[Path]:
    """Everything in a folder except its config.json and the tool's own files."""
    return [
        entry
        for entry in sorted(folder.iterdir())
        if entry.name != CONFIG and not entry.name.startswith(KEPT) and not _is_part(entry.name)
    ]


def _is_part(name: str) -> bool:
    return name.startswith(".") and name.endswith(".part")


def _leads_to(out: Path, folder: Path) -> bool:
    return all(
        (out / entry.name).is_symlink() and (out / entry.name).readlink() == entry.absolute()
        for entry in others(folder)
    )
