"""`dca patch` on small repositories: status, refresh onto a source that has moved, and new patches."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from dca import cli
from dca.cli import patch as patch_cli
from dca.foundation import documents, store
from dca.patching import folder as series_folder
from dca.patching.report import Report
from tests.support import RunDca
from tests.support.series import apply_series

# Each test runs git several times.
pytestmark = pytest.mark.slow

GIT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    **{f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}
TEXT = [f"line {number}" for number in range(1, 41)]
HEADER = "What: Makes it right.\nWhy: It is wrong.\nUpstream: Open.\nTest: tests/test_it.py, test_it.\n"


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], env=GIT, capture_output=True, check=True, text=True
    ).stdout.strip()


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


class Shop:
    """A repository, a companion's, and a series for both; the recipe lends its name and its companion's."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.source, self.kernels, self.series = root / "source", root / "kernels", root / "series"
        for clone in (self.source, self.kernels):
            clone.mkdir()
            git(clone, "init", "--quiet", "--initial-branch=main")
        self.base = self.commit(self.source, {"pkg/a.py": TEXT, "pkg/b.py": ["b = 1"], "pkg/c.py": TEXT})
        self.kernels_base = self.commit(self.kernels, {"src/k.h": TEXT})
        (self.series / "flash-attention").mkdir(parents=True)

    def commit(self, clone: Path, files: dict[str, list[str] | None]) -> str:
        for name, lines in files.items():
            path = clone / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if lines is not None:
                path.write_text("".join(f"{line}\n" for line in lines))
        git(clone, "add", "--all")
        git(clone, "commit", "--quiet", "-m", "x")
        return git(clone, "rev-parse", "HEAD")

    def write(self, **patches: str) -> None:
        """The series; a name that begins with `k` is a patch of the companion."""
        names = []
        for number, (name, body) in enumerate(patches.items(), start=1):
            prefix = "flash-attention/" if name.startswith("k") else ""
            names.append(f"{prefix}{number:04d}-{name}.patch")
            (self.series / names[-1]).write_text(f"{HEADER}\n{body}")
        bases = f"# base: one/source {self.base}\n# base of flash-attention: one/kernels {self.kernels_base}\n"
        (self.series / "series").write_text(
            f"# by hand\n{bases}# revision: 4\n" + "".join(f"{name}\n" for name in names)
        )

    def words(self, **changes: str | Path) -> list[str]:
        """The options that name all this, some with other values."""
        values = {
            "recipe": "qwen-fork",
            "series": self.series,
            "source": self.source,
            "companion": f"flash-attention={self.kernels}",
            "at": "main",
            "cache-dir": self.root / "cache",
            **changes,
        }
        return [word for name, value in values.items() if value for word in (f"--{name}", str(value))]

    def run(self, *words: str | Path, at: str = "main") -> Done:
        return self.raw(*words, *self.words(at=at), "--at", "flash-attention=main")

    def raw(self, *words: str | Path) -> Done:
        """Run `dca patch` inside of this process, which saves the start of one."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = cli.run(["patch", *map(str, words)])
        return Done(code, out.getvalue(), err.getvalue())

    def report(self, *words: str, code: int = 0, at: str = "main") -> Report:
        done = self.run(*words, "--json", at=at)
        assert done.returncode == code, done.stderr
        return Report.model_validate(json.loads(done.stdout))

    def statuses(self, *words: str, code: int = 0) -> list[str]:
        return of(self.report(*words, code=code))

    def text(self, name: str) -> str:
        [path] = self.series.rglob(f"*{name}.patch")
        return path.read_text()

    def hash(self) -> str:
        return store.tree_hash(self.series)


def of(told: Report) -> list[str]:
    """What became of the patches; the guards that the recipe adds are left out."""
    return [one.status for one in told.patches if one.status != "added"]


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def change(name: str, line: int, new: str, lines: list[str] | None = None) -> str:
    """A diff of one line with two lines around it."""
    lines = lines or TEXT
    before, after = lines[line - 3 : line - 1], lines[line : line + 2]
    body = [*(f" {one}" for one in before), f"-{lines[line - 1]}", f"+{new}", *(f" {one}" for one in after)]
    size = len(before) + 1 + len(after)
    head = f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n@@ -{line - 2},{size} +{line - 2},{size} @@\n"
    return head + "\n".join(body) + "\n"


def moved(*, at: int = 0, lines: list[str] | None = None) -> list[str]:
    """The text with three lines more."""
    lines = lines or TEXT
    return [*lines[:at], "new 1", "new 2", "new 3", *lines[at:]]


# --- status --------------------------------------------------------------------------------------------------


def test_status_tells_of_every_patch_and_changes_nothing(shop: Shop) -> None:
    shop.write(
        one=change("pkg/a.py", 20, "LINE 20"), two=change("pkg/c.py", 10, "LINE 10"), k=change("src/k.h", 9, "K")
    )
    before = shop.hash()
    assert shop.statuses("status") == ["clean"] * 3
    shop.commit(shop.source, {"pkg/a.py": moved(), "pkg/c.py": [*TEXT[:9], "LINE 10", *TEXT[10:]]})
    shop.commit(shop.kernels, {"src/k.h": [*TEXT[:8], "another", *TEXT[9:]]})
    told = shop.report("status", code=5)
    assert of(told) == ["offset", "already there", "conflict"]
    assert [(one.file, one.line, one.by) for one in told.patches[0].moved] == [("pkg/a.py", 18, 3)]
    [conflict] = told.patches[2].conflicts
    assert (conflict.file, conflict.line, conflict.found[2]) == ("src/k.h", 7, "another")
    assert [(tree.name, tree.base) for tree in told.trees] == [
        ("source", shop.base),
        ("flash-attention", shop.kernels_base),
    ]
    done = shop.run("status")
    assert done.returncode == 5
    for words in ("offset", "pkg/a.py:18 by +3 lines", "src/k.h:7:", "| another", "Makes it right."):
        assert words in done.stdout
    assert "DCA-501" in done.stderr
    assert "Traceback" not in done.stderr
    assert shop.hash() == before


def test_status_takes_a_commit_a_branch_a_folder_and_an_sdist(shop: Shop) -> None:
    shop.write(one=change("pkg/a.py", 20, "LINE 20"))
    shop.commit(shop.source, {"pkg/a.py": moved()})
    assert of(shop.report("status", at=shop.base)) == ["clean"]
    assert of(shop.report("status", at="main")) == ["offset"]
    folder, sdist = shop.root / "folder", shop.root / "one-1.0.tar.gz"
    git(shop.source, "archive", "--prefix=one-1.0/", "-o", str(sdist), shop.base)
    subprocess.run(["tar", "-xzf", str(sdist), "-C", str(shop.root)], check=True)
    (shop.root / "one-1.0").rename(folder)
    for place, pin in ((folder, ""), (sdist, f"sha256:{store.sha256_file(sdist)}")):
        done = shop.raw("status", *shop.words(source=place, at="flash-attention=main"), "--json")
        told = Report.model_validate(json.loads(done.stdout))
        assert (of(told), told.trees[0].pin) == (["clean"], pin)


def test_status_refuses_a_patch_that_is_never_applied_and_tells_of_the_others(shop: Shop) -> None:
    shop.write(one="--- /dev/null\n+++ b/../out\n@@ -0,0 +1 @@\n+x\n", two=change("pkg/a.py", 20, "LINE 20"))
    told = shop.report("status", code=5)
    assert of(told) == ["refused", "clean"]
    assert "../out" in told.patches[0].why


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--at", "no-such-branch"], "DCA-405"),
        (["--at", "source=-x"], "DCA-201"),
        (["--at", "NAME="], "DCA-201"),
        (["--at", "other=main"], "DCA-203"),
        (["--source", "/no/such/place"], "DCA-204"),
        (["--recipe", "x"], "DCA-203"),
        (["--companion", "other=/tmp"], "DCA-203"),
    ],
)
def test_what_cannot_be_looked_at_is_one_message(shop: Shop, words: list[str], code: str) -> None:
    shop.write(one=change("pkg/a.py", 20, "LINE 20"))
    done = shop.raw("status", *shop.words(**{words[0].removeprefix("--"): words[1]}))
    assert done.stderr.startswith(code) or f"\n{code}" in done.stderr, done.stderr
    assert done.returncode == int(code[4])


def test_the_command_ends_with_its_exit_code(shop: Shop, dca: RunDca) -> None:
    """In a process of its own, as a user starts it; and its schema."""
    shop.write(one=change("pkg/gone.py", 20, "LINE 20"))
    done = dca("patch", "status", *shop.words())
    assert (done.returncode, "DCA-501" in done.stderr) == (5, True)
    told = json.loads(dca("patch", "status", "--schema").stdout)
    assert told["properties"]["schema"] == {"const": "dca.patches/1"}
    assert told == documents.json_schema(Report)


# --- refresh -------------------------------------------------------------------------------------------------


def test_refresh_writes_patches_anew_for_their_new_lines(shop: Shop) -> None:
    shop.write(
        one=change("pkg/a.py", 20, "LINE 20"), two=change("pkg/c.py", 10, "LINE 10"), k=change("src/k.h", 9, "K")
    )
    two = shop.text("two")
    now = shop.commit(shop.source, {"pkg/a.py": moved()})
    told = shop.report("refresh")
    assert of(told) == ["offset", "clean", "clean"]
    assert (told.written, told.revision) == (True, 5)
    assert shop.text("two") == two
    assert shop.text("one").startswith(HEADER)
    assert "@@ -21,5 +21,5 @@\n" in shop.text("one")
    assert (shop.series / "series").read_text() == (
        f"# by hand\n# base: sighingnow/vllm {now}\n# base of flash-attention: one/kernels {shop.kernels_base}\n"
        "# revision: 5\n0001-one.patch\n0002-two.patch\nflash-attention/0003-k.patch\n"
    )
    assert shop.statuses("status") == ["clean"] * 3
    before = shop.hash()
    assert shop.report("refresh").written is False
    assert shop.hash() == before


def test_refresh_merges_lines_that_changed_around_a_patch(shop: Shop) -> None:
    shop.write(
        one=change("pkg/a.py", 20, "LINE 20"),
        two=change("pkg/a.py", 22, "LINE 22", [*TEXT[:19], "LINE 20", *TEXT[20:]]),
    )
    around = [*TEXT[:17], "other 18", *TEXT[18:]]
    shop.commit(shop.source, {"pkg/a.py": moved(lines=around)})
    assert shop.statuses("status", code=5) == ["conflict", "conflict"]
    told = shop.report("refresh")
    assert of(told) == ["merged", "offset"]
    assert " other 18\n" in shop.text("one")
    assert shop.statuses("status") == ["clean", "clean"]
    trees = {"source": shop.source, "flash-attention": shop.kernels}
    apply_series(shop.series, trees)
    wanted = moved(lines=around)
    wanted[22], wanted[24] = "LINE 20", "LINE 22"
    assert (shop.source / "pkg/a.py").read_text().splitlines() == wanted


def test_without_the_old_base_changed_lines_are_a_conflict(shop: Shop) -> None:
    shop.write(one=change("pkg/a.py", 20, "LINE 20"))
    text = (shop.series / "series").read_text()
    (shop.series / "series").write_text(text.replace(f"# base: one/source {shop.base}\n", ""))
    shop.commit(shop.source, {"pkg/a.py": [*TEXT[:18], "other 19", *TEXT[19:]]})
    before = shop.hash()
    assert shop.statuses("refresh", code=5) == ["conflict"]
    assert shop.hash() == before


def test_a_conflict_leaves_the_series_as_it_was(shop: Shop) -> None:
    shop.write(one=change("pkg/a.py", 20, "LINE 20"), two=change("pkg/c.py", 10, "LINE 10"))
    shop.commit(shop.source, {"pkg/a.py": moved(), "pkg/c.py": [*TEXT[:9], "another", *TEXT[10:]]})
    before = shop.hash()
    told = shop.report("refresh", code=5)
    assert of(told) == ["offset", "conflict"]
    assert told.written is False
    assert told.patches[1].conflicts[0].found[2] == "another"
    assert shop.hash() == before


def test_a_patch_that_fits_elsewhere_than_a_merge_says_is_a_conflict(shop: Shop) -> None:
    """The lines are gone, and others like them stand elsewhere: fitting there is chance."""
    lines = [*TEXT[:10], "a", "b", "c", *TEXT[10:]]
    shop.base = shop.commit(shop.source, {"pkg/a.py": lines})
    body = "diff --git a/pkg/a.py b/pkg/a.py\n--- a/pkg/a.py\n+++ b/pkg/a.py\n@@ -11,3 +11,3 @@\n a\n-b\n+B\n c\n"
    shop.write(one=body)
    # Where the patch was made for, the line has become another; a copy of the old ones stands at the end.
    shop.commit(shop.source, {"pkg/a.py": [*TEXT[:10], "a", "b2", "c", *TEXT[10:38], "a", "b", "c", *TEXT[38:]]})
    before = shop.hash()
    assert shop.statuses("status") == ["offset"]
    told = shop.report("refresh", code=5)
    assert told.patches[0].status == "conflict"
    assert shop.hash() == before


def test_a_patch_that_the_source_has_stays_or_is_dropped(shop: Shop) -> None:
    shop.write(
        one=change("pkg/a.py", 20, "LINE 20"), two=change("pkg/c.py", 10, "LINE 10"), k=change("src/k.h", 9, "K")
    )
    shop.commit(shop.source, {"pkg/a.py": [*TEXT[:19], "LINE 20", *TEXT[20:]]})
    assert shop.statuses("refresh") == ["already there", "clean", "clean"]
    assert series_folder.series(shop.series)[0].name == "0001-one.patch"
    assert shop.statuses("refresh", "--drop") == ["already there", "clean", "clean"]
    assert [patch.name for patch in series_folder.series(shop.series)] == [
        "0001-two.patch",
        "flash-attention/0002-k.patch",
    ]
    assert sorted(path.name for path in shop.series.rglob("*.patch")) == ["0001-two.patch", "0002-k.patch"]
    assert shop.statuses("status") == ["clean", "clean"]


def test_a_dry_run_writes_nothing(shop: Shop) -> None:
    shop.write(one=change("pkg/a.py", 20, "LINE 20"))
    shop.commit(shop.source, {"pkg/a.py": moved()})
    before = shop.hash()
    assert shop.report("refresh", "--dry-run").written is False
    assert "Nothing was written." in shop.run("refresh", "--dry-run").stdout
    assert shop.hash() == before


def test_added_files_and_comments_of_a_series_stay(shop: Shop) -> None:
    shop.write(one=change("pkg/a.py", 20, "LINE 20"))
    (shop.series / "added/pkg").mkdir(parents=True)
    (shop.series / "added/pkg/guard.py").write_text("guard = 1\n")
    shop.commit(shop.source, {"pkg/a.py": moved()})
    assert shop.report("refresh").written is True
    assert (shop.series / "added/pkg/guard.py").read_text() == "guard = 1\n"
    assert (shop.series / "series").read_text().startswith("# by hand\n")


# --- new -----------------------------------------------------------------------------------------------------

SAYS = ("--what", "Makes c right.", "--why", "It is wrong. " * 12, "--upstream", "Open.", "--test", "tests/test_it.py.")


def test_a_new_patch_is_what_was_edited(shop: Shop) -> None:
    shop.write(one=change("pkg/a.py", 20, "LINE 20"))
    (shop.series / "added/pkg").mkdir(parents=True)
    (shop.series / "added/pkg/guard.py").write_text("guard = 1\n")
    work = shop.root / "work"
    assert shop.run("new", "c-right", "--work", work).returncode == 0
    assert "LINE 20" in (work / "pkg/a.py").read_text()
    assert (work / "pkg/guard.py").is_file()
    done = shop.run("new", "c-right", "--work", work, *SAYS)
    assert (done.returncode, "DCA-502" in done.stderr) == (5, True), "nothing was edited yet"
    (work / "pkg/c.py").write_text("".join(f"{line}\n" for line in [*TEXT[:9], "LINE 10", *TEXT[10:]]))
    (work / "pkg/new.py").write_text("new = 1\n")
    (work / "pkg/b.py").unlink()
    (work / "pkg/__pycache__").mkdir()
    (work / "pkg/__pycache__/c.pyc").write_bytes(b"\0")
    before = shop.hash()
    done = shop.run("new", "c-right", "--work", work)
    assert (done.returncode, "What, Why, Upstream, Test" in done.stderr) == (2, True)
    assert shop.hash() == before
    done = shop.run("new", "c-right", "--work", work, *SAYS, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["patch"].endswith("/0002-c-right.patch")
    text = shop.text("c-right")
    assert text.startswith("What: Makes c right.\nWhy: It is wrong.")
    assert max(map(len, text.splitlines())) <= 120
    assert "@@ -9,3 +9,3 @@\n line 9\n-line 10\n+LINE 10\n line 11\n" in text
    told = shop.report("status")
    assert of(told) == ["clean", "clean"]
    assert (told.revision, told.patches[1].lacks) == (5, ())
    assert set(told.patches[1].files) == {"pkg/b.py", "pkg/c.py", "pkg/new.py"}


def test_a_new_patch_of_a_companion_lies_in_its_folder(shop: Shop) -> None:
    shop.write(one=change("pkg/a.py", 20, "LINE 20"), k=change("src/k.h", 9, "K"))
    work = shop.root / "work"
    words = ("new", "more", "--tree", "flash-attention", "--work", work)
    assert shop.run(*words).returncode == 0
    lines = (work / "src/k.h").read_text().splitlines()
    assert lines[8] == "K"
    (work / "src/k.h").write_text("".join(f"{line}\n" for line in [*lines[:29], "more", *lines[29:]]))
    assert shop.run(*words, *SAYS).returncode == 0
    assert (shop.series / "flash-attention/0003-more.patch").is_file()
    assert shop.statuses("status") == ["clean"] * 3


def test_a_new_series_begins_with_its_first_patch(shop: Shop) -> None:
    shop.series = shop.root / "fresh"
    work = shop.root / "work"
    assert shop.run("new", "first", "--work", work).returncode == 0
    (work / "pkg/b.py").write_text("b = 2\n")
    assert shop.run("new", "first", "--work", work, *SAYS).returncode == 0
    assert (
        shop.series / "series"
    ).read_text() == f"# base: sighingnow/vllm {shop.base}\n# revision: 1\n0001-first.patch\n"
    assert shop.statuses("status") == ["clean"]


@pytest.mark.parametrize("how", ["a link", "a changed link", "binary", "a name"])
def test_what_no_patch_can_hold_is_refused(shop: Shop, how: str) -> None:
    (shop.source / "link").symlink_to("pkg/a.py")
    shop.commit(shop.source, {})
    shop.write(one=change("pkg/a.py", 20, "LINE 20"))
    work, before = shop.root / "work", shop.hash()
    assert shop.run("new", "x", "--work", work).returncode == 0
    name = "x"
    if how == "a link":
        (work / "pkg/b.py").unlink()
        (work / "pkg/b.py").symlink_to("/etc/passwd")
    elif how == "a changed link":
        (work / "link").unlink()
        (work / "link").symlink_to("pkg/b.py")
    elif how == "binary":
        (work / "pkg/b.py").write_bytes(b"\0\xff")
    else:
        (work / "pkg/b.py").write_text("b = 2\n")
        name = "../x"
    done = shop.run("new", name, "--work", work, *SAYS)
    assert done.returncode == (2 if how == "a name" else 5), done.stderr
    assert shop.hash() == before


def test_help_names_the_subcommands() -> None:
    assert list(patch_cli.command.commands) == ["status", "refresh", "new"]
