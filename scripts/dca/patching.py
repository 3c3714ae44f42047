"""Applies a recipe's series to its source and its companions: pristine trees in, patched ones out, all reported.

A patch of the series lies beside it, and one of a companion in a folder of the companion's name.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

from dca import data, documents, runner, store
from dca.errors import DcaError
from dca.fetch import Applied, Tree
from dca.plan import Plan
from dca.recipes import Recipe

SOURCE = "source"
# The modes a patch may give a file: plain and executable. Links and submodules are never written.
_MODES = {"100644", "100755"}


class Patch(NamedTuple):
    """A patch of a series.

    Args:
        name: as the series spells it.
        tree: what it is for: the source, or a companion.
        path: where it lies.
    """

    name: str
    tree: str
    path: Path


def series(folder: Path) -> list[Patch]:
    """The patches of a series, in order; lines that begin with # are comments."""
    path = folder / "series"
    if not path.is_file():
        return []
    names = [line.strip() for line in path.read_text().splitlines()]
    return [
        Patch(name, name.rpartition("/")[0] or SOURCE, folder / name)
        for name in names
        if name and not name.startswith("#")
    ]


def patch(plan: Plan, recipe: Recipe, tree: Tree, cache: store.Store, log: Path) -> Tree:
    """The trees of a plan with the recipe's patches and added files.

    Pristine trees stay as they are; the patched ones are copies that appear whole or not at all.

    Raises:
        DcaError: DCA-501 when a patch does not apply, DCA-502 for one that is never applied.
    """
    folder = data.patches_folder(plan.recipe)
    there = [one.name for one in tree.sources if "/" not in one.name]
    patched = [name for name in there if name in {SOURCE, *(one.tree for one in series(folder))}]
    # A companion's submodules lie inside of it.
    trees = {one.name: one.tree for one in tree.sources if one.name.split("/")[0] in patched}
    key = documents.digest({"trees": trees, "series": plan.series_digest})[:16]
    target = cache.folder("patched", key)
    with cache.lock("patched", key):
        if (kept := documents.read_if_whole(Tree, target / "source.json")) is None:
            store.sweep(target)
            with store.incoming_folder(target) as part:
                for name in patched:
                    shutil.copytree(tree.path(name), part / name, symlinks=True)
                added = [data.patches_folder(name) for name in recipe.patches.added]
                applied = apply(folder, {name: part / name for name in patched}, log, added)
                kept = tree.model_copy(update={
                    "patched": {name: store.tree_hash(part / name) for name in patched},
                    "patches": tuple(applied),
                })  # fmt: skip
                documents.write(kept, part / "source.json")
    # Only what patching made is taken from there: the rest is this plan's, and the cache may have been moved since.
    folders = {name: str(target / name) for name in patched}
    return tree.model_copy(update={"folders": folders, "patched": kept.patched, "patches": kept.patches})


def apply(folder: Path, trees: Mapping[str, Path], log: Path, added: Sequence[Path] = ()) -> list[Applied]:
    """Apply every patch of a series and copy its added files, in place; on any error the trees are as they were.

    Args:
        folder: of the series.
        trees: the source and the companions that are there; a patch of another companion is not needed.
        log: what git says goes there.
        added: folders whose files are added to the source, besides the series' own folder `added`.

    Raises:
        DcaError: DCA-501, with what git says of each patch that does not apply; DCA-502.
    """
    patches = series(folder)
    touched = {
        trees[one.tree] / file for one in patches if one.tree in trees for file in check(one.path, trees[one.tree])
    }
    copies = [pair for one in (folder / "added", *added) for pair in _added(one, trees[SOURCE])]
    before = {path: _content(path) for path in touched}
    try:
        applied = _apply_all(patches, trees, log)
    except BaseException:
        for path, content in before.items():
            _restore(path, content)
        raise
    for relative, path in copies:
        target = trees[SOURCE] / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        applied.append(Applied(name=relative, status="added", sha256=store.sha256_file(path)))
    return applied


def _apply_all(patches: list[Patch], trees: Mapping[str, Path], log: Path) -> list[Applied]:
    outcomes = {
        one.name: _apply_one(one, trees[one.tree], log) if one.tree in trees else _applied(one, "not needed")
        for one in patches
    }
    failed = [f"{name}: {outcome}" for name, outcome in outcomes.items() if isinstance(outcome, str)]
    if failed:
        raise DcaError(
            "DCA-501",
            f"{len(failed)} of {len(patches)} patches do not apply.",
            why="\n".join(failed),
            remedy="the source moved: adapt the patches of the series.",
        )
    return [outcome for outcome in outcomes.values() if isinstance(outcome, Applied)]


def _applied(patch: Patch, status: Literal["clean", "already there", "not needed"]) -> Applied:
    return Applied(name=patch.name, status=status, sha256=store.sha256_file(patch.path))


def _apply_one(patch: Patch, source: Path, log: Path) -> Applied | str:
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
    checked = runner.run([*git, "--check", patch.path], cwd=source, env=env, log=log)
    if checked.ok:
        checked = runner.run([*git, patch.path], cwd=source, env=env, log=log)
        if checked.ok:
            return _applied(patch, "clean")
    elif runner.run([*git, "--check", "--reverse", patch.path], cwd=source, env=env, log=log).ok:
        return _applied(patch, "already there")
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
    """The files that a folder adds; refused where the source already has something of that name."""
    if not folder.is_dir():
        return []
    files = list(store.walk(folder, skip=lambda name: "__pycache__" in name))
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
