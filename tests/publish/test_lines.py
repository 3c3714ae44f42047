"""The lines that install a wheel, on the page and in the terminal, and the lock that they install from."""

from __future__ import annotations

import html
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dca import publish
from dca.catalogue import recipes
from dca.foundation import data, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.publish.folder import Folder
from dca.publish.values import Evidence
from dca.publish.verified import Folder as Here
from dca.publish.verified import verify_index
from dca.trust import runlock, signing
from dca.trust.verify import NOBODY, Trusted
from tests.publish.test_verified import KEY
from tests.support.made_wheels import Details, make, put

Dca = Callable[..., subprocess.CompletedProcess[str]]
URL = "https://wheels.example/index/"
HASH = f"--hash=sha256:{'0' * 64}"
RECIPE = recipes.load_all()[0].recipe.name


def made_by(folder: Path, version: str, *, recipe: str = RECIPE, requires: tuple[str, ...] = ()) -> Path:
    """A wheel whose own record names a recipe."""
    own = {
        "recipe": recipe,
        "plan": "p",
        "profile": "lean",
        "groups": ["core"],
        "archs": ["9.0"],
        "cuda": "12.4",
        "torch": {"version": "2.8.0"},
        "modules": [],
        "serves": {},
    }
    info = f"vllm-{version}.dist-info"
    details = Details(requires=requires, changed={f"{info}/dca.json": json.dumps(own).encode()})
    return make(folder, version, details=details)


def page(index: Path) -> str:
    return html.unescape((index / "index.html").read_text())


def lock_of(index: Path, version: str) -> Evidence | None:
    (record,) = (one for one in publish.listing(Folder(index)).wheels if one.version == version)
    return next((proof for proof in record.evidence if proof.kind == "run-lock"), None)


@pytest.mark.slow
def test_the_lock_of_the_recipe_is_published_and_linked(tmp_path: Path) -> None:
    index, lock = tmp_path / "index", data.run_lock(RECIPE, "lean").read_bytes()
    torch = next(pin for pin in runlock.parse(lock) if pin.name == "torch")
    made = [
        made_by(tmp_path, "1.0+cu124", requires=(f"torch=={torch.version}", "nothing; extra == 'more'")),
        made_by(tmp_path, "2.0+cu124", requires=("torch==1.0",)),
        made_by(tmp_path, "3.0+cu124", recipe="../readers"),
        made_by(tmp_path, "4.0+cu124", recipe="unknown"),
    ]
    put(index, *made, signers=[signing.KeySigner(KEY)])
    proof = lock_of(index, "1.0+cu124")
    assert proof
    assert (index / proof.path).read_bytes() == lock
    assert proof.says == f"{len({pin.name for pin in runlock.parse(lock)})} packages with hashes"
    assert [lock_of(index, f"{n}.0+cu124") for n in (2, 3, 4)] == [None] * 3, "it does not fit, or is none"
    text = page(index)
    assert f'<a href="{proof.path}">lock</a>' in text
    assert text.count(f"--require-hashes -r URL/{proof.path} &&") == 2
    found = verify_index(Here(index), Trusted((KEY.public_key(),)), Silent())
    assert found.problems == ()
    locks = {one.wheel.split("+")[0]: [f.status for f in one.findings if f.check == "lock"] for one in found.wheels}
    assert locks == {"vllm-1.0": ["proven"], "vllm-2.0": [], "vllm-3.0": [], "vllm-4.0": []}


def test_what_a_lock_may_not_hold_is_found(tmp_path: Path) -> None:
    """Whoever can write to an unsigned index can make the record fit."""
    index, lock = tmp_path / "index", tmp_path / "run-lock.txt"
    lock.write_text(f"helper==1.0 {HASH}\n")
    wheel = make(tmp_path, "1.0+cu124", details=Details(requires=("helper>=1",)))
    put(index, wheel, evidence=[lock])
    assert verify_index(Here(index), NOBODY, Silent()).problems == ()
    proof = lock_of(index, "1.0+cu124")
    assert proof
    for content in (f"helper==1.0 {HASH}\n--index-url https://evil.example/\n", f"other==1.0 {HASH}\n"):
        (index / proof.path).write_text(content)
        found = verify_index(Here(index), NOBODY, Silent())
        (wrong,) = (one for wheel in found.wheels for one in wheel.wrong)
        assert (wrong.check, found.problems != ()) == ("lock", True), content


NOT_LOCKS = (
    "",
    "# nothing\n",
    "helper==1.0\n",
    f"helper>=1.0 {HASH}\n",
    f"helper==1.* {HASH}\n",
    f"helper @ https://evil.example/helper.whl {HASH}\n",
    f"./helper.whl {HASH}\n",
    f"helper==1.0 {HASH}\n--index-url https://evil.example/\n",
    f"helper==1.0 {HASH}\n-r https://evil.example/\n",
    f"helper==1.0 {HASH} --config-settings=a=b\n",
    f"helper==1.0 --hash=md5:{'0' * 32}\n",
    f"helper==1.0 ; nonsense {HASH}\n",
    f"helper==${{HOME}} {HASH}\n",
    # Hidden from a reader who divides lines, continues comments or reads letters differently.
    f"helper==1.0 {HASH}\n# \x0c--pre\n",
    f"helper==1.0 {HASH}\n# \u2028--pre\n",
    f"helper==1.0 {HASH}\r--pre\n",
    f"helper==1.0 {HASH}\n# a \\\n--pre\n",
    f"# -*- coding: utf-7 -*-\nhelper==1.0 {HASH}\n",
)


@pytest.mark.parametrize("content", NOT_LOCKS)
def test_what_is_no_lock_is_not_read_as_one(content: str) -> None:
    with pytest.raises(runlock.BadLockError) as error:
        runlock.parse(content.encode())
    assert str(error.value).isprintable()


def test_a_given_lock_must_fit(tmp_path: Path) -> None:
    wheel, lock = make(tmp_path, "1.0+cu124", details=Details(requires=("helper>=1",))), tmp_path / "run-lock.txt"
    for content, why in (
        (f"helper==0.5 {HASH}\n", "it pins helper 0.5"),
        ("helper\n", "no pin"),
        (" ", "pins nothing"),
    ):
        lock.write_text(content)
        with pytest.raises(DcaError, match=why) as error:
            put(tmp_path / "index", wheel, evidence=[lock])
        assert error.value.code == "DCA-907"
    lock.write_text(
        f"helper==1.5 \\\n    {HASH} \\\n    {HASH}\n    # via vllm\nother==1 ; python_version < '3' {HASH}\n"
    )
    assert put(tmp_path / "index", wheel, evidence=[lock]).added
    proof = lock_of(tmp_path / "index", "1.0+cu124")
    assert proof
    assert proof.says == "2 packages with hashes"


def test_the_page_and_the_terminal_print_both_lines(tmp_path: Path, dca_publish: Dca, dca_index: Dca) -> None:
    index, lock = tmp_path / "index", tmp_path / "run-lock.txt"
    lock.write_text(f"helper==1.5 {HASH}\n")
    wheel = make(tmp_path, "2.0+cu124", details=Details(requires=("helper>=1",)))
    done = dca_publish(wheel, "--index", index, "--url", URL, "--evidence", lock)
    assert done.returncode == 0, done.stderr
    proof = lock_of(index, "2.0+cu124")
    assert proof
    options = f"--no-deps --require-hashes --index-url {URL}cu124/"
    hashed = f"echo 'vllm==2.0+cu124 --hash=sha256:{store.sha256_file(wheel)}' |"
    both = (
        f"uv pip install --require-hashes -r {URL}{proof.path} &&",
        f"{hashed} uv pip install {options} -r -",
        f"uv pip install --index {URL}cu124/ vllm==2.0+cu124",
    )
    listed = dca_index("list", "--index", index).stdout
    for printed in (done.stdout, listed, page(index)):
        # In the terminal uv is called as it can be called there.
        text = re.sub(r"[^ ]*/uv pip", "uv pip", printed)
        assert [line for line in both if line not in text] == [], text
    assert f"pip install --extra-index-url {URL}cu124/ vllm==2.0+cu124</pre>" in page(index)
    assert f"{hashed} pip install {options} -r /dev/stdin</pre>" in page(index)


def in_sight(text: str) -> str:
    """A page without what has to be unfolded, scripts and styles."""
    text = re.sub(r"<(details|script|style)>?.*?</\1>", " ", text, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", "", text).split())


def test_the_page_warns_in_sight(tmp_path: Path) -> None:
    put(tmp_path / "index", make(tmp_path, "2.0+cu124"), make(tmp_path, "1.5", project="helper"), url=URL)
    text = in_sight(page(tmp_path / "index"))
    warning = f"pip install vllm --extra-index-url {URL}simple/ takes a newer vllm from another index without a word"
    assert warning in text
    put(tmp_path / "other", make(tmp_path, "1.5", project="helper"))
    assert "takes a newer" not in page(tmp_path / "other"), "its version may be on the other index too"


@pytest.mark.slow
def test_the_newest_version_comes_first(tmp_path: Path, dca_index: Dca) -> None:
    """Neither the last that was published nor the last of the alphabet."""
    versions = ["10.0+cu124", "9.0+cu124", "9.0rc1+cu124", "2.0+dca2.cu124", "2.0+dca1.cu124"]
    for version in (versions[2], versions[0], *versions[3:], versions[1]):
        put(tmp_path / "index", make(tmp_path, version))
    found = re.findall(r'<h2><a href="files/vllm-([^"]*)-py3', page(tmp_path / "index"))
    assert [name.replace("%2B", "+") for name in found] == versions
    told: dict[str, Any] = json.loads(dca_index("list", "--index", tmp_path / "index", "--json").stdout)
    assert [record["version"] for record in told["wheels"]] == versions
    text = dca_index("list", "--index", tmp_path / "index").stdout
    assert "Install vllm==10.0+cu124 " in text
    assert text.count("Install") == 1


def test_a_yank_ends_with_no_line_that_installs(tmp_path: Path, dca_index: Dca) -> None:
    index = tmp_path / "index"
    put(index, make(tmp_path, "1.0+cu124"), make(tmp_path, "2.0+cu124"))
    done = dca_index("yank", "2.0+cu124", "--reason", "wrong", "--index", index)
    assert done.returncode == 0, done.stderr
    assert "install" not in done.stdout.lower()
    assert "vllm==2.0+cu124" not in page(index)
    assert "vllm==1.0+cu124" in page(index)
    assert "Install vllm==1.0+cu124 " in dca_index("list", "--index", index).stdout
    dca_index("yank", "1.0+cu124", "--index", index)
    assert "Install" not in dca_index("list", "--index", index).stdout + page(index)
