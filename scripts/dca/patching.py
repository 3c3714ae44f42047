"""Applies a recipe's series to its source: pristine tree in, patched tree out, the whole series reported."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

from dca import data, documents, runner, store
from dca.documents import Value
from dca.errors import DcaError
from dca.fetch import Tree
from dca.plan import Plan

Status = Literal["clean", "already there", "added"]
# The modes a patch may give a file: plain and executable. Links and submodules are never written.
_MODES = {"100644", "100755"}


class Applied(Value):
    """One patch of a series and what became of it."""

    name: str
    status: Status


def series(folder: Path) -> list[Path]:
    """The patches of a series, in order; lines that begin with # are comments."""
    path = folder / "series"
    if not path.is_file():
        return []
    names = [line.strip() for line in path.read_text().splitlines()]
    return [folder / name for name in names if name and not name.startswith("#")]


def patch(plan: Plan, tree: Tree, cache: store.Store, log: Path) -> Tree:
    """The source tree with the recipe's patches and added files.

    The pristine tree stays as it is; the patched one is a copy that appears whole or not at all.

    Raises:
        DcaError: DCA-501 when a patch does not apply, DCA-502 for one that is never applied.
    """
    folder = data.patches_folder(plan.recipe)
    source = next(one for one in tree.sources if one.name == "source")
    key = documents.digest({"tree": source.tree, "series": plan.series_digest})[:16]
    target = cache.folder("patched", key)
    with cache.lock("patched", key):
        if (kept := documents.read_if_whole(Tree, target / "source.json")) is not None:
            # Only what patching made is taken from there: companions and members are those of this plan.
            return tree.model_copy(
                update={
                    "source_folder": str(target / "source"),
                    "patched": kept.patched,
                    "patches": kept.patches,
                }
            )
        store.sweep(target)
        with store.incoming_folder(target) as part:
            shutil.copytree(tree.path("source"), part / "source", symlinks=True)
            applied = apply(folder, part / "source", log)
            patched = tree.model_copy(update={
                "source_folder": str(target / "source"),
                "patched": store.tree_hash(part / "source"),
                "patches": tuple(f"{one.name}: {one.status}" for one in applied),
            })  # fmt: skip
            documents.write(patched, part / "source.json")
    return patched


def apply(folder: Path, source: Path, log: Path) -> list[Applied]:
    """Apply every patch of a series and copy its added files, in place; on any error the tree is as it was.

    Raises:
        DcaError: DCA-501, with what git says of each patch that does not apply; DCA-502.
    """
    paths = series(folder)
    touched = [name for path in paths for name in check(path, source)]
    added = _added(folder, source)
    before = {name: _content(source / name) for name in touched}
    try:
        applied = _apply_all(paths, source, log)
    except BaseException:
        for name, content in before.items():
            _restore(source / name, content)
        raise
    for relative, path in added:
        target = source / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        applied.append(Applied(name=relative, status="added"))
    return applied


def _apply_all(paths: list[Path], source: Path, log: Path) -> list[Applied]:
    outcomes = {path.name: _apply_one(path, source, log) for path in paths}
    failed = [f"{name}: {outcome}" for name, outcome in outcomes.items() if isinstance(outcome, str)]
    if failed:
        raise DcaError(
            "DCA-501",
            f"{len(failed)} of {len(paths)} patches do not apply.",
            why="\n".join(failed),
            remedy="the source moved: adapt the patches of the series.",
        )
    return [outcome for outcome in outcomes.values() if isinstance(outcome, Applied)]


def _apply_one(path: Path, source: Path, log: Path) -> Applied | str:
    """One patch, by git; what git says of it when it does not apply."""
    # Neither a repository above the tree nor anybody's settings have a say: inside a repository git apply would
    # skip files without a word, and some settings make it accept other white space.
    env = runner.environment(
        {
            "GIT_DIR": "/nonexistent",
            "GIT_CEILING_DIRECTORIES": str(source.parent),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
        }
    )
    git: list[str | Path] = [runner.which("git"), "apply", "-p1", "--whitespace=nowarn"]
    checked = runner.run([*git, "--check", path], cwd=source, env=env, log=log)
    if checked.ok:
        checked = runner.run([*git, path], cwd=source, env=env, log=log)
        if checked.ok:
            return Applied(name=path.name, status="clean")
    elif runner.run([*git, "--check", "--reverse", path], cwd=source, env=env, log=log).ok:
        return Applied(name=path.name, status="already there")
    return "; ".join(line.removeprefix("error: ") for line in checked.tail[:2]) or "git apply failed"


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def _restore(path: Path, content: bytes | None) -> None:
    if content is None:
        path.unlink(missing_ok=True)
    elif not path.is_file() or path.read_bytes() != content:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _added(folder: Path, source: Path) -> list[tuple[str, Path]]:
    """The files that a series adds; refused where the source already has something of that name."""
    added = folder / "added"
    if not added.is_dir():
        return []
    files = list(store.walk(added, skip=lambda name: "__pycache__" in name))
    for relative, _ in files:
        if (source / relative).exists() or _through_link(relative, source):
            raise DcaError(
                "DCA-502",
                f"the added file {relative} exists in the source.",
                remedy="give it another name in the series.",
            )
    return files


def _through_link(name: str, source: Path) -> bool:
    """Whether a path of the tree is a link or lies below one."""
    parts = PurePosixPath(name).parts
    return any(source.joinpath(*parts[:size]).is_symlink() for size in range(1, len(parts) + 1))


_HUNK = re.compile(r"^@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
# Whatever is more than a change of text files: modes, renames, binary content.
_NEVER = (
    "old mode",
    "new mode",
    "rename ",
    "copy ",
    "similarity ",
    "dissimilarity ",
    "GIT binary patch",
    "Binary files ",
)


def check(path: Path, source: Path) -> list[str]:
    """The files that a patch writes, if it is one that this tool applies.

    Refused are paths outside of the tree, links and what lies below them, mode changes, renames, binary content and
    anything below .git; also quoted paths, whose real name only git would know.

    Raises:
        DcaError: DCA-502.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        raise DcaError(
            "DCA-502",
            f"the series names {path.name}, which does not exist.",
            remedy=f"correct {path.parent / 'series'}.",
        ) from None
    except UnicodeDecodeError as error:
        raise _refused(path, "is not text", str(error)) from None
    names: list[str] = []
    for line in _headers(path, lines):
        if line.startswith(("--- ", "+++ ")):
            names.append(_name(line[4:].split("\t")[0], path, source))
        elif line.startswith("diff --git "):
            for word in line.split()[2:]:
                _name(word, path, source)
        elif line.startswith(_NEVER):
            raise _refused(path, f"holds `{line}`, which is never applied", "")
        elif line.startswith(("new file mode", "deleted file mode", "index ")):
            mode = line.split()[-1]
            if re.fullmatch(r"\d{6}", mode) and mode not in _MODES:
                raise _refused(path, f"holds `{line}`, which is never applied", "")
    return [name for name in dict.fromkeys(names) if name]


def _headers(path: Path, lines: list[str]) -> Iterator[str]:
    """A patch's lines outside of its hunks, from the first that belongs to a file on."""
    old = new = hunks = 0
    begun = False
    for line in lines:
        if old > 0 or new > 0:
            # An empty line is a context line whose space an editor has taken away.
            if line[:1] not in (" ", "+", "-", "\\", ""):
                raise _refused(path, "is cut short or damaged", line)
            old -= line[:1] in (" ", "-", "")
            new -= line[:1] in (" ", "+", "")
        elif match := _HUNK.match(line):
            old, new = int(match[1] or 1), int(match[2] or 1)
            hunks += 1
        else:
            begun = begun or line.startswith(("diff --git ", "--- "))
            if begun and line != "-- ":
                yield line
    if old > 0 or new > 0 or not hunks:
        raise _refused(path, "is cut short or changes no file", "")


def _name(text: str, path: Path, source: Path) -> str:
    """A patch's path without its prefix; empty for /dev/null."""
    if text == "/dev/null":
        return ""
    prefix, _, name = text.partition("/")
    parts = name.split("/")
    if prefix not in ("a", "b") or not name or ".." in parts or ".git" in [part.lower() for part in parts]:
        raise _refused(path, f"writes to {text}, outside of the tree", "")
    if _through_link(name, source):
        raise _refused(path, f"writes to {name}, which is a link or lies below one", "")
    return name


def _refused(path: Path, what: str, why: str) -> DcaError:
    return DcaError(
        "DCA-502", f"{path.name} {what}.", why=why, remedy="write it as plain changes of text files, with git diff."
    )
