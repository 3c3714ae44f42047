"""Build environments without what only running needs, from a stand-in index, with the real uv and g++."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from dca.binaries import elf
from dca.catalogue import partial_wheels
from dca.catalogue.plan import Plan
from dca.foundation import data, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.toolchain import environments
from tests.support.web import Place, sha
from tests.toolchain.test_stand_ins import compiled

HEADER = b"int mathDo(void);\nint mathMore(void);\n"
TORCH = b"""
from torch import version
__version__ = "2.8.0"
def compiled_with_cxx11_abi(): return True
"""
PROGRAM = b"#!/bin/sh\necho assembled\n"


def wheel(name: str, files: dict[str, bytes]) -> bytes:
    body, info = io.BytesIO(), f"{name}-1.0.dist-info"
    files |= {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    rows = [
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip('=')},{len(content)}"
        for path, content in files.items()
    ]
    with zipfile.ZipFile(body, "w") as archive:
        for path, content in {**files, f"{info}/RECORD": "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()}.items():
            archive.writestr(zipfile.ZipInfo(path, (1980, 1, 1, 0, 0, 0)), content)
    return body.getvalue()


def file_of(name: str) -> str:
    return f"{name}-1.0-py3-none-any.whl"


class Index:
    """A stand-in index with a torch that requires a library of the package `math`, which is mostly this library."""

    def __init__(self, place: Place, plan: Plan, folder: Path) -> None:
        self.place, self.plan, self.folder = place, plan, folder
        self.cache = store.Store(folder / "cache")
        self.notes: list[str] = []
        library = compiled(folder / "libmath.so.1", 'extern "C" int mathDo() { return 1; }')
        source = 'extern "C" int mathDo(); extern "C" int use() { return mathDo(); }'
        torch = compiled(folder / "libtorch.so", source, library, "-Wl,-rpath,$ORIGIN/../../nvidia/math/lib")
        self.wheels = {
            "torch": wheel(
                "torch",
                {
                    "torch/__init__.py": TORCH,
                    "torch/version.py": b"cuda = '12.8'\n",
                    "torch/include/x.h": b"",
                    "torch/lib/libtorch.so": torch.read_bytes(),
                    "torch/tool.py": b"def main():\n    print('a program')\n",
                    "torch-1.0.dist-info/entry_points.txt": b"[console_scripts]\nthing = torch.tool:main\n",
                },
            ),
            "math": wheel(
                "math",
                {
                    "nvidia/math/lib/libmath.so.1": library.read_bytes() + bytes(1 << 20),
                    "nvidia/math/include/math.h": HEADER,
                    "math_tools/backends/nvidia/bin/ptxas": PROGRAM,
                },
            ),
        }
        for name, body in self.wheels.items():
            link = f'<a href="/files/{file_of(name)}#sha256={sha(body)}">{file_of(name)}</a>'
            place.pages[f"/simple/{name}/"] = ("text/html", link.encode())
            place.pages[f"/files/{file_of(name)}"] = ("application/octet-stream", body)
        self.lock = folder / "locks/thing/build.txt"
        self.lock.parent.mkdir(parents=True)
        lines = [f"{name}==1.0 \\\n    --hash=sha256:{sha(body)}\n" for name, body in self.wheels.items()]
        self.lock.write_text("# made by hand\n" + "".join(lines))
        self.record()

    def record(self, **other: str) -> None:
        """Write the partial wheels, with other values than the right ones."""
        values = {"sha256": sha(self.wheels["math"]), "header": sha(HEADER), "file": file_of("math")} | other
        partial_wheels.path(self.lock).write_text(
            'schema = "dca.partial/1"\n[[wheels]]\npackage = "math"\nversion = "1.0"\n'
            f'file = "{values["file"]}"\nsha256 = "{values["sha256"]}"\nlibraries = ["nvidia/math/lib/libmath.so.1"]\n'
            f'[wheels.members]\n"nvidia/math/include/math.h" = "{values["header"]}"\n'
            f'"math_tools/backends/nvidia/bin/ptxas" = "{sha(PROGRAM)}"\n'
        )

    def run(self, cache: store.Store | None = None) -> Run:
        reporter = Silent()
        reporter.note = self.notes.append  # type: ignore[method-assign, assignment]
        return Run(cache or self.cache, reporter, self.folder / "log")

    def make(self, cache: store.Store | None = None) -> Path:
        return environments.build_environment(self.plan, self.run(cache))

    @property
    def downloaded(self) -> bool:
        """Whether the large wheel was downloaded completely."""
        return self.place.sent > 1 << 20


@pytest.fixture
def index(place: Place, planned: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Index:
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{place.url}/simple/")
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    plan = planned.model_copy(update={"python_path": sys.executable, "host_compiler": "g++"})
    made = Index(place, plan, tmp_path)
    monkeypatch.setattr(data, "build_lock", lambda *_: made.lock)
    return made


def site(python: Path) -> Path:
    (folder,) = python.parent.parent.glob("lib/python*/site-packages")
    return folder


def is_loaded(python: Path, library: Path) -> bool:
    code = f"import ctypes, os; ctypes.CDLL({str(library)!r}, os.RTLD_NOW)"
    return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0


def test_what_a_build_does_not_need_is_not_downloaded_and_torch_loads(index: Index) -> None:
    python = index.make()
    assert (site(python) / "nvidia/math/include/math.h").read_bytes() == HEADER
    assert not index.downloaded
    assert is_loaded(python, site(python) / "torch/lib/libtorch.so")
    assert "partial" in python.parent.parent.name
    assert environments.find_build(index.plan, index.cache) == python == index.make()


def test_the_assembler_that_comes_with_torch_is_there(index: Index) -> None:
    (assembler,) = environments.ptxas(index.make())
    assert subprocess.run([assembler], capture_output=True, check=True).stdout == b"assembled\n"


def test_an_environment_with_the_whole_lock_is_used_where_there_is_one(index: Index) -> None:
    whole = environments.make(index.lock, index.plan.python_path, index.plan.python, index.run())
    assert environments.find_build(index.plan, index.cache) == whole == index.make()
    assert index.downloaded


@pytest.mark.parametrize(
    "other", [{"sha256": "0" * 64}, {"file": "math-1.0-cp27-none-any.whl"}, {"file": "math-1.0-py3-none-win32.whl"}]
)
def test_the_lock_decides_and_a_wheel_that_it_does_not_have_is_not_taken_apart(
    other: dict[str, str], index: Index
) -> None:
    index.record(**other)
    python = index.make()
    assert "partial" not in python.parent.parent.name
    assert index.downloaded


def test_a_lock_without_partial_wheels_is_installed_whole(index: Index) -> None:
    partial_wheels.path(index.lock).unlink()
    index.make()
    assert index.downloaded


def test_a_header_that_is_not_the_pinned_one_is_refused_and_nothing_stays(index: Index) -> None:
    index.record(header="1" * 64)
    with pytest.raises(DcaError) as refused:
        index.make()
    assert refused.value.code == "DCA-401"
    assert list((index.cache.root / "env").glob("*")) == []


# remotezip leaves an answer open that it did not expect.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_an_index_that_serves_no_parts_gives_the_whole_package_and_that_is_told(index: Index) -> None:
    def whole(to: BaseHTTPRequestHandler) -> None:
        del to.headers["Range"]
        index.place.send(to, *index.place.pages[f"/files/{file_of('math')}"])

    index.place.odd[f"/files/{file_of('math')}"] = whole
    python = index.make()
    assert (site(python) / "nvidia/math/include/math.h").read_bytes() == HEADER
    assert is_loaded(python, site(python) / "torch/lib/libtorch.so")
    (note,) = index.notes
    assert note.startswith(f"{file_of('math')} (1 MB) is downloaded completely: ")
    assert "partial" in python.parent.parent.name
    assert list(index.cache.root.glob(f"downloads/*/{file_of('math')}")) == []
    sent = index.place.sent
    assert environments.inputs(index.plan, index.cache, Silent())
    # The complete packages, which uv keeps for itself.
    assert index.place.sent - sent < 1 << 20


@pytest.mark.parametrize("how", ["moved", "copied", "seen by two names"])
def test_an_environment_works_in_another_place(how: str, index: Index, tmp_path: Path) -> None:
    python = index.make()
    before = environments.torch_facts(index.plan, python, True, tmp_path / "log")
    other = tmp_path / "another place"
    if how == "moved":
        index.cache.root.rename(other)
    elif how == "copied":
        shutil.copytree(index.cache.root, other, symlinks=True)
        shutil.rmtree(index.cache.root)
    else:
        other.symlink_to(index.cache.root)
    index.place.asked.clear()
    there = index.make(store.Store(other))
    assert there.is_relative_to(other)
    assert index.place.asked == index.notes == []
    assert is_loaded(there, site(there) / "torch/lib/libtorch.so")
    # A program of a package, and what a build asks of torch.
    assert subprocess.run([there.parent / "thing"], capture_output=True, check=True).stdout == b"a program\n"
    facts = environments.torch_facts(index.plan, there, True, tmp_path / "log")
    assert Path(facts.libraries).is_relative_to(other)
    assert facts == before.with_paths(lambda path: path.replace(str(index.cache.root), str(other)))
    assert all(Path(folder).is_dir() for folder in facts.includes)


def test_an_environment_of_an_earlier_version_stays_where_it_is_and_is_made_again_elsewhere(
    index: Index, tmp_path: Path
) -> None:
    folder = index.make().parent.parent
    config = folder / "pyvenv.cfg"
    text = re.sub("(?m)^relocatable.*\n", "", config.read_text())
    activate = f"VIRTUAL_ENV='{folder}'\nexport VIRTUAL_ENV\n"
    config.write_text(text)
    (folder / "bin/activate").write_text(activate)
    (folder / "old").touch()
    assert (index.make().parent.parent / "old").exists()
    index.cache.root.rename(other := tmp_path / "another place")
    assert environments.find_build(index.plan, store.Store(other)) is None
    there = index.make(store.Store(other))
    assert not (there.parent.parent / "old").exists()
    assert [note for note in index.notes if "moved or copied here" in note and str(other) in note]
    assert subprocess.run([there.parent / "thing"], capture_output=True, check=True).stdout == b"a program\n"


def test_a_damaged_library_of_torch_is_reported(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(*_: object) -> None:
        raise elf.ElfError("not a complete ELF file: it ends early")

    monkeypatch.setattr(elf, "imports", damaged)
    with pytest.raises(DcaError) as refused:
        index.make()
    assert (refused.value.code, "ends early" in refused.value.why) == ("DCA-407", True)
    assert list((index.cache.root / "env").glob("*")) == []


def test_without_an_index_one_error_says_so(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple/")
    with pytest.raises(DcaError) as refused:
        index.make()
    assert refused.value.code == "DCA-402"
    assert index.notes == []
    assert list((index.cache.root / "env").glob("*")) == []


def test_the_files_of_a_bundle_are_enough_without_an_index(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    files = environments.inputs(index.plan, index.cache, Silent())
    assert sorted(file.name for file in files) == sorted(["math.h", "ptxas", file_of("torch")])
    assert not index.downloaded
    monkeypatch.setenv("UV_DEFAULT_INDEX", "http://127.0.0.1:9/simple/")
    offline = store.Store(index.cache.root, offline=True)
    python = index.make(offline)
    assert is_loaded(python, site(python) / "torch/lib/libtorch.so")


def test_a_mistake_in_the_file_is_reported_with_its_line(index: Index) -> None:
    file = partial_wheels.path(index.lock)
    file.write_text(re.sub("libraries", "library", file.read_text()))
    with pytest.raises(DcaError) as refused:
        index.make()
    assert (refused.value.code, "line 7" in refused.value.what) == ("DCA-202", True), json.dumps(refused.value.what)
