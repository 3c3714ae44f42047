"""Applies a recipe's series to its source: pristine tree in, patched tree out, the whole series reported."""

from __future__ import annotations

import shutil
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
    key = documents.digest({"tree": source.tree, "series": plan.series_digest, "others": tree.folder})[:16]
    target = cache.folder("patched", key)
    with cache.lock("patched", key):
        kept = target / "source.json"
        if kept.is_file():
            return documents.read(Tree, kept)
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
    """Apply every patch of a series and copy its added files, in place.

    Raises:
        DcaError: DCA-501, with what git says of each patch that does not apply; DCA-502.
    """
    applied: list[Applied] = []
    failed: list[str] = []
    for path in series(folder):
        _check(path)
        # Outside of any repository git apply would skip files without a word if it found one above.
        env = runner.environment({"GIT_CEILING_DIRECTORIES": str(source.parent), "GIT_DIR": "/nonexistent"})
        git: list[str | Path] = [runner.which("git"), "apply", "-p1", "--whitespace=nowarn"]
        if runner.run([*git, "--check", str(path)], cwd=source, env=env, log=log).ok:
            runner.run([*git, str(path)], cwd=source, env=env, log=log)
            applied.append(Applied(name=path.name, status="clean"))
            continue
        if runner.run([*git, "--check", "--reverse", str(path)], cwd=source, env=env, log=log).ok:
            applied.append(Applied(name=path.name, status="already there"))
            continue
        told = runner.run([*git, "--check", str(path)], cwd=source, env=env, log=log)
        failed.append(f"{path.name}: " + "; ".join(line.removeprefix("error: ") for line in told.tail[:2]))
    if failed:
        raise DcaError(
            "DCA-501",
            f"{len(failed)} of {len(series(folder))} patches do not apply.",
            why="\n".join(failed),
            remedy=f"the source moved: adapt the patches in {folder}.",
        )
    added = folder / "added"
    if added.is_dir():
        for relative, path in store.walk(added, skip=lambda name: "__pycache__" in name):
            target = source / relative
            if target.exists():
                raise DcaError(
                    "DCA-502",
                    f"the added file {relative} exists in the source.",
                    remedy="give it another name in the series.",
                )
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            applied.append(Applied(name=relative, status="added"))
    return applied


def _check(path: Path) -> None:
    """Refuse a patch with a path outside of the tree, a link, a mode change or anything below .git."""
    import unidiff

    try:
        text = path.read_text(encoding="utf-8")
        parsed = unidiff.PatchSet(text)
    except FileNotFoundError:
        raise DcaError(
            "DCA-502",
            f"the series names {path.name}, which does not exist.",
            remedy=f"correct {path.parent / 'series'}.",
        ) from None
    except (UnicodeDecodeError, unidiff.UnidiffParseError) as error:
        raise DcaError("DCA-502", f"{path.name} is not a patch.", why=str(error), remedy="make it again.") from None
    if not parsed:
        raise DcaError("DCA-502", f"{path.name} changes no file.", remedy="make it again with git diff.")
    names = [name for file in parsed for name in (file.source_file, file.target_file) if name and name != "/dev/null"]
    for name in names:
        parts = PurePosixPath(name).parts
        if name.startswith("/") or ".." in parts or ".git" in [part.lower() for part in parts[1:]]:
            raise DcaError("DCA-502", f"{path.name} writes to {name}, outside of the tree.", remedy="do not use it.")
    for line in text.splitlines():
        words = line.split()
        if line.startswith(("new mode", "old mode", "rename ", "copy ", "GIT binary patch")) or (
            line.startswith(("new file mode", "deleted file mode")) and words[-1] not in _MODES
        ):
            raise DcaError(
                "DCA-502",
                f"{path.name} holds `{line}`, which is never applied.",
                remedy="write it as plain changes of text files.",
            )
