"""Patches of every hostile kind, patches that were damaged, and kills while a series is applied."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.patching.fitting import examine
from tests.support.kills import killed_runs, leftovers, whole_run
from tests.support.series import apply_series

pytestmark = pytest.mark.proof
GIT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_DIR": "/nonexistent",
}
TEXT = "".join(f"line {number}\n" for number in range(1, 31))


# --- hostile patches -----------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """A tree that hostile patches are applied to, and what lies around it.

    Args:
        root: holds the tree and everything that no patch may touch.
    """

    root: Path
    tree: Path
    series: Path

    @classmethod
    def made(cls, root: Path) -> Scene:
        tree = root / "work" / "tree"
        for name in ("pkg/sub", ".git/hooks", "nested/.git"):
            (tree / name).mkdir(parents=True)
        (root / "outside").mkdir()
        (root / "outside/victim").write_text("victim\n")
        (root / "work/victim").write_text("victim\n")
        (tree / ".git/config").write_text("[core]\n")
        (tree / "pkg/a.py").write_text(TEXT)
        (tree / "pkg/b.py").write_text("b = 1\n")
        (tree / "pkg/run.sh").write_text("run\n")
        (tree / "pkg/run.sh").chmod(0o755)
        (tree / "out").symlink_to(root / "outside")
        (tree / "up").symlink_to("../..")
        (tree / "in").symlink_to("pkg")
        (tree / "link.py").symlink_to("pkg/a.py")
        (tree / "victim").symlink_to(root / "outside/victim")
        (tree / "dangling").symlink_to(root / "outside/new")
        os.mkfifo(tree / "fifo")
        series = root / "series"
        series.mkdir()
        (series / "first.patch").write_text(section("pkg/b.py", "b = 1", "b = 2"))
        (series / "series").write_text("# revision: 1\nfirst.patch\nhostile.patch\n")
        return cls(root, tree, series)

    def state(self) -> frozenset[tuple[str, str, str]]:
        """Everything as path, mode and content: the tree with its links, and what lies around it."""
        told = []
        for folder, names, files in os.walk(self.root):
            for path in (Path(folder) / name for name in (*names, *files)):
                if path.is_relative_to(self.series):
                    continue
                content = path.read_bytes().hex() if path.is_file() and not path.is_symlink() else ""
                told.append(
                    (str(path), f"{path.lstat().st_mode:o}", str(path.readlink()) if path.is_symlink() else content)
                )
        return frozenset(told)


def section(name: str, old: str, new: str) -> str:
    return f"diff --git a/{name} b/{name}\n--- a/{name}\n+++ b/{name}\n@@ -1 +1 @@\n-{old}\n+{new}\n"


def new_file(name: str, mode: str = "100644", content: str = "hostile", end: str = "") -> str:
    return (
        f"diff --git a/{name} b/{name}\nnew file mode {mode}\nindex 0000000..1111111\n--- /dev/null\n+++ b/{name}\n"
        f"@@ -0,0 +1 @@\n+{content}\n{end}"
    )


def plain(old: str, new: str, body: str = "@@ -0,0 +1 @@\n+hostile\n") -> str:
    return f"--- {old}\n+++ {new}\n{body}"


NO_END = "\\ No newline at end of file\n"
CHANGE = "@@ -1 +1 @@\n-{old}\n+{new}\n"


def away(chance: random.Random, root: Path) -> str:
    """A path that leads out of the tree, or to where nothing is to be written."""
    up = "../" * chance.randint(1, 4)
    git = chance.choice([".git", ".GIT", ".Git", ".git.", ".git ", "GIT~1", ".g\u200cit", ".git::$DATA"])
    return chance.choice(
        [
            f"{up}victim",
            f"pkg/{up}{up}outside/new",
            f"/{root}/outside/new",
            f"{root}/outside/new",
            "./pkg/new",
            "pkg//new",
            "pkg/./new",
            "pkg/sub/../new",
            "..",
            ".",
            f"{git}/hooks/post-checkout",
            f"{git}/config",
            f"pkg/{git}/config",
            "nested/.git/config",
            ".gitmodules",
            "pkg/.gitattributes",
            "out/new",
            "up/new",
            "in/new",
            "in/b.py",
            "dangling",
            "link.py",
            "fifo",
            "pkg",
            "pkg/sub",
            "pkg/a.py/below",
            "link.py/below",
            "pkg\\..\\..\\new",
            "pkg/new\x01",
            "pkg/new\t",
            "pkg/new\r",
            "c:/new",
            "~/new",
            "pkg/new name",
            "\u2028new",
        ]
    )


BINARY = """diff --git a/x.bin b/x.bin
new file mode 100644
index 0000000..eaf36c1
GIT binary patch
literal 4
LcmZQzWMT#Y01f~L

literal 0
HcmV?d00001

"""
RELINK = f"""diff --git a/link.py b/link.py
index 1111111..2222222 120000
--- a/link.py
+++ b/link.py
@@ -1 +1 @@
-pkg/a.py
{NO_END}+/etc/passwd
{NO_END}"""
MODES = ["120000", "160000", "040000", "100777", "104755", "100666", "0", "1" * 50]
LINES = ["9" * 5000, "1,999999999", "-1", "1,0", "0", "999999999"]


def hostile(chance: random.Random, root: Path) -> str:
    """A patch that somebody wrote to do harm, or that is not what it looks like."""
    name, mode = away(chance, root), chance.choice(MODES)
    quoted = '"b/' + "".join(f"\\{ord(one):03o}" for one in "../../outside/new") + '"'
    verbs, honest = chance.choices(["rename", "copy"], k=2), section("pkg/b.py", "b = 2", "x")
    change = CHANGE.format(old="b = 2", new="x")
    goes = plain("a/pkg/b.py", "/dev/null", "@@ -1 +0,0 @@\n-b = 2\n")
    to_mode = f"diff --git a/pkg/b.py b/pkg/b.py\nold mode 100644\nnew mode {mode}\n"
    from_to = f"{verbs[0]} from pkg/b.py\n{verbs[1]} to {name}\n"
    text = chance.choice(
        [
            new_file(name),
            plain("/dev/null", f"b/{name}"),
            plain("/dev/null", chance.choice([name, f"c/{name}", quoted, f"b/{name}\t2020-01-01"])),
            plain(f"a/{name}", "b/pkg/b.py", change),
            plain("a/pkg/b.py", f"b/{name}", change),
            section(name, "victim", "hostile"),
            section("victim", "victim", "x"),
            section("victim", str(root / "outside/victim"), "/etc/passwd"),
            f"diff --git a/{name} b/{name}\ndeleted file mode 100644\n"
            + plain(f"a/{name}", "/dev/null", "@@ -1 +0,0 @@\n-victim\n"),
            new_file("pkg/new", mode, "../../outside", NO_END),
            RELINK,
            RELINK.replace("index 1111111..2222222 120000\n", ""),
            to_mode,
            to_mode + plain("a/pkg/b.py", "b/pkg/b.py", change),
            f"diff --git a/pkg/b.py b/{name}\nsimilarity index 100%\n{from_to}",
            BINARY,
            BINARY.replace("x.bin", "pkg/b.py"),
            new_file("pkg/new") + new_file(name),
            new_file("pkg/new", "120000", "../../outside", NO_END) + new_file("pkg/new/file"),
            new_file("pkg/new") + new_file("pkg/new/file"),
            new_file("pkg/new") + new_file("pkg/new", content="again"),
            new_file("pkg/b.py/file") + f"diff --git a/pkg/b.py b/pkg/b.py\ndeleted file mode 100644\n{goes}",
            new_file("pkg/new").replace("+++ b/pkg/new", f"+++ b/{name}"),
            new_file("pkg/new").replace("diff --git a/pkg/new b/pkg/new", f"diff --git a/{name} b/{name}"),
            new_file("pkg/new").replace("a/pkg/new b/pkg/new", f"a/pkg/new b/pkg/new b/{name}"),
            honest.replace("@@ -1 +1 @@", f"@@ -{chance.choice(LINES)} +1 @@"),
            honest + f"--- a/{name}\n" + chance.choice(["", f"+++ b/{name}\n"]),
            honest + "-- \n2.39.5\n" + new_file(name),
            f"--- a/{name}\n+++ b/{name}\n\n{honest}",
            honest + f"--- a/pkg/a.py\n+++ b/{name}\n@@ -0,0 +1 @@\n+hostile\n",
            f"Index: {name}\n===\n" + plain(name, name, CHANGE.format(old="victim", new="hostile")),
            f"*** {name}\n--- {name}\n***************\n*** 1 ****\n! victim\n--- 1 ----\n! hostile\n",
            f"1c\nhostile\n.\nw {root}/outside/new\n!touch {root}/outside/new\n",
            honest.replace("\n", "\r\n"),
            honest.replace("+x", "+x\0y"),
            honest[: -chance.randint(1, 20)],
            "\ufeff" + new_file(name),
            "",
            f"Only in {name}: x\nSubmodule {name} 1111111..2222222:\n",
        ]
    )
    return chance.choice(["", "", "What: x\n\n", f"--- {name}\n", f"diff --git a/{name} b/{name}\n"]) + text


def error_of(scene: Scene) -> DcaError | None:
    """Why a series was not applied; None when it was."""
    try:
        apply_series(scene.series, {"source": scene.tree})
    except DcaError as error:
        return error
    return None


def test_no_hostile_patch_writes_outside_or_leaves_half_a_series(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """An honest patch comes first: with the hostile one refused, nothing of either may be left."""
    scene = Scene.made(tmp_path / "scene")
    state = scene.state()
    refused = 0
    for _ in range(scale(300) + 20):
        text = hostile(chance, scene.root)
        (scene.series / "hostile.patch").write_bytes(text.encode("utf-8", "surrogatepass"))
        told = error_of(scene)
        after = scene.state()
        if told is not None:
            refused += 1
            assert told.code in ("DCA-501", "DCA-502"), text
            assert told.remedy
            assert "first.patch" in told.why, "the honest patch is reported too"
            assert after == state, text
        else:
            # What is applied is a plain change of a plain file below the tree, however it was written.
            gone, made = state - after, after - state
            assert all(path.startswith(f"{scene.tree}/") and "/.git" not in path for path, _, _ in gone | made), text
            assert all(mode in ("100644", "100755", "40755") for _, mode, _ in made), text
            assert (scene.tree / "pkg/b.py").read_text() != "b = 1\n", text
            store.remove(scene.root)
            scene = Scene.made(tmp_path / "scene")
    assert refused >= (scale(300) + 20) // 2


def test_a_damaged_patch_is_refused_or_is_another_patch(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """Bytes changed, lines dropped, doubled and swapped: what is still applied is what git makes of it, too."""
    scene = Scene.made(tmp_path / "scene")
    (scene.series / "series").write_text("hostile.patch\n")
    whole = (
        section("pkg/b.py", "b = 1", "b = 2")
        + plain(
            "a/pkg/a.py", "b/pkg/a.py", "@@ -4,5 +4,6 @@\n line 4\n line 5\n-line 6\n+LINE 6\n+more\n line 7\n line 8\n"
        )
    ).encode()
    applied = 0
    for _ in range(scale(2000)):
        body = bytearray(whole)
        lines = whole.splitlines(keepends=True)
        how, at = chance.randrange(5), chance.randrange(len(lines))
        if how == 0:
            body[chance.randrange(len(body))] ^= 1 << chance.randrange(8)
        elif how == 1:
            body = bytearray(b"".join([*lines[:at], *lines[at + 1 :]]))
        elif how == 2:
            body = bytearray(b"".join([*lines[: at + 1], *lines[at:]]))
        elif how == 3:
            other = chance.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
            body = bytearray(b"".join(lines))
        else:
            body = body[: chance.randrange(len(body))]
        (scene.series / "hostile.patch").write_bytes(body)
        state = scene.state()
        try:
            told = apply_series(scene.series, {"source": scene.tree})
        except DcaError:
            assert scene.state() == state, body
            continue
        made = {name: (scene.tree / name).read_bytes() for name in ("pkg/a.py", "pkg/b.py")}
        store.remove(scene.root)
        scene = Scene.made(tmp_path / "scene")
        (scene.series / "series").write_text("hostile.patch\n")
        if [one.status for one in told] != ["already there"]:
            applied += 1
            (scene.series / "hostile.patch").write_bytes(body)
            by_git(scene.tree, scene.series / "hostile.patch")
            assert {name: (scene.tree / name).read_bytes() for name in made} == made, body
        store.remove(scene.root)
        scene = Scene.made(tmp_path / "scene")
        (scene.series / "series").write_text("hostile.patch\n")
    assert applied or scale(2000) < 500


def by_git(tree: Path, patch: Path) -> None:
    subprocess.run(["git", "apply", "-p1", "--whitespace=nowarn", str(patch)], cwd=tree, env=GIT, check=True)


# --- what git makes of random changes ------------------------------------------------------------------------


def drifted(chance: random.Random, lines: list[str]) -> list[str]:
    """Lines with a few of them added, taken out and replaced; sometimes the last one does not end."""
    lines = list(lines)
    for _ in range(chance.randint(1, 5)):
        at = chance.randrange(len(lines) + 1)
        more = [f"word {chance.randrange(100_000)}\n" for _ in range(chance.randint(0, 4))]
        lines[at : at + chance.randint(0, 3)] = more
    return [*lines[:-1], lines[-1].removesuffix("\n")] if lines and chance.random() < 0.2 else lines


def test_what_is_applied_is_there_already_afterwards(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """Also further down, and nowhere else."""
    (tmp_path / "series").mkdir()
    (tmp_path / "series/series").write_text("# revision: 1\np.patch\n")
    for _ in range(scale(2000)):
        old = [f"line {number}\n" for number in range(chance.randint(1, 80))]
        new, above = drifted(chance, old), chance.choice([[], ["above\n"] * 3])
        for name, lines in (("a", old), ("b", new), ("now", [*above, *old])):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / "f").write_text("".join(lines))
        words = ["git", "diff", "--no-index", "--no-prefix", "-U2", "--output=series/p.patch", "a/f", "b/f"]
        if not subprocess.run(words, cwd=tmp_path, env=GIT, check=False).returncode:
            continue
        tree = {"source": tmp_path / "now"}
        [found] = examine(tmp_path / "series", tree).outcomes
        # What changes the first lines is not looked for elsewhere.
        if above and found.status == "conflict":
            continue
        assert found.status == ("offset" if above else "clean")
        apply_series(tmp_path / "series", tree)
        assert (tmp_path / "now/f").read_text() == "".join([*above, *new])
        assert [one.status for one in examine(tmp_path / "series", tree).outcomes] == ["already there"]


# --- kills -----------------------------------------------------------------------------------------------------

APPLY = """
import sys
from pathlib import Path
from types import SimpleNamespace
from dca.foundation import data, store
from dca import patching
from dca.sources.fetch import FetchedSource, Tree
from dca.catalogue.recipes import Patches
root = Path(sys.argv[1])
data.patches_folder = lambda name: root / "series" / name
tree = Tree(folder=str(root / "pristine"), sources=(
    FetchedSource(name="source", pin="p", place="x", tree="0" * 64),
    FetchedSource(name="kernels", pin="p", place="x", tree="1" * 64),
), members={})
plan, recipe = SimpleNamespace(recipe="one", series_digest="d"), SimpleNamespace(patches=Patches(added=("shared",)))
print("ready", flush=True)
made = patching.patch(plan, recipe, tree, store.Store(root / "cache").open(), root / "run" / "log")
print(made.folders["source"], made.folders["kernels"], made.patched["source"], made.patched["kernels"])
"""


@pytest.mark.long
def test_an_apply_goes_on_whenever_it_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """Two trees of many files, a series for both: after a kill there is a whole patched tree or none."""
    for name in ("source", "kernels"):
        for number in range(60):
            path = tmp_path / "pristine" / name / f"pkg{number % 3}" / f"{number}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(TEXT * 20 + f"{number}\n")
    for name, place in (("0001-one.patch", "one"), ("0002-two.patch", "one/kernels")):
        (tmp_path / "series" / place).mkdir(parents=True, exist_ok=True)
        body = "@@ -4,5 +4,6 @@\n line 4\n line 5\n-line 6\n+LINE 6\n+more\n line 7\n line 8\n"
        parts = [plain(f"a/pkg{number % 3}/{number}.py", f"b/pkg{number % 3}/{number}.py", body) for number in range(6)]
        (tmp_path / "series" / place / name).write_text("".join(parts))
    (tmp_path / "series/one/series").write_text("# revision: 1\n0001-one.patch\nkernels/0002-two.patch\n")
    (tmp_path / "series/shared/pkg0").mkdir(parents=True)
    (tmp_path / "series/shared/pkg0/guards.py").write_text("guards = 1\n")
    pristine = {name: store.tree_hash(tmp_path / "pristine" / name) for name in ("source", "kernels")}
    arguments = [str(tmp_path)]
    wanted = whole_run(APPLY, arguments).split()
    cache = tmp_path / "cache"
    for _ in killed_runs(APPLY, arguments, scale(200), chance, lambda: store.remove(cache) if cache.exists() else None):
        for folder in (cache / "patched").glob("[!.]*"):
            told = json.loads((folder / "source.json").read_text())
            assert [store.tree_hash(folder / name) for name in ("source", "kernels")] == wanted[2:]
            assert told["patched"] == {"source": wanted[2], "kernels": wanted[3]}
        assert whole_run(APPLY, arguments).split() == wanted
        assert leftovers(cache) == []
    assert {name: store.tree_hash(tmp_path / "pristine" / name) for name in pristine} == pristine


REFRESH = """
import sys
from pathlib import Path
from dca.patching import rebase
from dca.patching.places import Found
root = Path(sys.argv[1])
onto = {"source": Found(root / "now", "one/source", "2" * 40)}
print("ready", flush=True)
told = rebase.rebase(root / "series", onto, {}, None, drop=False, dry_run=False)
print(told.revision, *(one.status for one in told.patches))
"""


def test_a_series_is_the_old_or_the_new_one_whenever_its_refresh_is_killed(
    tmp_path: Path, chance: random.Random, scale: Callable[[int], int]
) -> None:
    """Two patches, both written anew for other lines; the next run ends with the same series."""
    keep, series = tmp_path / "keep", tmp_path / "series"
    (keep / "added").mkdir(parents=True)
    (tmp_path / "now").mkdir()
    (tmp_path / "now/a.py").write_text("above\n" * 5 + TEXT)
    for number, line in ((1, 6), (2, 20)):
        body = f"@@ -{line},3 +{line},3 @@\n line {line}\n-line {line + 1}\n+LINE\n line {line + 2}\n"
        (keep / f"{number:04d}-x.patch").write_text(plain("a/a.py", "b/a.py", body))
    (keep / "series").write_text(f"# base: one/source {'1' * 40}\n# revision: 3\n0001-x.patch\n0002-x.patch\n")
    (keep / "added/guard.py").write_text("guard = 1\n")

    def scene() -> None:
        if series.exists():
            store.remove(series)
        shutil.copytree(keep, series)

    scene()
    assert whole_run(REFRESH, [str(tmp_path)]) == "4 offset offset"
    old, new = store.tree_hash(keep), store.tree_hash(series)
    for _ in killed_runs(REFRESH, [str(tmp_path)], scale(100), chance, scene):
        assert store.tree_hash(series) in (old, new)
        whole_run(REFRESH, [str(tmp_path)])
        assert store.tree_hash(series) == new
        assert leftovers(tmp_path) == []
