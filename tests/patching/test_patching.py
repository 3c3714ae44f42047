"""Series of patches on small trees: applied whole, reported whole, and never outside of the tree."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from dca import patching
from dca.catalogue.plan import Plan
from dca.catalogue.recipes import Patches, Recipe
from dca.foundation import data, documents, store
from dca.foundation.errors import DcaError
from dca.patching.fitting import Examined, examine, report_of
from dca.patching.report import Outcome, Report
from dca.sources.fetch import FetchedSource, Tree
from tests.support.series import apply_series

GIT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
}
TEXT = "".join(f"line {number}\n" for number in range(1, 21))


def git(folder: Path, *words: str) -> str:
    return subprocess.run(
        ["git", "-C", str(folder), *words], env=GIT, capture_output=True, check=True, text=True
    ).stdout


class Workshop:
    """A source tree and the folder of its series."""

    def __init__(self, root: Path) -> None:
        self.source = root / "source"
        self.folder = root / "patches"
        self.write("pkg/a.py", TEXT)
        self.write("pkg/b.py", "b = 1\n")
        (self.source / "link").symlink_to("pkg/a.py")
        self.folder.mkdir()

    def write(self, name: str, text: str) -> None:
        path = self.source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def series(self, **patches: str) -> None:
        for name, text in patches.items():
            (self.folder / f"{name}.patch").write_text(text)
        (self.folder / "series").write_text("# revision: 1\n" + "".join(f"{name}.patch\n" for name in patches))

    def apply(self) -> list[tuple[str, str]]:
        return [(one.name, one.status) for one in apply_series(self.folder, {"source": self.source})]

    def examined(self) -> Examined:
        return examine(self.folder, {"source": self.source})

    def examine(self) -> tuple[Outcome, ...]:
        """What would become of the series; the tree stays as it is."""
        before = store.tree_hash(self.source)
        found = self.examined().outcomes
        assert store.tree_hash(self.source) == before
        return found

    def refuse(self) -> DcaError:
        """The error of applying, which must leave the tree as it was."""
        before = store.tree_hash(self.source)
        with pytest.raises(DcaError) as refused:
            self.apply()
        assert store.tree_hash(self.source) == before
        return refused.value


@pytest.fixture
def shop(tmp_path: Path) -> Workshop:
    return Workshop(tmp_path)


def change(old: str, new: str, name: str = "pkg/a.py", text: str = TEXT) -> str:
    """A unified diff that replaces one line of a file."""
    lines = text.splitlines()
    at = lines.index(old)
    first, last = max(0, at - 3), min(len(lines), at + 4)
    body = (
        [f" {line}" for line in lines[first:at]]
        + [f"-{old}", f"+{new}"]
        + [f" {line}" for line in lines[at + 1 : last]]
    )
    size = last - first
    head = f"--- a/{name}\n+++ b/{name}\n@@ -{first + 1},{size} +{first + 1},{size} @@\n"
    return head + "\n".join(body) + "\n"


# --- what becomes of a series --------------------------------------------------------------------------------


def test_a_patch_that_fits_is_applied(shop: Workshop) -> None:
    shop.series(one=change("line 5", "LINE 5"))
    assert shop.apply() == [("one.patch", "clean")]
    assert (shop.source / "pkg/a.py").read_text() == TEXT.replace("line 5\n", "LINE 5\n")


def test_a_patch_that_fits_at_another_line_is_applied_and_said_to_be_at_an_offset(shop: Workshop) -> None:
    shop.write("pkg/a.py", "above\n" * 7 + TEXT)
    shop.series(one=change("line 9", "LINE 9"))
    [outcome] = shop.examine()
    assert [(moved.file, moved.line, moved.by) for moved in outcome.moved] == [("pkg/a.py", 6, 7)]
    assert shop.apply() == [("one.patch", "offset")]
    assert "LINE 9" in (shop.source / "pkg/a.py").read_text()


def test_a_patch_that_is_already_in_the_source_is_reported_and_skipped(shop: Workshop) -> None:
    shop.series(one=change("line 5", "LINE 5"), two=change("line 15", "LINE 15"))
    shop.write("pkg/a.py", TEXT.replace("line 5\n", "LINE 5\n"))
    assert shop.apply() == [("one.patch", "already there"), ("two.patch", "clean")]
    assert shop.apply() == [("one.patch", "already there"), ("two.patch", "already there")]


def test_a_patch_that_does_not_fit_is_named_with_its_file(shop: Workshop) -> None:
    shop.series(one=change("line 5", "LINE 5"))
    shop.write("pkg/a.py", TEXT.replace("line 5\n", "something else\n"))
    error = shop.refuse()
    assert error.code == "DCA-501"
    assert "1 of 1" in error.what
    assert "one.patch" in error.why
    assert "pkg/a.py" in error.why


def test_a_patch_of_a_missing_file_is_named_with_its_file(shop: Workshop) -> None:
    shop.series(one=change("line 5", "LINE 5", name="pkg/gone.py"))
    error = shop.refuse()
    assert error.code == "DCA-501"
    assert "pkg/gone.py" in error.why


def test_every_patch_that_does_not_fit_is_named(shop: Workshop) -> None:
    shop.series(one=change("line 2", "LINE 2"), two=change("line 10", "LINE 10"), three=change("line 18", "LINE 18"))
    shop.write("pkg/a.py", TEXT.replace("line 2\n", "x\n").replace("line 18\n", "y\n"))
    with pytest.raises(DcaError) as refused:
        shop.apply()
    assert "2 of 3" in refused.value.what
    told = [line for line in refused.value.why.splitlines() if not line.startswith(" ")]
    assert told == ["conflict       one.patch", "clean          two.patch", "conflict       three.patch"]


def test_a_patch_of_which_only_a_part_is_there_does_not_apply(shop: Workshop) -> None:
    shop.series(one=change("line 2", "LINE 2") + change("line 18", "LINE 18").split("\n", 2)[2])
    shop.write("pkg/a.py", TEXT.replace("line 2\n", "LINE 2\n"))
    assert shop.refuse().code == "DCA-501"


def test_patches_come_in_the_order_of_the_series_and_build_on_each_other(shop: Workshop) -> None:
    shop.series(
        b_first=change("line 5", "LINE 5"),
        a_second=change("LINE 5", "Line five", text=TEXT.replace("line 5\n", "LINE 5\n")),
    )
    assert shop.apply() == [("b_first.patch", "clean"), ("a_second.patch", "clean")]
    assert "Line five\n" in (shop.source / "pkg/a.py").read_text()


def test_comments_and_empty_lines_of_a_series_are_no_patches(shop: Workshop) -> None:
    shop.series(one=change("line 5", "LINE 5"))
    (shop.folder / "series").write_text("# revision: 3\n\n  # two.patch\n  one.patch  \n\n")
    assert [path.name for path in patching.series(shop.folder)] == ["one.patch"]
    assert shop.apply() == [("one.patch", "clean")]


def test_a_folder_without_a_series_changes_nothing(shop: Workshop) -> None:
    before = store.tree_hash(shop.source)
    assert shop.apply() == []
    assert patching.series(shop.folder / "missing") == []
    assert store.tree_hash(shop.source) == before


def test_a_patch_that_the_series_names_must_exist(shop: Workshop) -> None:
    (shop.folder / "series").write_text("missing.patch\n")
    error = shop.refuse()
    assert error.code == "DCA-502"
    assert "missing.patch" in error.what


def test_new_and_deleted_files_are_part_of_a_patch(shop: Workshop) -> None:
    gone = "diff --git a/pkg/b.py b/pkg/b.py\ndeleted file mode 100644\n--- a/pkg/b.py\n+++ /dev/null\n@@ -1 +0,0 @@\n"
    shop.series(new=new_file("pkg/new.py", "100755", "new"), gone=gone + "-b = 1\n")
    assert shop.apply() == [("new.patch", "clean"), ("gone.patch", "clean")]
    assert (shop.source / "pkg/new.py").read_text() == "new\n"
    assert (shop.source / "pkg/new.py").stat().st_mode & 0o100
    assert not (shop.source / "pkg/b.py").exists()


def test_a_mail_with_a_message_before_the_patch_is_a_patch(shop: Workshop) -> None:
    message = (
        "From 0123456789012345678901234567890123456789 Mon Sep 17 00:00:00 2001\nFrom: A <a@example.org>\n"
        "Subject: [PATCH] Make it right\n\ncopy the table before it is changed, and\n"
        "rename nothing; the\nnew mode is the default.\n---\n pkg/a.py | 2 +-\n\n"
    )
    shop.series(one=message + "diff --git a/pkg/a.py b/pkg/a.py\n" + change("line 5", "LINE 5") + "-- \n2.39.5\n")
    assert shop.apply() == [("one.patch", "clean")]


def test_a_tree_that_lies_inside_of_another_repository_is_patched(tmp_path: Path) -> None:
    git(tmp_path, "init", "--quiet")
    (tmp_path / ".gitignore").write_text("cache/\n")
    shop = Workshop(tmp_path / "cache" / "deep")
    shop.series(one=change("line 5", "LINE 5"))
    assert shop.apply() == [("one.patch", "clean")]
    assert "LINE 5" in (shop.source / "pkg/a.py").read_text()


def test_a_tree_that_is_a_repository_itself_is_patched(shop: Workshop) -> None:
    git(shop.source, "init", "--quiet")
    shop.series(one=change("line 5", "LINE 5"))
    assert shop.apply() == [("one.patch", "clean")]
    assert "LINE 5" in (shop.source / "pkg/a.py").read_text()


def test_other_white_space_is_another_line(shop: Workshop) -> None:
    shop.write("pkg/a.py", TEXT.replace("line", "line  "))
    shop.series(one=change("line 5", "LINE 5"))
    assert shop.refuse().code == "DCA-501"


# --- what is told of a patch that does not fit ---------------------------------------------------------------


def test_a_conflict_has_file_line_and_both_sides(shop: Workshop) -> None:
    shop.series(one=change("line 9", "LINE 9"))
    shop.write("pkg/a.py", "above\n" * 3 + TEXT.replace("line 9\n", "line nine\n"))
    [outcome] = shop.examine()
    assert outcome.status == "conflict"
    [conflict] = outcome.conflicts
    assert (conflict.file, conflict.line) == ("pkg/a.py", 9)
    assert conflict.expected == tuple(f"line {number}" for number in range(6, 13))
    assert conflict.found == (*conflict.expected[:3], "line nine", *conflict.expected[4:])
    assert conflict.wanted == (*conflict.expected[:3], "LINE 9", *conflict.expected[4:])
    why = shop.refuse().why
    for words in ("pkg/a.py:9", "the patch expects", "| line 9\n", "the source has", "| line nine\n"):
        assert words in why


def test_a_conflict_shows_the_lines_that_are_most_like_the_expected_ones(shop: Workshop) -> None:
    lines = [f"value_{number} = compute({number}, {number * 7})" for number in range(60)]
    shop.series(one=change(lines[20], "x", text="".join(f"{line}\n" for line in lines)))
    shop.write("pkg/a.py", "".join(f"{line.replace('compute', 'derive')}\n" for line in ["above = 1"] * 9 + lines))
    [outcome] = shop.examine()
    assert (outcome.conflicts[0].line, outcome.conflicts[0].found[3]) == (27, "value_20 = derive(20, 140)")


def test_a_conflict_names_each_place_of_each_file(shop: Workshop) -> None:
    both = change("line 2", "LINE 2") + change("line 18", "LINE 18").split("\n", 2)[2]
    shop.series(one=both + change("b = 1", "b = 2", "pkg/b.py", "b = 1\n"))
    shop.write("pkg/a.py", TEXT.replace("line 2\n", "x\n"))
    shop.write("pkg/b.py", "b = 3\n")
    [outcome] = shop.examine()
    assert [(one.file, one.line) for one in outcome.conflicts] == [("pkg/a.py", 1), ("pkg/b.py", 1)]


def test_a_part_that_is_there_already_is_told_as_such(shop: Workshop) -> None:
    shop.series(one=change("line 2", "LINE 2") + change("line 18", "LINE 18").split("\n", 2)[2])
    shop.write("pkg/a.py", TEXT.replace("line 2\n", "LINE 2\n"))
    [outcome] = shop.examine()
    [conflict] = outcome.conflicts
    assert "there already" in conflict.reason
    assert conflict.line == 1


def test_a_patch_that_would_fit_in_several_places_does_not_apply(shop: Workshop) -> None:
    shop.series(one=change("line 9", "LINE 9"))
    shop.write("pkg/a.py", "above\n" + TEXT + "between\n" + TEXT)
    [outcome] = shop.examine()
    assert "several lines: 7, 28" in outcome.conflicts[0].reason


def test_the_offset_of_the_hunk_above_tells_several_places_apart(shop: Workshop) -> None:
    text = TEXT + "same\n" * 30
    lines = text.splitlines()
    at = 40
    body = (
        "".join(f" {one}\n" for one in lines[at - 2 : at])
        + "-same\n+SAME\n"
        + "".join(f" {one}\n" for one in lines[at + 1 : at + 3])
    )
    two = change("line 9", "LINE 9", text=text) + f"@@ -{at - 1},5 +{at - 1},5 @@\n{body}"
    shop.series(one=two)
    shop.write("pkg/a.py", "above\n" * 4 + text)
    assert shop.apply() == [("one.patch", "offset")]
    assert (shop.source / "pkg/a.py").read_text().splitlines()[at + 4] == "SAME"


def test_a_patch_that_is_there_and_would_fit_once_more_elsewhere_does_not_apply_twice(shop: Workshop) -> None:
    shop.write("pkg/a.py", TEXT + TEXT)
    shop.series(one=change("line 9", "LINE 9"))
    assert shop.apply() == [("one.patch", "clean")]
    once = (shop.source / "pkg/a.py").read_text()
    assert shop.apply() == [("one.patch", "already there")]
    shop.write("pkg/a.py", "above\n" + once)
    [outcome] = shop.examine()
    assert outcome.status == "conflict"
    assert "there already" in outcome.conflicts[0].reason


def test_a_result_that_stands_in_several_places_is_not_there_already(shop: Workshop) -> None:
    """Nobody can tell whether one of them is what the patch was to make."""
    shop.series(one=change("line 9", "LINE 9"))
    changed = TEXT.replace("line 9\n", "LINE 9\n")
    shop.write("pkg/a.py", "above\n" + changed + "between\n" + changed)
    [outcome] = shop.examine()
    assert outcome.status == "conflict"


def test_a_report_is_a_document_with_a_schema(shop: Workshop) -> None:
    shop.series(one=change("line 5", "LINE 5"), two=change("gone", "x", text="gone\n"))
    made = report_of(shop.folder, shop.examined(), {"source": "commit:" + "1" * 40})
    told = json.loads(documents.dumps(made))
    assert told["schema"] == "dca.patches/1"
    assert [one["status"] for one in told["patches"]] == ["clean", "conflict"]
    assert Report.model_validate(told) == made
    schema = documents.json_schema(Report)
    statuses = schema["$defs"]["Outcome"]["properties"]["status"]["enum"]
    assert {"clean", "offset", "already there", "conflict", "refused"} <= set(statuses)


def test_a_header_is_read_and_what_it_lacks_is_told(shop: Workshop) -> None:
    shop.series(one="What: Makes it\n right.\nWhy: It was wrong.\n\n" + change("line 5", "LINE 5"))
    [outcome] = shop.examine()
    assert (outcome.what, outcome.lacks) == ("Makes it right.", ("Upstream", "Test"))


def test_what_a_series_names_lies_in_its_folder(shop: Workshop) -> None:
    for name in ("../one.patch", "/one.patch", "a//one.patch", "./one.patch", "one.patch\none.patch"):
        (shop.folder / "series").write_text(f"{name}\n")
        assert shop.refuse().code == "DCA-502"
    (shop.folder / "one.patch").symlink_to(shop.source / "pkg/a.py")
    (shop.folder / "series").write_text("one.patch\n")
    assert shop.refuse().code == "DCA-502"


# --- added files ---------------------------------------------------------------------------------------------


def test_added_files_are_copied_and_reported(shop: Workshop) -> None:
    shop.series(one=change("line 5", "LINE 5"))
    (shop.folder / "added/pkg/sub/__pycache__").mkdir(parents=True)
    (shop.folder / "added/pkg/sub/guard.py").write_text("guard = 1\n")
    (shop.folder / "added/pkg/sub/__pycache__/guard.pyc").touch()
    assert shop.apply() == [("one.patch", "clean"), ("pkg/sub/guard.py", "added")]
    assert (shop.source / "pkg/sub/guard.py").read_text() == "guard = 1\n"
    assert not (shop.source / "pkg/sub/__pycache__").exists()


def test_an_added_file_does_not_overwrite_one_of_the_source(shop: Workshop) -> None:
    (shop.folder / "added/pkg").mkdir(parents=True)
    (shop.folder / "added/pkg/b.py").write_text("b = 2\n")
    error = shop.refuse()
    assert error.code == "DCA-502"
    assert "pkg/b.py" in error.what


def test_an_added_file_that_the_source_has_is_there_already(shop: Workshop) -> None:
    (shop.folder / "added/pkg").mkdir(parents=True)
    (shop.folder / "added/pkg/b.py").write_text("b = 1\n")
    assert shop.apply() == [("pkg/b.py", "already there")]


def test_an_added_file_is_not_written_below_another(shop: Workshop, tmp_path: Path) -> None:
    (shop.folder / "added/pkg").mkdir(parents=True)
    (shop.folder / "added/pkg/one").write_text("1\n")
    for name in ("pkg/one/below", "pkg/b.py/below", "pkg/one"):
        if (tmp_path / "shared").exists():
            store.remove(tmp_path / "shared")
        path = tmp_path / "shared" / name
        path.parent.mkdir(parents=True)
        path.write_text("2\n")
        with pytest.raises(DcaError) as refused:
            apply_series(shop.folder, {"source": shop.source}, [tmp_path / "shared"])
        assert refused.value.code == "DCA-502"
        assert not (shop.source / "pkg/one").exists()


def test_an_added_file_is_not_written_through_a_link(shop: Workshop, tmp_path: Path) -> None:
    (shop.source / "pkg/dangling.py").symlink_to(tmp_path / "outside.py")
    (shop.folder / "added/pkg").mkdir(parents=True)
    (shop.folder / "added/pkg/dangling.py").write_text("x\n")
    assert shop.refuse().code == "DCA-502"
    assert not (tmp_path / "outside.py").exists()


class Build:
    """Patches a workshop's source as a build does, at a commit."""

    def __init__(self, shop: Workshop, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(data, "patches_folder", lambda _: shop.folder)
        self.root, self.cache = root, store.Store(root / "cache").open()
        self.report = root / "run/patches.json"

    def patch(self, digest: str = "d", pin: str = "1" * 40) -> Tree:
        source = FetchedSource(name="source", pin=f"commit:{pin}", place="x", tree="0" * 64)
        tree = Tree(folder=str(self.root), sources=(source,), members={})
        plan = Plan.model_construct(recipe="one", series_digest=digest)
        recipe = Recipe.model_construct(patches=Patches())
        return patching.patch(plan, recipe, tree, self.cache, self.root / "run/build.log")

    def kept(self) -> list[Path]:
        return sorted((self.root / "cache/patched").iterdir())


@pytest.fixture
def build(shop: Workshop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    return Build(shop, tmp_path, monkeypatch)


def test_a_build_leaves_the_whole_report_also_when_the_series_does_not_apply(shop: Workshop, build: Build) -> None:
    shop.series(one=change("line 5", "LINE 5"), two=change("line 15", "LINE 15"))
    made = build.patch()
    assert [one.status for one in made.patches] == ["clean", "clean"]
    told = documents.read(Report, build.report)
    assert ([one.status for one in told.patches], told.trees[0].pin) == (["clean", "clean"], "1" * 40)
    build.report.unlink()
    assert (build.patch(), documents.read(Report, build.report)) == (made, told)
    shop.write("pkg/a.py", TEXT.replace("line 15\n", "x\n"))
    before, kept = store.tree_hash(shop.source), build.kept()
    with pytest.raises(DcaError, match="1 of 2 patches do not apply"):
        build.patch("other")
    told = documents.read(Report, build.report)
    assert [one.status for one in told.patches] == ["clean", "conflict"]
    assert (store.tree_hash(shop.source), build.kept()) == (before, kept)


def test_a_full_disk_leaves_no_patched_tree(shop: Workshop, build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    shop.series(one=change("line 5", "LINE 5"), two=new_file("new/deep/file", "100755"))
    write = store.write_bytes

    def full(path: Path, data: bytes, *, mode: int = 0o644) -> None:
        if path.name == "file":
            raise OSError(28, "No space left on device", str(path))
        write(path, data, mode=mode)

    monkeypatch.setattr(store, "write_bytes", full)
    before = store.tree_hash(shop.source)
    with pytest.raises(OSError, match="No space"):
        build.patch()
    assert (store.tree_hash(shop.source), build.kept()) == (before, [])


def test_an_offset_on_the_source_that_a_patch_was_written_for_is_refused(shop: Workshop, build: Build) -> None:
    shop.write("pkg/a.py", "above\n" + TEXT)
    shop.series(one=change("line 5", "LINE 5"))
    (shop.folder / "series").write_text(f"# base: one/source {'1' * 40}\n# revision: 1\none.patch\n")
    with pytest.raises(DcaError, match="1 of 1 patches do not apply"):
        build.patch()
    assert [one.status for one in build.patch("other", "2" * 40).patches] == ["offset"]


# --- what is never applied -----------------------------------------------------------------------------------


def new_file(name: str, mode: str = "100644", content: str = "x") -> str:
    return (
        f"diff --git a/{name} b/{name}\nnew file mode {mode}\n--- /dev/null\n+++ b/{name}\n@@ -0,0 +1 @@\n+{content}\n"
    )


NO_END = "\\ No newline at end of file\n"
RELINK = f"--- a/link\n+++ b/link\n@@ -1 +1 @@\n-pkg/a.py\n{NO_END}+/etc/passwd\n{NO_END}"
TO_C = "diff --git a/pkg/b.py b/pkg/c.py\nsimilarity index 100%\n"
NEVER = {
    "a path outside": new_file("../outside"),
    "a path that leaves later": new_file("pkg/../../outside"),
    "a path outside without git's header": "--- /dev/null\n+++ b/../outside\n@@ -0,0 +1 @@\n+x\n",
    "an absolute path": "--- /dev/null\n+++ /outside\n@@ -0,0 +1 @@\n+x\n",
    "a quoted path outside": '--- /dev/null\n+++ "b/\\056\\056/outside"\n@@ -0,0 +1 @@\n+x\n',
    "the repository's own folder": new_file(".git/hooks/post-checkout"),
    "the same in capitals": new_file("pkg/.GIT/config"),
    "the same quoted": '--- /dev/null\n+++ "b/.g\\151t/config"\n@@ -0,0 +1 @@\n+x\n',
    "a new link": new_file("pkg/new", "120000", "/etc/passwd"),
    "a new submodule": new_file("pkg/new", "160000", "Subproject commit " + "1" * 40),
    "a link that is changed": f"diff --git a/link b/link\nindex 1111111..2222222 120000\n{RELINK}",
    "a link that is changed without its mode": RELINK,
    "a changed mode": "diff --git a/pkg/b.py b/pkg/b.py\nold mode 100644\nnew mode 100755\n",
    "a changed mode with a change": "diff --git a/pkg/a.py b/pkg/a.py\nold mode 100644\nnew mode 100755\n"
    + change("line 5", "LINE 5"),
    "a renamed file": TO_C + "rename from pkg/b.py\nrename to pkg/c.py\n",
    "a copied file": TO_C + "copy from pkg/b.py\ncopy to pkg/c.py\n",
    "a binary file": "diff --git a/x.bin b/x.bin\nnew file mode 100644\nindex 0000000..eaf36c1\n"
    "GIT binary patch\nliteral 4\nLcmZQzWMT#Y01f~L\n\nliteral 0\nHcmV?d00001\n\n",
    "a binary file without its content": "diff --git a/x.bin b/x.bin\nindex 1111111..2222222 100644\n"
    "Binary files a/x.bin and b/x.bin differ\n",
    "a file below another": new_file("pkg/new") + new_file("pkg/new/below"),
    "a file twice": new_file("pkg/new") + new_file("pkg/new"),
    "an empty file": "diff --git a/pkg/new b/pkg/new\nnew file mode 100644\nindex 0000000..e69de29\n",
    "a part of a new file": new_file("pkg/new").replace("@@ -0,0 +1 @@\n", "@@ -1 +1,2 @@\n old\n"),
    "no patch": "This is no patch.\n",
    "nothing": "",
    "a patch whose last line does not end": change("line 5", "LINE 5")[:-1],
    "a patch that is cut short": change("line 5", "LINE 5")[:-20],
}


@pytest.mark.parametrize("kind", NEVER)
def test_what_is_never_applied_is_refused(kind: str, shop: Workshop, tmp_path: Path) -> None:
    shop.write("x.bin", "x")
    shop.series(one=NEVER[kind])
    error = shop.refuse()
    assert error.code == "DCA-502"
    assert "one.patch" in error.what
    assert list(tmp_path.rglob("outside")) == []


def test_a_patch_that_is_not_text_is_refused(shop: Workshop) -> None:
    shop.series(one="")
    (shop.folder / "one.patch").write_bytes(change("line 5", "LINE 5").encode() + b"\xff\xfe")
    assert shop.refuse().code == "DCA-502"


def test_nothing_of_a_series_is_applied_when_one_patch_is_never_applied(shop: Workshop) -> None:
    shop.series(good=change("line 5", "LINE 5"), bad=NEVER["a path outside"])
    assert shop.refuse().code == "DCA-502"


def test_a_patched_source_is_shared_but_not_what_another_plan_had_beside_it(tmp_path: Path) -> None:
    cache = store.Store(tmp_path / "cache").open()
    plan = Plan.model_construct(recipe="a recipe without a series", series_digest="")
    recipe = Recipe.model_construct(patches=Patches())
    source = FetchedSource(name="source", pin="p", place="x", tree="0" * 64)
    trees = []
    for number, members in enumerate(({"vllm/a.so": "1" * 64}, {})):
        folder = tmp_path / f"tree{number}"
        (folder / "source").mkdir(parents=True)
        (folder / "source/a.py").write_text("a = 1\n")
        tree = Tree(folder=str(folder), sources=(source,), members=members)
        trees.append(patching.patch(plan, recipe, tree, cache, tmp_path / "log"))
    first, second = trees
    assert first.folders == second.folders
    assert (first.members, second.members) == ({"vllm/a.so": "1" * 64}, {})
    assert (second.folder, second.patched) == (str(tmp_path / "tree1"), first.patched)


def test_a_patch_in_a_companions_folder_is_applied_to_the_companion(shop: Workshop, tmp_path: Path) -> None:
    companion = tmp_path / "kernels"
    (companion / "pkg").mkdir(parents=True)
    (companion / "pkg/a.py").write_text(TEXT)
    shop.series(one=change("line 5", "FIVE"))
    (shop.folder / "kernels").mkdir()
    (shop.folder / "kernels/two.patch").write_text(change("line 7", "SEVEN"))
    (shop.folder / "series").write_text("one.patch\nkernels/two.patch\n")
    trees = {"source": shop.source, "kernels": companion}
    applied = [(one.name, one.status) for one in apply_series(shop.folder, trees)]
    assert applied == [("one.patch", "clean"), ("kernels/two.patch", "clean")]
    assert "SEVEN" in (companion / "pkg/a.py").read_text()
    assert "SEVEN" not in (shop.source / "pkg/a.py").read_text()


def test_a_patch_of_a_companion_that_is_not_there_is_not_needed(shop: Workshop) -> None:
    shop.series(one=change("line 5", "FIVE"))
    (shop.folder / "kernels").mkdir()
    (shop.folder / "kernels/two.patch").write_text(change("line 7", "SEVEN"))
    (shop.folder / "series").write_text("one.patch\nkernels/two.patch\n")
    assert shop.apply() == [("one.patch", "clean"), ("kernels/two.patch", "not needed")]


def test_a_patch_that_fails_leaves_every_tree_as_it_was(shop: Workshop, tmp_path: Path) -> None:
    companion = tmp_path / "kernels"
    (companion / "pkg").mkdir(parents=True)
    (companion / "pkg/a.py").write_text("another file\n")
    shop.series(one=change("line 5", "FIVE"))
    (shop.folder / "kernels").mkdir()
    (shop.folder / "kernels/two.patch").write_text(change("line 7", "SEVEN"))
    (shop.folder / "series").write_text("one.patch\nkernels/two.patch\n")
    before = store.tree_hash(shop.source), store.tree_hash(companion)
    with pytest.raises(DcaError) as refused:
        apply_series(shop.folder, {"source": shop.source, "kernels": companion})
    assert refused.value.code == "DCA-501"
    assert "kernels/two.patch" in str(refused.value.why)
    assert (store.tree_hash(shop.source), store.tree_hash(companion)) == before


def test_files_that_recipes_share_are_added_too(shop: Workshop, tmp_path: Path) -> None:
    shop.series(one=change("line 5", "FIVE"))
    shared = tmp_path / "shared"
    (shared / "pkg").mkdir(parents=True)
    (shared / "pkg/guards.py").write_text("guarded = True\n")
    applied = apply_series(shop.folder, {"source": shop.source}, [shared])
    assert [(one.name, one.status) for one in applied] == [("one.patch", "clean"), ("pkg/guards.py", "added")]
    assert (shop.source / "pkg/guards.py").is_file()
