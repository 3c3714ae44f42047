"""Launches are recorded on the emulated device, and replayed there; no toolkit and no GPU is needed."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dca.binaries import fatbin
from dca.emulation import images
from dca.emulation.recording import MOST_OF_A_KERNEL, Recording
from dca.foundation import documents, store
from dca.pipeline.wheel import Made
from tests.support import ROOT, RunDca, fatbins

KERNELS = Path(__file__).with_name("kernels.ptx")
SCRIPT = ROOT / "scripts/gpu_proof.py"
# All but machine code, which cannot be emulated.
ON_EMULATED = ("--only", "fat-binaries", "--only", "times", "--only", "ptx")
Emulate = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def emulate(dca: RunDca, cache: store.Store) -> Emulate:
    def run(*words: str | Path, options: tuple[str | Path, ...] = ()) -> subprocess.CompletedProcess[str]:
        named = ("--cache-dir", cache.root, *options)
        variables = {"PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}"}
        return dca("emulate", "--quiet", *named, "--", sys.executable, *words, env=variables)

    return run


@pytest.fixture(scope="module")
def module(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fat binary with the kernels as PTX, and with machine code of their names."""
    file = tmp_path_factory.mktemp("module") / "kernels.fatbin"
    text = KERNELS.read_bytes() + b"\0"
    code = fatbins.cubin(80, dict.fromkeys(fatbin.bare(text).kernels, 128))
    entries = [fatbins.entry(fatbins.SASS, 80, code), fatbins.entry(fatbins.PTX, 80, text, flags=fatbins.LZ4)]
    file.write_bytes(fatbins.container(*entries))
    return file


@pytest.fixture(scope="module")
def recorded(emulate: Emulate, module: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recorded") / "launches"
    words = ("exact=first", "exact", "approximate=a case", "indirect", "counting", "meeting")
    done = emulate("-m", "tests.emulation.recording.program", module, *words, options=("--record", folder))
    assert done.returncode == 0, done.stderr
    assert "recorded 3 launches of 2 kernels" in done.stderr
    return folder


def document(folder: Path) -> Recording:
    (file,) = folder.glob("launches-*.json")
    return documents.read(Recording, file)


def content(folder: Path, sha256: str) -> bytes:
    return zlib.decompress((folder / "files" / sha256).read_bytes())


@pytest.fixture
def copied(recorded: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded, tmp_path / "copy"))


def edited(folder: Path, edit: Callable[[dict[str, Any], Callable[[bytes], str]], None]) -> Path:
    """The recording with its document changed by `edit`, which also gets a function that adds a content."""
    (file,) = folder.glob("launches-*.json")

    def add(new: bytes) -> str:
        (folder / "files" / store.sha256_bytes(new)).write_bytes(zlib.compress(new))
        return store.sha256_bytes(new)

    changed = json.loads(file.read_text())
    edit(changed, add)
    file.write_text(json.dumps(changed))
    return folder


def test_a_launch_has_its_pointers_and_its_buffers_before_and_after(recorded: Path) -> None:
    found = document(recorded)
    first = found.launches[0]
    assert (first.label, first.grid, first.block, first.shared) == ("first", (1, 1, 1), (32, 1, 1), 0)
    assert [(one.at, one.offset) for one in first.pointers] == [(0, 0), (8, 128)]
    assert bytes.fromhex(first.parameters)[16:] == struct.pack("<Ii", 0, -1)
    source, result = first.buffers
    assert (source.bytes, result.bytes, source.before) == (128, 256, source.after)
    numbers = struct.unpack("<32f", content(recorded, source.before))
    assert content(recorded, result.after) == bytes(128) + struct.pack("<32f", *(3 * x for x in numbers))
    assert [one.rounding.within for one in found.kernels] == [0.0, 2.0**-18]
    assert found.launches[2].buffers[1].dtype == "float32"


def test_what_cannot_be_replayed_is_left_out_with_its_reason(recorded: Path) -> None:
    assert document(recorded).left_out == {
        "a buffer contains the address of another one": 1,
        "it changes a variable of its module": 1,
        "it runs at the same time as work of another stream": 2,
    }


def test_of_one_kernel_so_many_launches_are_kept_that_others_fit_in(
    emulate: Emulate, module: Path, tmp_path: Path
) -> None:
    words = [*["exact"] * (MOST_OF_A_KERNEL + 2), "approximate"]
    folder = tmp_path / "launches"
    emulate("-m", "tests.emulation.recording.program", module, *words, options=("--record", folder))
    found = document(folder)
    assert [one.kernel for one in found.launches] == [0] * MOST_OF_A_KERNEL + [1]
    assert found.left_out == {"enough launches of its kernel are recorded": 2}


def test_code_is_that_of_the_module_and_ptx_of_the_kernel_alone(recorded: Path, module: Path) -> None:
    found = document(recorded)
    (binary,) = found.fat_binaries
    assert content(recorded, binary.sha256) == module.read_bytes()
    for kernel in found.kernels:
        code = {one.kind: content(recorded, one.sha256) for one in kernel.code}
        assert fatbin.bare(code["ptx"]).kernels == {kernel.name}
        assert fatbin.bare(code["cubin"]).kernels == set(binary.kernels)


def test_a_replay_gives_the_same(emulate: Emulate, recorded: Path, tmp_path: Path) -> None:
    done = emulate(SCRIPT, recorded, *ON_EMULATED, "--out", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("emulated sm_80, compute capability 8.0")
    assert lines[1].endswith("loads, with its 5 kernels")
    assert "exact [0], ptx: 2 launches, 768 values, 0 with other bits, bit for bit" in lines[2]
    assert "approximate [1], ptx: 1 launches, 192 values, 0 with other bits, largest difference 0" in lines[3]
    assert lines[-1] == "3 claims hold, 0 fail, 0 were not tested"
    report = json.loads((tmp_path / "gpu-proof.json").read_text())
    assert [row["verdict"] for row in report["rows"]] == ["pass"] * 3
    assert (tmp_path / "gpu-proof.txt").read_text().endswith(f"{lines[-1]}\n")


def test_machine_code_is_never_taken_for_ptx(emulate: Emulate, recorded: Path) -> None:
    done = emulate(SCRIPT, recorded, "--only", "cubin")
    assert done.returncode == 8
    assert "DCA-835: the kernel exact is launched" in done.stderr


@pytest.mark.parametrize(
    ("launch", "by", "words"),
    [
        (0, 1, "FAIL       exact [0], ptx: 2 launches, 768 values, 1 with other bits"),
        (2, 1, "pass       approximate [1], ptx: 1 launches, 192 values, 1 with other bits"),
        (2, 1 << 12, "FAIL       approximate [1], ptx: 1 launches, 192 values, 1 with other bits"),
    ],
)
def test_another_result_is_a_difference_beyond_its_bound(
    launch: int, by: int, words: str, emulate: Emulate, copied: Path
) -> None:
    def edit(changed: dict[str, Any], add: Callable[[bytes], str]) -> None:
        buffer = changed["launches"][launch]["buffers"][1]
        result = content(copied, buffer["after"])
        (bits,) = struct.unpack("<I", result[-4:])
        buffer["after"] = add(result[:-4] + struct.pack("<I", bits + by))

    done = emulate(SCRIPT, edited(copied, edit), *ON_EMULATED)
    assert done.returncode == words.startswith("FAIL"), done.stdout
    assert words in done.stdout


def test_other_code_and_a_kernel_that_is_not_there_are_differences(emulate: Emulate, copied: Path) -> None:
    def edit(changed: dict[str, Any], add: Callable[[bytes], str]) -> None:
        (ptx,) = (one for one in changed["kernels"][0]["code"] if one["kind"] == "ptx")
        ptx["sha256"] = add(content(copied, ptx["sha256"]).replace(b"0f40400000", b"0f40800000"))
        changed["fat_binaries"][0]["kernels"].append("absent")

    done = emulate(SCRIPT, edited(copied, edit), *ON_EMULATED)
    assert done.returncode == 1
    assert "cuModuleGetFunction failed" in done.stdout
    assert "FAIL       exact [0], ptx: 2 launches, 768 values" in done.stdout
    assert "first: buffer" in done.stdout
    assert "1 claims hold, 2 fail" in done.stdout


def test_shapes_alone_are_recorded_without_running_and_timed(emulate: Emulate, module: Path, tmp_path: Path) -> None:
    folder = tmp_path / "launches"
    words = ("exact=1 K dense", "large=1 K sparse")
    program = ("-m", "tests.emulation.recording.program", module, *words)
    done = emulate(*program, options=("--record", folder, "--record-shapes"))
    assert (done.returncode, done.stdout) == (0, "0.0 0.0 0.0\n"), done.stderr
    one, other = document(folder).launches
    assert [bool(buffer.before) for buffer in (*one.buffers, *other.buffers)] == [True, True, False, True]
    done = emulate(SCRIPT, folder, *ON_EMULATED)
    assert done.returncode == 0, done.stdout
    assert "time       1 K dense, exact: " in done.stdout
    assert "1 K sparse: " in done.stdout


def test_a_folder_in_use_is_refused(emulate: Emulate, tmp_path: Path) -> None:
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    done = emulate("-c", "", options=("--record", tmp_path / "used"))
    assert done.returncode == 8
    assert "DCA-840: --record: " in done.stderr
    assert emulate("-c", "", options=("--record-shapes",)).returncode == 2


def test_only_an_emulated_gpu_records(dca: RunDca, tmp_path: Path) -> None:
    done = dca("smoke", tmp_path / "a.whl", "--level", "cpu", "--record", tmp_path / "launches")
    assert done.returncode == 2
    assert "--record requires --level kernels" in done.stderr
    assert not (tmp_path / "launches").exists()


@pytest.mark.whole
def test_the_launches_of_a_wheels_cases_and_of_long_prompts_are_recorded(
    emulate: Emulate, dca: RunDca, wheel: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "launches"
    cases = ("--case", "sparse/future", "--case", "conversion/same")
    done = dca("smoke", wheel, "--level", "kernels", "--quick", "--record", folder, *cases, timeout=3000.0)
    assert done.returncode == 0, done.stderr
    found = [documents.read(Recording, file) for file in folder.glob("launches-*.json")]
    ran = [launch for one in found for launch in one.launches if launch.ran]
    assert {launch.label for launch in ran} == {"sparse/future", "conversion/same"}
    labels = {launch.label for one in found for launch in one.launches if not launch.ran}
    assert labels == {
        f"{tokens} tokens {name}"
        for tokens in (32_768, 131_072, 262_144, 524_288, 1_048_576)
        for name in ("dense", "sparse, banded", "sparse, scattered")
    }
    assert sum(file.stat().st_size for file in (folder / "files").iterdir()) < 48 << 20
    done = emulate(SCRIPT, folder, "--only", "fat-binaries", "--only", "ptx")
    assert done.returncode == 0, done.stdout
    assert done.stdout.splitlines()[-1].endswith("0 fail, 0 were not tested")


@pytest.mark.whole
def test_an_official_sparse_kernel_is_recorded_and_replayed(
    emulate: Emulate, made: Made, official_module: Path, tmp_path: Path
) -> None:
    name = "Lb0ELb1ELb0ELb0ELb0ELb1ELb0ELb0EEEvNS_23Flash_fwd_params_sparseE"
    container, kernel = next(
        (one, kernel)
        for one in images.containers(official_module)
        for code in one.codes
        for kernel in code.kernels
        if "flash_fwd_sparse_kernel" in kernel and "bfloat16_t" in kernel and kernel.endswith(name)
    )
    (tmp_path / "image").write_bytes(container.content)
    folder = tmp_path / "launches"
    program = ("-m", "tests.emulation.recording.official", tmp_path / "image", kernel)
    done = emulate(*program, options=("--record", folder))
    assert done.returncode == 0, done.stderr
    assert [float(error) < 2e-2 for error in done.stdout.split()] == [True, True]
    found = document(folder)
    assert found.kernels[0].rounding.to == "bfloat16"
    assert [one.dtype for one in found.launches[0].buffers if one.before != one.after] == ["bfloat16", "float32"]
    done = emulate(SCRIPT, folder, *ON_EMULATED)
    assert done.returncode == 0, done.stdout
    assert "2 claims hold, 0 fail, 0 were not tested" in done.stdout
