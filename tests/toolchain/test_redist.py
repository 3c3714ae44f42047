"""NVIDIA's archives, from a server on this machine with the same layout as theirs."""

from __future__ import annotations

import contextlib
import io
import json
import lzma
import platform
import sys
import tarfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import redist as script
from dca.catalogue import machine, recipes, toolkits
from dca.catalogue.plan import Plan, Reach, Reachability, Request
from dca.catalogue.toolkits import Component, Redist, ToolkitSource
from dca.foundation import data, datafile, store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.foundation.run import Run
from dca.pipeline import gather, probing
from dca.resolve import World, resolve
from dca.toolchain import provide, redist
from tests.support import MATH_FUNCTIONS
from tests.support.web import Place, sha

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LABEL = "12.4.1"
MANIFEST = f"redistrib_{LABEL}.json"
SCRIPT = b"#!/bin/sh\necho 'Cuda compilation tools, release 12.4, V12.4.131'\n"

Member = tuple[tarfile.TarInfo, bytes]


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    server = Place()
    monkeypatch.setenv(redist.OVERRIDE, f"{server.url}/redist")
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def fresh(tmp_path: Path) -> store.Store:
    return store.Store(tmp_path / "cache").open()


def member(name: str, content: bytes = b"x", *, mode: int = 0o644) -> Member:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    return info, content


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def packed(*members: Member) -> bytes:
    body = io.BytesIO()
    with tarfile.open(fileobj=body, mode="w:xz") as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return body.getvalue()


def top(name: str) -> str:
    return f"{name}-linux-x86_64-12.4.131-archive"


def where(name: str) -> str:
    return f"{name}/linux-x86_64/{top(name)}.tar.xz"


def pinned(archives: dict[str, bytes]) -> Redist:
    """The pins of some archives, as if NVIDIA had published them."""
    return Redist(
        url="https://nowhere.example/redist/",
        label=LABEL,
        manifest=MANIFEST,
        sha256="1" * 64,
        components=tuple(
            Component(name=name, version="12.4.131", relative_path=where(name), sha256=sha(body), size=len(body))
            for name, body in archives.items()
        ),
    )


def serve(place: Place, archives: dict[str, bytes]) -> None:
    place.pages[f"/redist/{MANIFEST}"] = ("application/json", b"{}")
    for name, body in archives.items():
        place.pages[f"/redist/{where(name)}"] = ("application/x-xz", body)


def kept(cache: store.Store) -> list[str]:
    """Every file of the cache, also those under way, besides its own marks."""
    names = {path.name for path in cache.root.rglob("*") if path.is_file() and path.suffix != ".lock"}
    return sorted(names - {"CACHEDIR.TAG"})


# --- where the archives are ----------------------------------------------------------------------------------


ONE = pinned({"cuda_nvcc": b"archive"})


def test_the_archives_are_where_the_toolkit_file_says_unless_a_mirror_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(redist.OVERRIDE, raising=False)
    assert redist.endpoint(ONE) == "https://nowhere.example/redist/"
    monkeypatch.setenv(redist.OVERRIDE, "")
    assert redist.endpoint(ONE) == "https://nowhere.example/redist/"
    for named in ("https://mirror.example/cuda", "https://mirror.example/cuda/", "https://me:word@mirror.example/cuda"):
        monkeypatch.setenv(redist.OVERRIDE, named)
        assert redist.endpoint(ONE) == named.rstrip("/") + "/"


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:8080/x", "http://localhost/x", "http://[::1]:80/x"])
def test_a_mirror_on_this_machine_needs_no_tls(mirror: str) -> None:
    assert redist.checked(mirror) == f"{mirror}/"


@pytest.mark.parametrize(
    "mirror",
    [
        "http://user:secret@mirror.example/x",
        "http://127.0.0.1.example/x",
        "ftp://mirror.example/x",
        "/srv/mirror",
        "https://",
        "https://mirror.example/x?token=secret",
        "https://mirror.example/x#secret",
        "https://[::1/x",
        "x",
    ],
)
def test_a_mirror_that_anybody_could_play_is_refused(mirror: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(redist.OVERRIDE, mirror)
    with pytest.raises(DcaError) as refused:
        redist.endpoint(ONE)
    assert refused.value.code == "DCA-201"
    assert redist.OVERRIDE in refused.value.what
    assert "secret" not in str(refused.value)


def test_a_mirror_that_has_the_manifest_can_be_reached_and_sends_none_of_it(place: Place) -> None:
    serve(place, {})
    assert redist.probe(ONE) == ""
    assert (place.asked, place.sent) == ([f"/redist/{MANIFEST}"], 0)


def test_a_mirror_without_the_manifest_says_which_it_lacks(place: Place) -> None:
    assert redist.probe(ONE) == f"the server answers with status 404 for {MANIFEST}"


def test_a_mirror_that_is_not_there_cannot_be_reached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(redist.OVERRIDE, "http://user:secret@127.0.0.1:1/redist")
    assert "does not answer" in redist.probe(ONE)
    assert "secret" not in redist.probe(ONE)
    with pytest.raises(DcaError) as refused:
        redist.download(ONE.components[0], ONE, store.Store(tmp_path))
    assert refused.value.code == "DCA-402"


def test_every_place_of_every_toolkit_is_asked_and_the_lock_is_that_of_the_mirror(
    place: Place, fresh: store.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(place, {})
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{place.url}/simple/")
    sources = tuple(source for source in toolkits.load_sources() if source.apt is None)
    reach = probing.probe(Request(), (), sources)
    assert {name for source in sources for name in source.places} == set(reach.places)
    reached = {name for name, place in reach.places.items() if place.ok}
    assert reached == {
        "index",
        *(f"redist:{source.name}" for source in sources if source.redist and source.redist.label == LABEL),
    }
    lock = gather._lock_path(Request(), (), sources, fresh)
    monkeypatch.setenv(redist.OVERRIDE, "https://user:secret@mirror.example")
    assert gather._lock_path(Request(), (), sources, fresh) != lock


# --- downloading ---------------------------------------------------------------------------------------------


BODY = bytes(range(256)) * 4000


def asked(archive: bytes) -> tuple[Component, Redist]:
    release = pinned({"cuda_nvcc": archive})
    return release.components[0], release


def test_an_archive_is_kept_under_its_hash_and_not_fetched_again(place: Place, fresh: store.Store) -> None:
    serve(place, {"cuda_nvcc": BODY})
    path = redist.download(*asked(BODY), fresh)
    assert path == fresh.download(sha(BODY), f"{top('cuda_nvcc')}.tar.xz")
    assert path.read_bytes() == BODY
    assert redist.download(*asked(BODY), fresh) == path
    assert len(place.asked) == 1
    path.write_bytes(BODY[:-1])
    assert redist.download(*asked(BODY), fresh).read_bytes() == BODY


def cut(to: BaseHTTPRequestHandler) -> None:
    to.send_response(200)
    to.send_header("Content-Length", str(len(BODY)))
    to.end_headers()
    to.wfile.write(BODY[:-1000])


def elsewhere(to: BaseHTTPRequestHandler) -> None:
    to.send_response(302)
    to.send_header("Location", "/redist/other")
    to.end_headers()


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        pytest.param(None, "DCA-402", id="404"),
        pytest.param(cut, "DCA-402", id="truncated"),
        pytest.param(lambda to: to.send_error(503), "DCA-402", id="503"),
        pytest.param(BODY[:-1] + b"?", "DCA-401", id="another byte"),
        pytest.param(b"", "DCA-401", id="nothing"),
        pytest.param(elsewhere, "DCA-402", id="redirected to nothing"),
    ],
)
def test_an_archive_that_cannot_be_had_as_it_is_pinned_leaves_nothing_and_the_next_run_gets_it(
    answer: object, code: str, place: Place, fresh: store.Store
) -> None:
    path = f"/redist/{where('cuda_nvcc')}"
    if callable(answer):
        place.odd[path] = answer
    elif isinstance(answer, bytes):
        place.pages[path] = ("application/x-xz", answer)
    with pytest.raises(DcaError) as refused:
        redist.download(*asked(BODY), fresh)
    assert refused.value.code == code
    assert refused.value.remedy
    assert kept(fresh) == []
    place.odd.clear()
    serve(place, {"cuda_nvcc": BODY})
    assert redist.download(*asked(BODY), fresh).read_bytes() == BODY


def test_a_redirection_on_the_way_is_followed(place: Place, fresh: store.Store) -> None:
    place.odd[f"/redist/{where('cuda_nvcc')}"] = elsewhere
    place.pages["/redist/other"] = ("application/x-xz", BODY)
    assert redist.download(*asked(BODY), fresh).read_bytes() == BODY


def test_an_answer_that_does_not_end_is_not_read_to_its_end(place: Place, fresh: store.Store) -> None:
    blocks = 0

    def endless(to: BaseHTTPRequestHandler) -> None:
        nonlocal blocks
        to.send_response(200)
        to.end_headers()
        while blocks < 2000:
            try:
                to.wfile.write(BODY)
            except OSError:
                break
            blocks += 1

    place.odd[f"/redist/{where('cuda_nvcc')}"] = endless
    with pytest.raises(DcaError) as refused:
        redist.download(*asked(BODY), fresh)
    assert refused.value.code == "DCA-401"
    assert blocks < 100
    assert kept(fresh) == []


# --- a toolkit of shell scripts, packed as NVIDIA packs theirs ---------------------------------------------------


def parts() -> dict[str, list[Member]]:
    nvcc, cudart = top("cuda_nvcc"), top("cuda_cudart")
    return {
        "cuda_nvcc": [
            member(f"{nvcc}/bin/nvcc", SCRIPT, mode=0o755),
            member(f"{nvcc}/bin/crt/link.stub"),
            member(f"{nvcc}/nvvm/bin/cicc", mode=0o755),
            member(f"{nvcc}/include/crt/host_config.h"),
            member(f"{nvcc}/include/crt/math_functions.h", MATH_FUNCTIONS.encode()),
            member(f"{nvcc}/LICENSE"),
        ],
        "cuda_cudart": [
            member(f"{cudart}/include/cuda_runtime.h"),
            link(f"{cudart}/lib/libcudart.so", "libcudart.so.12"),
            link(f"{cudart}/lib/libcudart.so.12", "libcudart.so.12.4.127"),
            member(f"{cudart}/lib/libcudart.so.12.4.127", mode=0o755),
            member(f"{cudart}/lib/stubs/libcuda.so", mode=0o755),
            member(f"{cudart}/LICENSE"),
        ],
        **{name: [member(f"{top(name)}/{kind}/{name}.h") for kind in kinds] for name, kinds in OTHERS.items()},
    }


OTHERS = {"cuda_cccl": ["include"], "cuda_nvtx": ["include", "lib"], "cuda_profiler_api": ["include"]}


def real(name: str = "nvidia-12.4") -> ToolkitSource:
    return next(source for source in toolkits.load_sources() if source.name == name)


def source_of(archives: dict[str, bytes]) -> ToolkitSource:
    """The project's own toolkit file, with the pins of other archives."""
    return real().model_copy(update={"redist": pinned(archives)})


def bring(source: ToolkitSource, cache: store.Store) -> Path:
    return provide.bring(source, Run(cache, Silent(), cache.root / "log"))


def test_a_stand_in_toolkit_is_laid_out_as_a_whole_one(place: Place, fresh: store.Store) -> None:
    archives = {name: packed(*members) for name, members in parts().items()}
    serve(place, archives)
    folder = bring(source_of(archives), fresh)
    assert {name for name, _ in store.walk(folder)} == {
        "bin/nvcc",
        "bin/crt/link.stub",
        "nvvm/bin/cicc",
        "include/crt/host_config.h",
        "include/crt/math_functions.h",
        "include/cuda_runtime.h",
        "dca-headers.json",
        "include/cuda_cccl.h",
        "include/cuda_nvtx.h",
        "include/cuda_profiler_api.h",
        "lib64/cuda_nvtx.h",
        "lib64/libcudart.so",
        "lib64/libcudart.so.12",
        "lib64/libcudart.so.12.4.127",
        "lib64/stubs/libcuda.so",
    }
    assert str((folder / "lib64/libcudart.so").readlink()) == "libcudart.so.12"
    assert (folder / "nvvm/bin/cicc").stat().st_mode & 0o100
    assert list(folder.parent.iterdir()) == [folder]
    before = list(place.asked)
    assert bring(source_of(archives), fresh) == folder
    assert place.asked == before


CUDART = top("cuda_cudart")


@pytest.mark.usefixtures("each_tarfile")
@pytest.mark.parametrize(
    "odd",
    [
        pytest.param([member(f"{CUDART}/../../escaped")], id="a path that leaves"),
        pytest.param([member("/escaped")], id="an absolute path"),
        pytest.param([link(f"{CUDART}/lib/escaped", "../../../../../..")], id="a link that leaves"),
        pytest.param([link(f"{CUDART}/lib/escaped", "/etc/passwd")], id="a link to an absolute path"),
        pytest.param([link(f"{CUDART}/lib/escaped", "../../x", tarfile.LNKTYPE)], id="a hard link out"),
        pytest.param([link(f"{CUDART}/lib/escaped", "", tarfile.CHRTYPE)], id="a device"),
        pytest.param([member("other/file")], id="two top folders"),
    ],
)
def test_an_odd_archive_in_a_stand_in_toolkit_leaves_nothing(
    odd: list[Member], place: Place, fresh: store.Store, tmp_path: Path
) -> None:
    archives = {name: packed(*members, *(odd if name == "cuda_cudart" else [])) for name, members in parts().items()}
    serve(place, archives)
    with pytest.raises(DcaError) as refused:
        bring(source_of(archives), fresh)
    assert refused.value.code == "DCA-404"
    assert list((fresh.root / "toolkit").iterdir()) == []
    assert [path for path in tmp_path.rglob("escaped*") if path.is_file()] == []


def test_a_link_that_leads_out_once_its_part_is_laid_out_leaves_nothing(place: Place, fresh: store.Store) -> None:
    members = parts()
    members["cuda_cudart"].append(link(f"{CUDART}/lib/deep/odd", "../../LICENSE"))
    archives = {name: packed(*content) for name, content in members.items()}
    serve(place, archives)
    plain = source_of(archives)
    layout = plain.layout.model_copy(update={"copies": (*plain.layout.copies, ("redist/cuda_cudart/lib/deep", "deep"))})
    with pytest.raises(DcaError) as refused:
        bring(plain.model_copy(update={"layout": layout}), fresh)
    assert refused.value.code == "DCA-408"
    assert "deep/odd" in refused.value.why
    assert list((fresh.root / "toolkit").iterdir()) == []


@pytest.mark.parametrize("how", ["no compiler", "another version", "no headers", "damaged"])
def test_stand_in_archives_that_do_not_become_the_toolkit_leave_nothing(
    how: str, place: Place, fresh: store.Store
) -> None:
    members = parts()
    if how == "no compiler":
        members["cuda_nvcc"][0] = member(f"{top('cuda_nvcc')}/bin/nvcc", b"#!/bin/sh\nexit 1\n", mode=0o755)
    elif how == "another version":
        changed = SCRIPT.replace(b"131", b"132")
        members["cuda_nvcc"][0] = member(f"{top('cuda_nvcc')}/bin/nvcc", changed, mode=0o755)
    elif how == "no headers":
        members["cuda_cccl"] = [member(f"{top('cuda_cccl')}/LICENSE")]
    archives = {name: packed(*content) for name, content in members.items()}
    if how == "damaged":
        archives["cuda_cccl"] = lzma.compress(b"x" * 100_000)[:-40]
    serve(place, archives)
    with pytest.raises(DcaError) as refused:
        bring(source_of(archives), fresh)
    assert refused.value.code == ("DCA-404" if how == "damaged" else "DCA-408")
    assert list((fresh.root / "toolkit").iterdir()) == []


def test_a_stand_in_archive_that_is_missing_keeps_the_others_and_the_next_run_fetches_only_it(
    place: Place, fresh: store.Store
) -> None:
    archives = {name: packed(*members) for name, members in parts().items()}
    last = f"/redist/{where('cuda_profiler_api')}"
    serve(place, archives)
    gone = place.pages.pop(last)
    with pytest.raises(DcaError) as refused:
        bring(source_of(archives), fresh)
    assert refused.value.code == "DCA-402"
    assert list((fresh.root / "toolkit").iterdir()) == []
    place.pages[last] = gone
    place.asked.clear()
    assert (bring(source_of(archives), fresh) / "bin/nvcc").is_file()
    assert place.asked == [last]


# --- real compilers ------------------------------------------------------------------------------------------


def all_in_reach(sources: tuple[ToolkitSource, ...]) -> World:
    """This machine, as it would be if everything could be reached and no toolkit were on it."""
    known = recipes.load_all()
    places = {"index", *(place for source in sources for place in source.places)}
    return World(
        recipes=known,
        toolkits=sources,
        cuda=toolkits.load_versions(),
        machine=machine.look().model_copy(update={"toolkits": ()}),
        reach=Reach(places={name: Reachability(ok=True) for name in sorted(places)}),
    )


def some_plan(source: ToolkitSource) -> Plan:
    """A plan of any recipe, made to compile with one toolkit."""
    plan = resolve(Request(), all_in_reach(toolkits.load_sources()))
    assert isinstance(plan, Plan)
    return plan.model_copy(update={"cuda": source.line, "archs": ("8.0", "9.0")})


# As NVIDIA's own begins: what nvcc finds by the folder it lies in.
PROFILE = b"""
TOP              = $(_HERE_)/..
CICC_PATH        = $(TOP)/nvvm/bin
NVVMIR_LIBRARY_DIR = $(TOP)/nvvm/libdevice
LD_LIBRARY_PATH += $(TOP)/lib:
PATH            += $(CICC_PATH):$(_HERE_):
INCLUDES        +=  "-I$(TOP)/$(_TARGET_DIR_)/include" $(_SPACE_)
LIBRARIES        =+ $(_SPACE_) "-L$(TOP)/$(_TARGET_DIR_)/lib$(_TARGET_SIZE_)/stubs" \
"-L$(TOP)/$(_TARGET_DIR_)/lib$(_TARGET_SIZE_)"
CUDAFE_FLAGS    +=
PTXAS_FLAGS     +=
"""


def repacked(toolkit: Path) -> dict[str, bytes]:
    """A toolkit's files as the archives of NVIDIA's components."""
    cccl = ("include/cub/", "include/thrust/", "include/cuda/", "include/nv/")
    nvtx = ("include/nvToolsExt", "include/nvtx3/", "lib64/libnvToolsExt")

    def component(name: str) -> str:
        if name.startswith(("bin/", "nvvm/", "include/crt/", "include/fatbinary", "include/nvPTX")):
            return "cuda_nvcc"
        return "cuda_cccl" if name.startswith(cccl) else "cuda_nvtx" if name.startswith(nvtx) else "cuda_cudart"

    bodies = {name: io.BytesIO() for name in ("cuda_nvcc", "cuda_cudart", *OTHERS)}
    with contextlib.ExitStack() as stack:
        archives = {
            name: stack.enter_context(tarfile.open(fileobj=body, mode="w:xz", preset=0))
            for name, body in bodies.items()
        }
        for name, path in store.walk(toolkit):
            owner = component(name)
            inside = f"{top(owner)}/{name.replace('lib64/', 'lib/')}"
            if name == "bin/nvcc.profile":
                info, content = member(inside, PROFILE)
                archives[owner].addfile(info, io.BytesIO(content))
            else:
                archives[owner].add(path, inside)
        info, content = member(f"{top('cuda_profiler_api')}/include/cuda_profiler_api.h")
        archives["cuda_profiler_api"].addfile(info, io.BytesIO(content))
    return {name: body.getvalue() for name, body in bodies.items()}


@pytest.mark.whole
def test_a_real_nvcc_packed_as_nvidia_does_is_brought_and_compiles(
    place: Place, cache: store.Store, fresh: store.Store
) -> None:
    whole = provide.bring(real("debian-12.4"), Run(cache.open(), Silent(), fresh.root / "log"))
    archives = repacked(whole)
    serve(place, archives)
    source = source_of(archives)
    assert redist.probe(source.redist or ONE) == ""
    folder = bring(source, fresh)
    named = {name for name, _ in store.walk(folder)} - {"include/cuda_profiler_api.h"}
    assert named == {name for name, _ in store.walk(whole)}
    provide.admit(folder, some_plan(source), Run(fresh, Silent(), fresh.root / "log"))
    (admitted,) = (fresh.root / "admitted").iterdir()
    assert str(folder) in admitted.read_text()


@pytest.mark.long
@pytest.mark.network
def test_a_real_nvcc_of_the_package_index_is_brought_and_compiles(cache: store.Store, tmp_path: Path) -> None:
    (source,) = (source for source in toolkits.load_sources(platform.machine()) if source.places == ("index",))
    folder = provide.bring(source, Run(cache.open(), Silent(), tmp_path / "log"))
    kept_here = store.Store(tmp_path / "cache").open()
    provide.admit(folder, some_plan(source), Run(kept_here, Silent(), tmp_path / "log"))
    assert len(list((kept_here.root / "admitted").iterdir())) == 1


def test_runs_that_admit_the_same_toolkit_at_once_do_not_mind_each_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for nvcc; the second run ends while the first removes what it compiled."""
    nvcc = tmp_path / "kit/bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\nexit 0\n")
    nvcc.chmod(0o755)
    at = store.Store(tmp_path / "cache")
    plan: Any = SimpleNamespace(host_compiler="g++", host_compiler_version="12", nvcc_archs=("8.0",), cuda="12.4")
    remove, removed = store.remove, []

    def meanwhile(path: Path) -> None:
        # Other folders are temporary as well: a program's own, and those that try out the file system.
        ours = (path / "kernel.cu").is_file()
        removed.extend([path] * ours)
        if ours and len(removed) == 1:
            provide.admit(tmp_path / "kit", plan, Run(at, Silent(), tmp_path / "log"))
        remove(path)

    monkeypatch.setattr(store, "remove", meanwhile)
    provide.admit(tmp_path / "kit", plan, Run(at, Silent(), tmp_path / "log"))
    assert len(removed) == 2
    assert len(list((at.root / "admitted").iterdir())) == 1
    assert [path.name for path in at.root.rglob("kernel.cu")] == []


# --- the toolkit files, and what writes them ---------------------------------------------------------------------


OWN = [source.name for source in toolkits.load_sources() if source.redist]


@pytest.mark.parametrize("name", OWN)
def test_a_toolkit_file_of_archives_agrees_with_itself(name: str) -> None:
    source = real(name)
    release = source.redist
    assert release is not None
    assert source.version == script.version(release)
    assert source.download_mb == script.megabytes(release)
    assert release.manifest == f"redistrib_{release.label}.json"
    assert toolkits.cuda_line(release.label) == source.line
    assert len({component.name for component in release.components}) == len(release.components)
    assert len({component.sha256 for component in release.components}) == len(release.components)
    for component in release.components:
        platform = f"linux-{source.machine}"
        assert (
            component.relative_path
            == f"{component.name}/{platform}/{component.name}-{platform}-{component.version}-archive.tar.xz"
        )
    taken = {origin.split("/")[1] for origin, _ in source.layout.copies if origin.startswith("redist/")}
    assert taken == {component.name for component in release.components}
    path = data.toolkits_folder() / f"{name}.toml"
    assert script.renewed(path.read_text(encoding="utf-8"), release) == path.read_text(encoding="utf-8")


COMPONENTS = [component.name for component in (real().redist or ONE).components]


def manifest(label: str | None = "12.6.3") -> bytes:
    content: dict[str, object] = {"release_date": "2024-11-14", **({"release_label": label} if label else {})}
    for number, name in enumerate([*COMPONENTS, "cuda_gdb"]):
        content[name] = {
            "name": name,
            "version": "12.6.85",
            **{
                platform: {
                    "relative_path": f"{name}/{platform}/{name}-{platform}-12.6.85-archive.tar.xz",
                    "sha256": sha(f"{name} {platform}".encode()),
                    "md5": "0",
                    "size": str(1_000_000 + number),
                }
                for platform in ("linux-x86_64", "linux-sbsa")
            },
        }
    return json.dumps(content).encode()


@pytest.fixture
def data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of toolkit files with a copy of one, under a new name."""
    text = (data.toolkits_folder() / "nvidia-12.4.toml").read_text(encoding="utf-8")
    (tmp_path / "new.toml").write_text(text.replace('name = "nvidia-12.4"', 'name = "new"'), encoding="utf-8")
    (tmp_path / "manifest.json").write_bytes(manifest())
    monkeypatch.setattr(data, "toolkits_folder", lambda: tmp_path)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> None:
    monkeypatch.setattr("sys.argv", ["redist.py", *map(str, arguments)])
    script.main()


@pytest.mark.parametrize("by", ["file", "url", "the usual place"])
def test_another_release_is_written_without_typing_a_hash(
    by: str, data_folder: Path, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.pages["/redist/redistrib_12.6.3.json"] = ("application/json", manifest())
    options: dict[str, tuple[str | Path, ...]] = {
        "file": ("--manifest", data_folder / "manifest.json"),
        "url": ("--manifest", f"{place.url}/redist/redistrib_12.6.3.json"),
        "the usual place": (),
    }
    before = datafile.load(ToolkitSource, data_folder / "new.toml")
    run(monkeypatch, "new", "--label", "12.6.3", *options[by], "--write")
    after = datafile.load(ToolkitSource, data_folder / "new.toml")
    assert (after.version, after.line, after.download_mb) == ("12.6.85", "12.6", 6)
    assert after.redist is not None
    assert after.redist.sha256 == sha(manifest())
    assert [component.sha256 for component in after.redist.components] == [
        sha(f"{component.name} linux-x86_64".encode()) for component in after.redist.components
    ]
    assert after.layout == before.layout
    assert [component.name for component in after.redist.components] == COMPONENTS


def test_without_being_told_to_write_it_prints_what_can_be_pasted(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (data_folder / "new.toml").read_bytes()
    run(
        monkeypatch, "new", "--label", "12.6.3", "--manifest", data_folder / "manifest.json", "--component", "cuda_nvcc"
    )
    document = tomllib.loads(capsys.readouterr().out)
    assert document["version"] == "12.6.85"
    assert [component["name"] for component in document["redist"]["components"]] == ["cuda_nvcc"]
    assert (data_folder / "new.toml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--label", "12.9.1"], "is that of CUDA 12.6.3, not 12.9.1"),
        (["--label", "12.6.3", "--component", "cuda_gone"], "has no cuda_gone for linux-x86_64"),
        (["--label", "12.6.3", "--manifest", "missing.json"], "missing.json does not exist"),
        (["--label", "12.6.3", "--manifest", "http://mirror.example/x.json"], "is not the URL of a mirror"),
        (["--label", "12.6.3", "--manifest", "http://127.0.0.1:1/x.json"], "could not be reached"),
    ],
)
def test_a_manifest_that_is_not_the_right_one_changes_nothing(
    arguments: list[str], why: str, data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (data_folder / "new.toml").read_bytes()
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, "new", "--manifest", data_folder / "manifest.json", *arguments, "--write")
    assert why in str(refused.value.code)
    assert (data_folder / "new.toml").read_bytes() == before


def test_another_manifest_of_the_release_that_is_pinned_is_refused(
    data_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_folder / "manifest.json").write_bytes(manifest(None))
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, "new", "--manifest", data_folder / "manifest.json", "--write")
    assert "is not the pinned one" in str(refused.value.code)


def test_a_toolkit_without_archives_has_nothing_to_refresh(monkeypatch: pytest.MonkeyPatch) -> None:
    other = next(source.name for source in toolkits.load_sources() if source.redist is None)
    with pytest.raises(SystemExit) as refused:
        run(monkeypatch, other)
    assert "has no table [redist]" in str(refused.value.code)
