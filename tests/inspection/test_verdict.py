"""Whether something runs on a GPU, driver and torch: yes, no, or cannot tell, each with its reason."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dca.catalogue import toolkits, torch_releases
from dca.foundation import data
from dca.foundation.errors import DcaError
from dca.inspection import kinds, verdict
from dca.inspection.values import Answer, InspectedModule, Inspection, Unread
from dca.inspection.verdict import Target
from dca.serve import gpus
from tests.support.fatbins import PTX, SASS, container, cubin, entry, text
from tests.support.hostile_wheels import Part, library
from tests.support.prepared import run_dca


def module(path: str = "pkg/_C.so", **facts: Any) -> InspectedModule:
    """A module; exact archs count as cubins and PTX texts, one of each."""
    counted = {
        "sass": {arch.rstrip("af"): 1 for arch in facts.get("exact_sass", ())},
        "ptx": {arch.rstrip("af"): 1 for arch in facts.get("exact_ptx", ())},
    }
    none: dict[str, Any] = {
        name: type_()
        for name, type_ in (("sections", dict), ("exact", tuple), ("sass_bytes", dict), ("ptx_bytes", dict))
    }
    none |= {"code_bytes": {}, "families": (), "tools": (), "reached": {}, "needed": (), "missing_symbols": None}
    none |= {"machine": "x86_64", "glibc": "", "glibcxx": "", "cxx11_abi": None, "torch_symbols": 0}
    return InspectedModule(path=path, bytes=1, stored=1, sha256="", **(none | counted | facts))


def inspected(*modules: InspectedModule, **facts: Any) -> Inspection:
    none: dict[str, Any] = {"file": "pkg-1.0-py3-none-linux_x86_64.whl", "tags": ("py3-none-linux_x86_64",)}
    none |= dict.fromkeys(("sha256", "name", "version", "requires_python", "torch", "transformers", "glibc"), "")
    none |= {"checked_with_torch": "", "asked": (), "cuda_libraries": (), "recorded": None, "problems": ()}
    none |= {"dca_backend": False, "sparse_functions": False, "index_ops": None, "sparse_ops": None}
    return Inspection(bytes=1, unpacked=1, files=1, modules=modules, **(none | facts))


def ask(thing: Inspection, gpu: str = "", driver: str = "", torch: str = "") -> Answer:
    known = toolkits.load_versions().drivers
    target = Target(
        gpu=gpu,
        arch=gpus.arch_of("--gpu", gpu) if gpu else "",
        processor=gpus.processor_of(gpu) if gpu else "",
        driver=known.driver(driver) if driver else None,
        torch=torch_releases.parse(torch) if torch else None,
    )
    return verdict.answer(thing, target)


NATIVE = module(exact_sass=("8.0", "9.0"), tools=("12.8",))
NEW_PTX = module(exact_sass=("8.0",), exact_ptx=("8.0",), ptx_versions={"8.0": "8.7"}, tools=("12.8",))
FOR_HOPPER = module("pkg/_fa3.so", exact_sass=("9.0a",), tools=("12.8",))
WINDOWS = Unread(
    what=kinds.WINDOWS.what, why="another system", files=3, bytes=9, some=("pkg/_C.pyd",), cuda=True, host=True
)
ARCHIVE = Unread(what="zip archives", why="not unpacked", files=3, bytes=9, some=("pkg/a.npz",), cuda=False, host=False)


@pytest.mark.parametrize(
    ("thing", "gpu", "driver", "says", "reason"),
    [
        (inspected(NATIVE), "H100", "550", "yes", "_C.so has machine code for it; it needs driver 525 (CUDA 12.0)"),
        (inspected(NATIVE), "H100", "", "yes", "it needs driver 525"),
        (inspected(NATIVE), "H100", "520", "no", "has machine code for it, which needs driver 525"),
        (inspected(NATIVE), "L40S", "550", "yes", "has machine code for it"),
        (
            inspected(NATIVE),
            "T4",
            "570",
            "no",
            "has no code for 7.5: its cubins are for 8.0, 9.0, its PTX is for none.",
        ),
        # The official module of vLLM 0.10.2: driver 550 reads PTX up to 8.4.
        (inspected(NEW_PTX), "H100", "550.54.15", "no", "compiles its PTX of CUDA 12.8, which needs driver 570"),
        (inspected(NEW_PTX), "H100", "570.86", "yes", "the driver compiles its PTX; it needs driver 570"),
        (inspected(NEW_PTX), "A100", "550", "yes", "has machine code"),
        # Code for 9.0a is of no use to any other GPU: a package that runs elsewhere does not load it there.
        (inspected(NATIVE, FOR_HOPPER), "A100", "550", "yes", "for other GPUs alone, and not counted: pkg/_fa3.so."),
        (inspected(FOR_HOPPER), "A100", "550", "no", "_fa3.so has no code for 8.0: its cubins are for 9.0a"),
        (inspected(NATIVE, module("pkg/b.so", exact_sass=("7.0",))), "H100", "", "no", "pkg/b.so has no code for 9.0"),
        (inspected(), "H100", "550", "yes", "it has no GPU code of its own."),
        (inspected(unread=(ARCHIVE,)), "H100", "550", "yes", "it has no GPU code of its own."),
        # Programs for Windows lie beside Python files that run everywhere.
        (inspected(unread=(WINDOWS,), tags=("py3-none-any",)), "H100", "", "yes", "no GPU code of its own"),
        (inspected(unread=(WINDOWS,), tags=("cp312-cp312-win_amd64",)), "H100", "", "unknown", "are not looked into"),
        (
            inspected(module("a.ptx", kind="PTX", exact_ptx=("9.0a",))),
            "A100",
            "",
            "unknown",
            "for other GPUs alone (a.ptx)",
        ),
        (
            inspected(NATIVE, module("b.so", exact_sass=("7.0",))),
            "A100",
            "",
            "no",
            "1 other modules with GPU code run.",
        ),
        # Of libraries for several versions of CUDA a package loads the one that fits.
        (
            inspected(
                module("pkg/libx_cuda130.so", exact_sass=("9.0",), tools=("13.0",)),
                module("pkg/libx_cuda124.so", exact_sass=("9.0",), tools=("12.4",)),
            ),
            "H100",
            "550",
            "yes",
            "pkg/libx_cuda124.so has machine code for it",
        ),
        (inspected(module(unread={"of the unknown kind 9": 2})), "H100", "", "unknown", "2 of the unknown kind 9"),
        (inspected(module(relocatable={"9.0": 1})), "H100", "", "no", "only relocatable code for 9.0"),
        (inspected(module(exact_sass=("9.0",))), "H100", "550", "unknown", "which driver that needs cannot be read"),
        (
            inspected(module(exact_sass=("9.0",), needed=("libcudart.so.13",))),
            "H100",
            "570",
            "no",
            "which needs driver 580 (CUDA 13.0)",
        ),
        (
            inspected(module(exact_ptx=("9.0",), ptx_versions={"9.0": "99.0"})),
            "H100",
            "570",
            "unknown",
            "cannot be read",
        ),
        (
            inspected(
                *(module(f"pkg/{n}.cubin", kind="cubin", exact_sass=(f"{n}.0",), tools=("12.8",)) for n in (8, 9))
            ),
            "H100",
            "550",
            "yes",
            "the GPU code in 2 files has machine code for it",
        ),
        (inspected(tags=("py3-none-macosx_11_0_arm64",)), "H100", "", "no", "a wheel for macosx_11_0_arm64"),
    ],
)
def test_the_gpu_and_its_driver(thing: Inspection, gpu: str, driver: str, says: str, reason: str) -> None:
    answer = ask(thing, gpu, driver)
    assert answer.says == says, answer
    assert any(reason in text for text in answer.reasons), answer.reasons


CPP = module(torch_symbols=7, cxx11_abi=True, needed=("libc10.so", "libcudart.so.12"))
OLD = module(torch_symbols=7, cxx11_abi=False)
STABLE = module(torch_symbols=7, stable_abi=True)


@pytest.mark.parametrize(
    ("thing", "torch", "says", "reason"),
    [
        (inspected(CPP, torch="torch==2.8.0"), "2.8", "yes", ""),
        (inspected(CPP, torch="torch==2.8.0"), "2.8.0", "yes", ""),
        (inspected(CPP, torch="torch==2.8.0"), "2.8.0+cu129", "yes", ""),
        (inspected(CPP, torch="torch==2.8.0"), "2.9", "no", "its METADATA requires torch==2.8.0."),
        (
            inspected(CPP, torch="torch>=2.4"),
            "2.11",
            "no",
            "needs libcudart.so.12, but torch 2.11 (CUDA 13.0) brings CUDA 13.",
        ),
        (
            inspected(CPP, torch="torch>=2.4"),
            "2.8.0+rocm6.4",
            "unknown",
            "the CUDA version of torch 2.8.0+rocm6.4 is not known",
        ),
        (inspected(CPP), "2.8", "unknown", "nothing says for which release it was compiled"),
        (
            inspected(OLD, torch="torch==2.8.0"),
            "2.8.0",
            "no",
            "uses the old C++ ABI, but torch 2.8.0 (CUDA 12.8) uses the other.",
        ),
        (
            inspected(OLD, torch="torch==2.6.0"),
            "2.6.0+cu126",
            "unknown",
            "that of torch 2.6.0+cu126 (CUDA 12.6) is not known",
        ),
        (inspected(OLD, torch="torch==2.6.0"), "2.6", "yes", ""),
        (inspected(STABLE, torch="torch>=2.10"), "2.11", "yes", "it uses torch's stable ABI."),
        (inspected(STABLE, torch="torch>=2.10"), "2.8", "no", "its METADATA requires torch>=2.10."),
        (inspected(STABLE), "2.11", "unknown", "nothing says from which release on"),
        (inspected(), "2.8", "yes", "no module of it uses torch's libraries."),
        (inspected(module("pkg/libcudart.so.12"), CPP, torch="torch==2.11.0"), "2.11", "yes", ""),
    ],
)
def test_torch(thing: Inspection, torch: str, says: str, reason: str) -> None:
    answer = ask(thing, torch=torch)
    assert answer.says == says, answer
    assert any(reason in text for text in answer.reasons) or not reason, answer.reasons


X86, ARM = "cp38-abi3-manylinux_2_28_x86_64", "cp38-abi3-manylinux_2_28_aarch64"
BLACKWELL: dict[str, Any] = {"exact_sass": ("10.0", "12.1"), "tools": ("13.0",)}
INTEL, ON_ARM = module(**BLACKWELL), module("pkg/_A.so", machine="aarch64", **BLACKWELL)
LIBRARY: dict[str, Any] = {"form": "file", "file": "_C.so", "tags": ()}


@pytest.mark.parametrize(
    ("thing", "gpu", "says", "reason"),
    [
        (
            inspected(INTEL, tags=(X86,)),
            "GB200",
            "no",
            "it is a wheel for manylinux_2_28_x86_64, which does not install",
        ),
        (inspected(INTEL, tags=(X86,)), "GB10", "no", "all machines with GB10 have the processor aarch64."),
        (inspected(NATIVE, tags=(X86,)), "gh200", "no", "have the processor aarch64."),
        (inspected(INTEL, tags=("cp312-cp312-win_amd64",)), "GB200", "no", "it is a wheel for win_amd64"),
        (inspected(ON_ARM, tags=(ARM,)), "GB200", "yes", "has machine code for it"),
        (inspected(INTEL, ON_ARM, tags=(X86, ARM)), "GB200", "yes", "has machine code for it"),
        (inspected(tags=("py3-none-any",)), "GB10", "yes", "it has no GPU code of its own."),
        # Cards are put into machines of either kind, and a compute capability names no machine.
        (inspected(INTEL, tags=(X86,)), "B200", "yes", "has machine code for it"),
        (inspected(ON_ARM, tags=(ARM,)), "B200", "yes", "has machine code for it"),
        (inspected(NATIVE, tags=(X86,)), "9.0", "yes", "has machine code for it"),
        (inspected(INTEL, **LIBRARY), "GB200", "no", "it is compiled for x86_64, which does not load there"),
        (inspected(ON_ARM, **LIBRARY), "GB200", "yes", "has machine code for it"),
        (inspected(module("a.cubin", kind="cubin", machine="", **BLACKWELL), **LIBRARY), "GB200", "yes", "has machine"),
    ],
)
def test_the_processor_of_the_machines_that_have_the_gpu(thing: Inspection, gpu: str, says: str, reason: str) -> None:
    answer = ask(thing, gpu)
    assert answer.says == says, answer
    assert any(reason in text for text in answer.reasons), answer.reasons


def test_of_a_folder_of_kernels_the_variant_for_the_gpus_machines_counts() -> None:
    names = {name: f"build/torch-stable-abi211-cu130-{name}-linux/k/_k.abi3.so" for name in ("x86_64", "aarch64")}
    both = [module(path, machine=name, torch_symbols=5, stable_abi=True, **BLACKWELL) for name, path in names.items()]
    folder = {"form": "folder", "file": "kernel", "tags": ()}
    answer = ask(inspected(*both, **folder), "GB200", torch="2.11")
    assert (answer.says, answer.reasons[0]) == (
        "yes",
        f"its variant for this torch is {names['aarch64'].split('/')[1]}.",
    )
    answer = ask(inspected(both[0], **folder), "GB200", torch="2.11")
    assert (answer.says, answer.reasons[0].split(",")[0]) == ("no", "it is compiled for x86_64")


VARIANTS = [
    module(f"build/torch{torch}-cxx11-cu{cuda}-x86_64-linux/k/_k.abi3.so", torch_symbols=5, cxx11_abi=True, **code)
    for torch, cuda, code in (
        ("27", "128", {"exact_sass": ("8.0",), "tools": ("12.8",)}),
        ("28", "126", {"exact_sass": ("8.0",), "tools": ("12.6",)}),
        ("28", "128", {"exact_sass": ("9.0",), "tools": ("12.8",)}),
    )
]


@pytest.mark.parametrize(
    ("gpu", "torch", "says", "reason"),
    [
        ("H100", "2.8", "yes", "its variant for this torch is torch28-cxx11-cu128-x86_64-linux."),
        ("A100", "2.8", "no", "torch28-cxx11-cu128-x86_64-linux/k/_k.abi3.so has no code for 8.0"),
        ("A100", "2.8.0+cu126", "yes", "torch28-cxx11-cu126"),
        ("H100", "2.9", "no", "it has no variant for torch 2.9 (CUDA 12.8); it has torch27-cxx11-cu128-x86_64-linux, "),
    ],
)
def test_of_a_folder_of_kernels_the_variant_for_the_torch_counts(gpu: str, torch: str, says: str, reason: str) -> None:
    answer = ask(inspected(*VARIANTS, form="folder", file="kernel", tags=()), gpu, torch=torch)
    assert answer.says == says, answer
    assert any(reason in text for text in answer.reasons), answer.reasons


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        ("H100", "9.0"),
        ("h100", "9.0"),
        ("A100", "8.0"),
        ("V100", "7.0"),
        ("9.0", "9.0"),
        ("sm_120", "12.0"),
        ("103", "10.3"),
    ],
)
def test_a_gpu_is_named_by_its_kind_or_its_compute_capability(name: str, arch: str) -> None:
    assert gpus.arch_of("--gpu", name) == arch


@pytest.mark.parametrize(
    ("name", "processor"),
    [("GH200", "aarch64"), ("NVIDIA GB300", "aarch64"), ("H200", ""), ("B200", ""), ("10.0", ""), ("Radeon", "")],
)
def test_a_gpu_that_is_one_module_with_its_processor_has_its_processor(name: str, processor: str) -> None:
    assert gpus.processor_of(name) == processor


def test_a_processor_that_nobody_builds_for_is_no_gpus(tmp_path: Path) -> None:
    file = tmp_path / "gpus.toml"
    file.write_text(data.gpus_file().read_text().replace('processor = "aarch64"', 'processor = "arm64"'))
    with pytest.raises(DcaError, match=r"(?s)gpus\.toml, line \d+: .*processor.*the processors are x86_64, aarch64"):
        gpus.load(file)


@pytest.mark.parametrize("name", ["", "H", "Radeon", "RTX", "4x80"])
def test_an_unknown_gpu_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(DcaError, match="is not known") as refused:
        gpus.arch_of("--gpu", name)
    assert "H100-80" in refused.value.why


# --- the command ---


def kernels(folder: Path) -> Path:
    """A folder as the kernels library has it, with a module for CUDA 12.4's PTX and one of machine code."""
    code = container(entry(SASS, 80), entry(PTX, 80, text(80).replace(b"8.4", b"8.7")))
    path = folder / "build/torch28-cxx11-cu128-x86_64-linux/k/_k.abi3.so"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"".join(library({".nv_fatbin": Part(code)})))
    return folder


@pytest.mark.parametrize(
    ("words", "code", "first"),
    [
        (
            ["--gpu", "A100", "--driver", "550", "--torch", "2.8"],
            0,
            "Yes: kernel on A100 (8.0) with driver 550 (CUDA 12.4)",
        ),
        (["--gpu", "H100", "--driver", "550"], 1, "No: kernel on H100 (9.0) with driver 550 (CUDA 12.4)"),
        (["--torch", "2.9"], 1, "No: kernel with torch 2.9 (CUDA 12.8)"),
    ],
)
def test_the_answer_comes_first_and_is_the_exit_code(tmp_path: Path, words: list[str], code: int, first: str) -> None:
    folder = kernels(tmp_path / "kernel")
    done = run_dca("inspect", str(folder), *words, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (code, "")
    assert done.stdout.startswith(first)


def test_one_library_or_cubin_is_inspected_by_itself(tmp_path: Path) -> None:
    (tmp_path / "a.cubin").write_bytes(cubin(90))
    done = run_dca("inspect", str(tmp_path / "a.cubin"), "--gpu", "9.0", "--driver", "525", "--json", cwd=tmp_path)
    document = Inspection.model_validate(json.loads(done.stdout))
    assert (done.returncode, document.form, document.answer and document.answer.says) == (0, "file", "yes")


def test_an_answer_that_cannot_be_given_has_an_exit_code_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "a.so").write_bytes(b"".join(library({".nv_fatbin": Part(container(entry(77, 80)))})))
    done = run_dca("inspect", str(tmp_path / "a.so"), "--gpu", "H100", cwd=tmp_path)
    assert (done.returncode, done.stdout.splitlines()[0]) == (10, "Cannot tell: a.so on H100 (9.0)")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--driver", "550"], "--driver needs --gpu"),
        (["--gpu", "H100", "--driver", "new"], "--driver new is not a driver version"),
        (["--torch", "new"], "--torch new is not a version"),
        (["--gpu", "Radeon"], "the GPU `Radeon` is not known"),
    ],
)
def test_a_question_that_is_none_is_refused(tmp_path: Path, words: list[str], message: str) -> None:
    done = run_dca("inspect", str(tmp_path), *words, cwd=tmp_path)
    assert (done.returncode, done.stderr.startswith("DCA-201: ")) == (2, True)
    assert message in done.stderr


def test_a_file_without_compiled_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    done = run_dca("inspect", str(tmp_path / "a.txt"), cwd=tmp_path)
    assert done.returncode == 7
    assert "a.txt is neither a wheel nor compiled code." in done.stderr
