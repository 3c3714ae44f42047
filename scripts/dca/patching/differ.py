"""Writes diffs and merges files with git, in a folder of its own and without anybody's settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from dca.foundation import runner, store
from dca.foundation.errors import DcaError
from dca.patching.fitting import File

SECONDS = 120.0


def _git(folder: Path, words: list[str], log: Path | None) -> runner.Completed:
    # Neither a repository above the folder nor anybody's settings have a say.
    env = runner.environment(
        {
            "GIT_DIR": "/nonexistent",
            "GIT_CEILING_DIRECTORIES": str(folder),
            "GIT_CONFIG_GLOBAL": "/dev/null",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_ATTR_NOSYSTEM": "1",
        }
    )
    return runner.run(
        [runner.which("git"), *words],
        cwd=folder,
        env=env,
        log=log,
        timeout=SECONDS,
        supervision=runner.Supervision(guarded=False),
    )


def diff(before: Mapping[str, File | None], after: Mapping[str, File | None], context: int, log: Path | None) -> str:
    """A patch from files to files, with as many lines around each change as are asked for; empty when nothing differs.

    Args:
        before: by path; None for a file that is not there.
        after: the same paths.

    Raises:
        DcaError: DCA-103 without git, DCA-502 when it cannot tell the difference as text.
    """
    with store.scratch() as folder:
        for side, files in (("a", before), ("b", after)):
            (folder / side).mkdir()
            for name, file in files.items():
                if file is not None:
                    _write(folder / side / name, file)
        words = [
            "diff",
            "--no-index",
            "--no-prefix",
            "--no-color",
            "--no-ext-diff",
            "--no-textconv",
            "--no-renames",
            "--diff-algorithm=histogram",
            f"-U{context}",
            "--output=patch",
            "a",
            "b",
        ]
        done = _git(folder, words, log)
        if done.returncode not in (0, 1):
            raise DcaError("DCA-502", "git could not write the patch.", why=done.text, remedy="see the log.")
        text = (folder / "patch").read_bytes() if (folder / "patch").is_file() else b""
    return "\n".join(_told(line) for line in text.decode("utf-8", "surrogateescape").split("\n"))


def _told(line: str) -> str:
    """A line as a patch has it.

    The name of the function around a hunk is a line of upstream that nobody needs; of a file that only one side has,
    git names that side twice.
    """
    head, mark, _ = line.partition(" @@")
    if mark and line.startswith("@@ -"):
        return f"{head} @@"
    if line.startswith("diff --git ") and len(words := line.split(" ")) == 4:
        return f"diff --git a/{words[2].partition('/')[2]} b/{words[3].partition('/')[2]}"
    return line


def merge(base: File, ours: File, theirs: File, log: Path | None) -> File | None:
    """What two changes of a file make of it together; None when they touch the same lines.

    Raises:
        DcaError: DCA-103 without git.
    """
    with store.scratch() as folder:
        for name, file in (("ours", ours), ("base", base), ("theirs", theirs)):
            _write(folder / name, file)
        done = _git(folder, ["merge-file", "-q", "ours", "base", "theirs"], log)
        if not done.ok:
            return None
        return File.of((folder / "ours").read_bytes(), executable=ours.executable)


def _write(path: Path, file: File) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(file.content)
    path.chmod(0o755 if file.executable else 0o644)
