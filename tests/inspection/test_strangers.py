"""Wheels that others made, for many systems and by many tools: what `dca inspect` says of them, against cuobjdump."""

from __future__ import annotations

import json
import re
import subprocess
import zipfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from dca.binaries.fatbin import FOR_AMD
from dca.catalogue import mirrors, torch_releases
from dca.catalogue.recipes import IndexFile
from dca.inspection import InspectedModule, Inspection, verdict
from dca.inspection.verdict import Target
from dca.sources import index
from tests.inspection.test_hostile import MOST_KB, inspect

pytestmark = [pytest.mark.network, pytest.mark.whole]

# What is wrong with many wheels: they were renamed after they were built, and promise to run with too old a glibc.
TAG, GLIBC = "WHEEL says ", "promises to run with glibc"
ARCHIVES = frozenset(("gzip archives", "static libraries", "zip archives"))
MACOS, WINDOWS = frozenset(("macOS libraries (Mach-O)",)), frozenset(("Windows libraries and programs (PE)",))


@dataclass(frozen=True)
class Wheel:
    """A wheel on the index.

    Args:
        file: its name.
        sha256: of it.
        faults: what each of its problems says.
        unread: the kinds of files that are not looked into.
        runs: the answer for an H100 with driver 550.
        torch: the answer for torch 2.8.
    """

    file: str
    sha256: str
    faults: tuple[str, ...] = ()
    unread: frozenset[str] = frozenset()
    runs: str = "yes"
    torch: str = "yes"

    @property
    def pinned(self) -> IndexFile:
        name, version, *_ = self.file.split("-")
        return IndexFile(package=name.replace("_", "-"), version=version, file=self.file, sha256=self.sha256)


CUOBJDUMP = Wheel(
    "nvidia_cuda_cuobjdump-13.5.37-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
    "38780fee50863252a0b8926357faa91615ca1c8346490563f33a06100cd73f58",
)
WHEELS = (
    Wheel("requests-2.34.2-py3-none-any.whl", "2a0d60c172f83ac6ab31e4554906c0f3b3588d37b5cb939b1c061f4907e278e0"),
    Wheel(
        "setuptools-84.2.1-py3-none-any.whl",
        "ca140b45d5325a9478f880e351484f62fef15f336462e449ca0c03c873d589c2",
        unread=WINDOWS,
    ),
    Wheel(
        "bitsandbytes-0.50.2-py3-none-macosx_14_0_arm64.whl",
        "4311f52a880b341bada639e4edd1a3c8d786830c9c93cdde29eaa1f062c8f8e5",
        unread=MACOS,
        runs="no",
        torch="unknown",
    ),
    Wheel(
        "mlx-0.32.4-cp312-cp312-macosx_14_0_arm64.whl",
        "ff1d7be54758ea3a875b8fe54eff13bed17ad9566505e301f5d7851bf869680f",
        unread=MACOS,
        runs="no",
        torch="unknown",
    ),
    Wheel(
        "xformers-0.0.35-py39-none-win_amd64.whl",
        "57381ce3cbb79b593e6b62cb20a937885345fad2796de2aa6fbb66c033601179",
        unread=WINDOWS,
        runs="unknown",
        torch="no",
    ),
    Wheel(
        "xformers-0.0.35-py39-none-manylinux_2_28_x86_64.whl",
        "ccc73c7db9890224ab05f5fb60e2034f9e6c8672a10be0cf00e95cbbae3eda7c",
        torch="no",
    ),
    Wheel(
        "cuml_cu12-26.2.0-cp312-cp312-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
        "7eeb6f3dda78e0172c88d4eb9a927ae08efb3307631b4d3acb863c98a1718472",
    ),
    Wheel(
        "torchvision-0.29.1-cp312-cp312-manylinux_2_28_x86_64.whl",
        "6c717bd68dddaebbd9525377a17a84e38a291a33a218f59fdb76e8bb41e61c99",
        runs="no",
        torch="no",
    ),
    Wheel(
        "numpy-2.5.5-cp312-cp312-macosx_11_0_arm64.whl",
        "b96e9ee49ccbdb5676359f852a4497f7a9c5df6c377d8877f5330d6fd3ff42e4",
        unread=MACOS | ARCHIVES,
        runs="no",
        torch="unknown",
    ),
    Wheel(
        "numpy-2.5.5-cp312-cp312-win_amd64.whl",
        "919eb420662b0b4ba34889df503f3d5329775b0c1d5f7e5f5af4fba8315b1e30",
        unread=WINDOWS | ARCHIVES,
        runs="unknown",
        torch="unknown",
    ),
    Wheel(
        "numpy-2.5.5-cp312-cp312-manylinux_2_27_aarch64.manylinux_2_28_aarch64.whl",
        "a0750f2156d53446caca85663d0b65d67214e1664b9050454a731ea1418d176a",
        unread=ARCHIVES,
    ),
    Wheel(
        "numpy-2.5.5-cp312-cp312-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "704d819265e5d1064d932968e9ee85fff2103ccc78c05b878c06943ba27b8507",
        unread=ARCHIVES,
    ),
    Wheel(
        "numpy-2.5.5-cp312-cp312-musllinux_1_2_x86_64.whl",
        "7fb87c4bcc73850ef433a0c42f096b010d3d3d284e9d00028bb030b43df3d078",
        unread=ARCHIVES,
    ),
    Wheel(
        "bitsandbytes-0.50.2-py3-none-manylinux_2_24_aarch64.whl",
        "d5772560dd94c4d9c57f50c9b017450a1707f7687bfd4b3dc86f7342aafe721e",
    ),
    Wheel(
        "bitsandbytes-0.50.2-py3-none-win_amd64.whl",
        "c697963c8fda3dcd0d7ebd9b5211ae4067feef7cd06e0350d4e816a434fe683d",
        unread=WINDOWS,
        runs="unknown",
        torch="unknown",
    ),
    Wheel(
        "ctranslate2-4.8.5-cp312-cp312-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl",
        "86876e8b579ef61e4d1402002f7728fca40967fe79ac2ef71a65d1b8dc5a18ee",
        runs="no",
    ),
    Wheel(
        "bitsandbytes-0.50.2-py3-none-manylinux_2_24_x86_64.whl",
        "55348a9a4a21bfd99cf8c7b32fe67b4030ae5c2a05738e03c1747f65fa6ec283",
        faults=(GLIBC,),
    ),
    Wheel(
        "faiss_gpu_cu12-1.14.1.post1-cp312-cp312-manylinux_2_17_x86_64.manylinux2014_x86_64.whl",
        "d997b9a4d9c7697e3ce39576edb91733c20ac2e81b455b4c08afea9d69e894cf",
        runs="no",
    ),
    Wheel(
        "vllm_flash_attn-2.6.2-cp310-cp310-manylinux1_x86_64.whl",
        "a0c52274036c10c1025bdedf233a52312bb21f8443b6bb1c89b7824e18c2fbbb",
        faults=(TAG, GLIBC),
        torch="no",
    ),
    Wheel(
        "flashinfer_python-0.7.4-py3-none-any.whl",
        "a051a62e09a2738e8b0de47a1944fd2f0f3eff01b728b662141ea660cb09dd32",
        runs="unknown",
    ),
    Wheel(
        "cupy_cuda12x-14.2.0-cp312-cp312-manylinux2014_x86_64.whl",
        "f82141761f2c81905d49387464ae29438887956d99063381c93a1d5d1b7d32e8",
        faults=(TAG,),
    ),
    Wheel(
        "nvidia_nvshmem_cu12-3.8.0-py3-none-manylinux2014_x86_64.manylinux_2_17_x86_64.whl",
        "b2e5760d6158aefe7bb74348d5128bb1b46a7dd1fd4b7b1e6fe55b4b07888f70",
        unread=frozenset(("LLVM bitcode files", "static libraries")),
    ),
    Wheel(
        "vllm-0.8.5-cp38-abi3-manylinux1_x86_64.whl",
        "74bfe92953bee1269c1e1c27827bc156777751cdd6a3457ee8e27dd8ebf1e247",
        faults=(TAG, GLIBC),
        torch="no",
    ),
    Wheel(
        "vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl",
        "4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa",
        faults=(TAG,),
        runs="no",
        torch="no",
    ),
    Wheel(
        "sglang_kernel-0.4.10-cp310-abi3-manylinux2014_x86_64.whl",
        "043cbe4a10e7887ea1b25599b729ff1ce115a0d5217b2c177aff9f9ae5327724",
        runs="no",
        torch="no",
    ),
    Wheel(
        "vllm-0.11.0-cp38-abi3-manylinux1_x86_64.whl",
        "3861c75ff2b12e24f6d179ff5c084d791b42ded8675d76c8706697c79f68cd62",
        faults=(TAG, GLIBC),
        runs="no",
    ),
    Wheel(
        "flashinfer_cubin-0.6.13-py3-none-any.whl",
        "41e4848c2d09d220e8394489b2fb6cfec6b6ad09f897b5ab8b39fc23055f6c24",
        runs="no",
    ),
)


@pytest.fixture
def downloaded(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A wheel, which is deleted after its test: all of them have 3 GB."""
    wheel: Wheel = request.param
    path = tmp_path / wheel.file
    yield index.fetch_url(mirrors.places(index.find(wheel.pinned)), wheel.sha256, path)
    path.unlink()


@pytest.fixture(scope="module")
def cuobjdump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """NVIDIA's own reader."""
    folder = tmp_path_factory.mktemp("cuobjdump")
    path = folder / CUOBJDUMP.file
    index.fetch_url(mirrors.places(index.find(CUOBJDUMP.pinned)), CUOBJDUMP.sha256, path)
    with zipfile.ZipFile(path) as wheel:
        program = Path(wheel.extract(next(name for name in wheel.namelist() if name.endswith("/cuobjdump")), folder))
    program.chmod(0o755)
    return program


def listed(cuobjdump: Path, file: Path, what: str) -> dict[str, int] | None:
    """The number of cubins or PTX texts of a file by arch, as cuobjdump lists them; None if it cannot read the file."""
    done = subprocess.run([cuobjdump, what, file], capture_output=True, text=True, check=False)
    if "fatal" in done.stderr:
        return None
    return dict(
        Counter(f"{arch[:-1]}.{arch[-1]}" for arch in re.findall(r"\.sm_(\d+)[af]?\.(?:cubin|ptx)$", done.stdout, re.M))
    )


def check(cuobjdump: Path, wheel: Path, modules: tuple[InspectedModule, ...], folder: Path) -> None:
    """Compare every library's device code with what cuobjdump lists."""
    with zipfile.ZipFile(wheel) as archive:
        for module in modules:
            if module.kind != "library" or not (module.sass or module.ptx or module.relocatable):
                continue
            file = Path(archive.extract(module.path, folder))
            cubins, texts = (listed(cuobjdump, file, what) for what in ("--list-elf", "--list-ptx"))
            file.unlink()
            if cubins is not None and texts is not None:
                assert (module.sass, module.ptx) == (cubins, texts), module.path


@pytest.mark.parametrize(
    ("wheel", "downloaded"), [(wheel, wheel) for wheel in WHEELS], ids=lambda wheel: wheel.file, indirect=["downloaded"]
)
def test_a_strangers_wheel(wheel: Wheel, downloaded: Path, cuobjdump: Path, tmp_path: Path) -> None:
    done = inspect(downloaded, "--gpu", "H100", "--driver", "550")
    assert "Traceback" not in done.messages
    assert done.peak < MOST_KB
    document = Inspection.model_validate(json.loads(done.output))
    assert len(document.problems) == len(wheel.faults)
    for problem, fault in zip(document.problems, wheel.faults, strict=True):
        assert fault in problem
    assert {left.what for left in document.unread} == wheel.unread
    assert {what for module in document.modules for what in module.unread} <= {FOR_AMD}
    torch = verdict.answer(document, Target(torch=torch_releases.parse("2.8")))
    assert document.answer is not None
    assert (document.answer.says, torch.says) == (wheel.runs, wheel.torch), (document.answer, torch)
    check(cuobjdump, downloaded, document.modules, tmp_path)
