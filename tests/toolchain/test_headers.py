"""Fixes of CUDA's headers: on text, on folders, and on a real toolkit with the headers of other releases of glibc."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from dca.catalogue import header_fixes, toolkits
from dca.catalogue.toolkits import Apt
from dca.foundation import environment, runner, store
from dca.foundation.errors import DcaError
from dca.toolchain import apt, headers
from tests.support import MATH_FUNCTIONS

FIXES = toolkits.load_versions().fixes
SINPI, RSQRT = (next(fix for fix in FIXES if fix.name == name) for name in ("sinpi", "rsqrt"))


def preprocessed(text: str, glibc: str, tmp_path: Path) -> list[str]:
    """What a compiler reads of a header with a release of glibc, without blanks."""
    source = tmp_path / "header.cpp"
    source.write_text(text)
    minor = glibc.partition(".")[2]
    done = subprocess.run(
        ["g++", "-E", "-P", "-U__GLIBC__", "-D__GLIBC__=2", "-U__GLIBC_MINOR__", f"-D__GLIBC_MINOR__={minor}", source],
        text=True,
        capture_output=True,
        check=True,
    )
    return ["".join(line.split()) for line in done.stdout.splitlines() if line.strip()]


def both(text: str) -> str:
    for fix in (SINPI, RSQRT):
        text = header_fixes.fixed(text, fix) or text
    return text


@pytest.mark.parametrize(("glibc", "declared"), [("2.36", 0), ("2.40", 0), ("2.41", 4), ("2.42", 6), ("2.44", 6)])
def test_declarations_get_noexcept_from_the_glibc_that_has_it_on(glibc: str, declared: int, tmp_path: Path) -> None:
    lines = preprocessed(both(MATH_FUNCTIONS), glibc, tmp_path)
    assert sum("noexcept(true);" in line for line in lines) == declared
    # Without a word of the fixes everything is as it was: an older glibc compiles the same text.
    plain = [line.replace("noexcept(true)", "") for line in lines]
    assert plain == preprocessed(MATH_FUNCTIONS, glibc, tmp_path)


def test_a_fixed_header_needs_no_fix() -> None:
    assert header_fixes.fixed(both(MATH_FUNCTIONS), SINPI) is None
    assert header_fixes.fixed(both(MATH_FUNCTIONS), RSQRT) is None


@pytest.mark.parametrize("specifier", [" noexcept (true)", " __NV_SPECIFIER", " throw()", "  noexcept"])
def test_a_header_that_somebody_else_fixed_stays_as_it_is(specifier: str) -> None:
    assert (
        header_fixes.fixed(
            MATH_FUNCTIONS.replace("(double x);", f"(double x){specifier};").replace(
                "(float x);", f"(float x){specifier};"
            ),
            SINPI,
        )
        is None
    )


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("extern double                 sinpi(double x);\n", "", "`double sinpi(double x);` occurs 0 times"),
        ("double                 sinpi(double x)", "double sinpi(double y)", "occurs 0 times"),
        ("extern float                  cospif(float x);\n", "float cospif(float x);\n" * 2, "occurs 2 times"),
        ("sinpi(double x);", "sinpi(double x) noexcept;", "1 of 4 are already fixed"),
        ("#define __MATH_FUNCTIONS_H__\n", "", "occurs 0 times, not once"),
        ("#define __MATH_FUNCTIONS_H__\n", "#define __MATH_FUNCTIONS_H__\n" * 2, "occurs 2 times"),
    ],
)
def test_another_text_is_refused_and_nothing_is_written(old: str, new: str, why: str, tmp_path: Path) -> None:
    text = MATH_FUNCTIONS.replace(old, new, 1)
    assert text != MATH_FUNCTIONS
    header = write(tmp_path, text)
    with pytest.raises(DcaError, match=r"could not be fixed for glibc 2\.41") as refused:
        headers.apply(tmp_path, (SINPI,), "the toolkit")
    assert refused.value.code == "DCA-408"
    assert why in (refused.value.why or "")
    assert header.read_text() == text
    assert headers.record(tmp_path) == ()
    assert header_fixes.state(tmp_path, SINPI) == "impossible"


def write(folder: Path, text: str, below: str = "include") -> Path:
    header = folder / below / "crt/math_functions.h"
    header.parent.mkdir(parents=True, exist_ok=True)
    header.write_text(text)
    return header


def test_a_toolkit_without_the_header_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DcaError, match=r"could not be fixed"):
        headers.apply(tmp_path, (SINPI,), "the toolkit")


def test_a_toolkit_is_fixed_in_its_folder_and_records_it(tmp_path: Path) -> None:
    header = write(tmp_path, MATH_FUNCTIONS + "// caf\xe9\n")
    raw = MATH_FUNCTIONS.encode() + b"// caf\xe9 \xff\n"
    header.write_bytes(raw)
    assert header_fixes.state(tmp_path, SINPI) == "needed"
    record = headers.apply(tmp_path, FIXES, "the toolkit")
    assert [(fix.name, fix.status) for fix in record.fixes] == [("sinpi", "applied"), ("rsqrt", "applied")]
    assert headers.record(tmp_path) == record.fixes
    assert header.read_bytes().endswith(b"// caf\xe9 \xff\n")
    assert header_fixes.state(tmp_path, SINPI) == "not needed"
    again = headers.apply(tmp_path, FIXES, "the toolkit")
    assert {fix.status for fix in again.fixes} == {"not needed"}


def test_the_header_of_a_target_is_found_and_a_link_to_it_is_not_another_one(tmp_path: Path) -> None:
    header = write(tmp_path, MATH_FUNCTIONS, "targets/x86_64-linux/include")
    (tmp_path / "include").symlink_to("targets/x86_64-linux/include")
    headers.apply(tmp_path, FIXES, "the toolkit")
    assert header.read_text().count("DCA_SINPI_NOEXCEPT;") == 4
    assert (tmp_path / "include/crt/math_functions.h").resolve() == header


@pytest.mark.parametrize(
    ("glibc", "names"),
    [
        ("2.36", []),
        ("2.40", []),
        ("2.41", ["sinpi"]),
        ("2.42", ["sinpi", "rsqrt"]),
        ("", []),
        ("2.100", ["sinpi", "rsqrt"]),
    ],
)
def test_which_glibc_wants_which_fix(glibc: str, names: list[str]) -> None:
    assert [fix.name for fix in FIXES if fix.wanted_by(glibc)] == names


def test_every_toolkit_that_is_downloaded_has_the_fixes_of_its_line() -> None:
    versions = toolkits.load_versions()
    for source in toolkits.load_sources():
        assert source.fixes == versions.fixes_of(source.line)
        assert source.fixes
        assert all(fix.reason and not fix.reason.endswith(".") for fix in source.fixes)


def test_a_line_cannot_name_a_fix_that_is_not_there() -> None:
    versions = toolkits.load_versions().model_dump(by_alias=True)
    with pytest.raises(ValueError, match="names the fix `sinpi`"):
        toolkits.CudaVersions.model_validate(versions | {"fixes": ()})


def test_the_identity_of_a_fix_is_that_of_what_it_writes() -> None:
    assert SINPI.model_copy(update={"reason": "another"}).sha256 == SINPI.sha256
    for change in ({"prelude": "x"}, {"declarations": ("double sinpi(double x)",)}, {"file": "x.h"}):
        assert SINPI.model_copy(update=change).sha256 != SINPI.sha256


# --- a toolkit of the machine --------------------------------------------------------------------------------


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A toolkit that is not ours, with `include` as a link to its target's, as NVIDIA installs it."""
    folder = tmp_path / "cuda"
    write(folder, MATH_FUNCTIONS, "targets/x86_64-linux/include")
    (folder / "include").symlink_to("targets/x86_64-linux/include")
    (folder / "include/cuda_runtime.h").write_text("// runtime\n")
    (folder / "include/crt/host_config.h").write_text("// host\n")
    for name in ("bin/nvcc", "bin/ptxas", "nvvm/bin/cicc", "lib64/libcudart.so"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
        (folder / name).chmod(0o755)
    return folder


def test_a_toolkit_of_the_machine_is_not_changed_but_stood_in_for(own: Path, tmp_path: Path) -> None:
    before = {name: path.read_bytes() for name, path in store.walk(own) if path.is_file()}
    cache = store.Store(tmp_path / "cache")
    over = headers.overlay(own, "12.4.131", (SINPI, RSQRT), cache)
    assert {name: path.read_bytes() for name, path in store.walk(own) if path.is_file()} == before
    for name in ("include", "targets/x86_64-linux/include"):
        header = over / name / "crt/math_functions.h"
        assert header.read_text() == both(MATH_FUNCTIONS)
        assert (over / name / "crt/host_config.h").resolve() == (own / "include/crt/host_config.h").resolve()
        # Headers are found by the folder of the one that includes them.
        assert (over / name / "cuda_runtime.h").is_symlink()
    assert not (over / "bin/nvcc").is_symlink()
    assert os.access(over / "bin/nvcc", os.X_OK)
    assert (over / "nvvm").resolve() == own / "nvvm"
    assert [fix.status for fix in headers.record(over)] == ["applied", "applied"]


def test_the_stand_in_is_made_anew_only_when_the_toolkit_changed(own: Path, tmp_path: Path) -> None:
    cache = store.Store(tmp_path / "cache")
    first = headers.overlay(own, "12.4.131", (SINPI,), cache)
    modified = first.stat().st_mtime_ns
    assert headers.overlay(own, "12.4.131", (SINPI,), cache) == first
    assert first.stat().st_mtime_ns == modified
    assert headers.overlay(own, "12.4.131", (SINPI, RSQRT), cache) != first
    (own / "bin/nvcc").write_text("another nvcc")
    assert headers.overlay(own, "12.4.131", (SINPI,), cache) != first


def test_a_toolkit_of_the_machine_with_other_headers_is_refused_and_leaves_nothing(own: Path, tmp_path: Path) -> None:
    (own / "include/crt/math_functions.h").write_text("nothing\n")
    cache = store.Store(tmp_path / "cache")
    with pytest.raises(DcaError) as refused:
        headers.overlay(own, "12.4.131", (SINPI,), cache)
    assert refused.value.code == "DCA-408"
    assert list((cache.root / "toolkit").iterdir()) == []


# --- real compilers ------------------------------------------------------------------------------------------

KERNEL = """\
#include <cmath>
__global__ void scale(float* a, double* b) {
    a[0] = sqrtf(a[1]) * rsqrtf(a[2]) * sinpif(a[3]) * cospif(a[4]);
    b[0] = rsqrt(b[1]) * sinpi(b[2]) * cospi(b[3]);
}
"""


def as_published(toolkit: Path, folder: Path) -> Path:
    """A toolkit of links with the header that NVIDIA published: what the fixes wrote taken out again."""
    headers._link(toolkit, folder, [Path("bin"), Path("include/crt")])
    (folder / "bin/nvcc").unlink()
    shutil.copy2(toolkit / "bin/nvcc", folder / "bin/nvcc")
    (folder / headers.RECORD).unlink(missing_ok=True)
    header = folder / "include/crt/math_functions.h"
    text = header.read_bytes().decode("latin-1")
    for fix in FIXES:
        text = text.replace(fix.prelude.lstrip("\n"), "").replace(f" {fix.specifier};", ";")
    header.unlink()
    header.write_bytes(text.encode("latin-1"))
    return folder


def compiles(toolkit: Path, folder: Path, *flags: str | Path) -> subprocess.CompletedProcess[str]:
    (folder / "kernel.cu").write_text(KERNEL)
    words = [
        toolkit / "bin/nvcc",
        "-std=c++17",
        "-arch=sm_80",
        "-c",
        *flags,
        "-o",
        folder / "kernel.o",
        folder / "kernel.cu",
    ]
    return subprocess.run(words, text=True, capture_output=True, check=False, cwd=folder)


# What glibc 2.42 declares, said of this machine's: two lines of bits/mathcalls.h and the release's number.
NEWER = """\
#include <features.h>
#undef __GLIBC_MINOR__
#define __GLIBC_MINOR__ 42
"""
DECLARED = "".join(
    f'extern "C" {kind} {name}({kind} x) noexcept(true);\n'
    for kind, names in {"double": ("sinpi", "cospi", "rsqrt"), "float": ("sinpif", "cospif", "rsqrtf")}.items()
    for name in names
)


@pytest.mark.long
def test_a_real_nvcc_compiles_what_a_newer_glibc_declares(toolkit: Path, planned: object, tmp_path: Path) -> None:
    """With a stand-in for glibc; `#include_next` brings the machine's own."""
    before, after = tmp_path / "include/bits/stand-in.h", tmp_path / "include/math.h"
    before.parent.mkdir(parents=True)
    before.write_text(NEWER)
    after.write_text(f"#include_next <math.h>\n#ifndef DECLARED\n#define DECLARED\n{DECLARED}#endif\n")
    compiler = getattr(planned, "host_compiler")  # noqa: B009 - any plan's
    # g++ takes a header of the system more leniently; nvcc does not. The release must be another one before CUDA's.
    flags = ["-ccbin", compiler, "-isystem", tmp_path / "include", "-Xcompiler", f"-include,{before}"]
    refused = compiles(as_published(toolkit, tmp_path / "published"), tmp_path, *flags)
    assert refused.returncode != 0
    assert "exception specification is incompatible" in refused.stderr + refused.stdout
    done = compiles(toolkit, tmp_path, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    # And a toolkit that is not ours, stood in for.
    over = headers.overlay(tmp_path / "published", "12.4.131", FIXES, store.Store(tmp_path / "cache"))
    done = compiles(over, tmp_path, *flags)
    assert done.returncode == 0, done.stdout + done.stderr


def glibc_headers(suite: str, folder: Path) -> Path:
    """A folder that stands in for / of a release of Debian, with its libc6-dev and this machine's C++ headers."""
    release = Apt(distribution="debian", suite=suite, components=("main",), architecture="amd64", packages=())
    if why := apt.probe(release):
        pytest.skip(f"the headers of Debian {suite} cannot be had: {why}")
    mirror = apt.mirror("debian")
    assert mirror is not None
    config = apt._configure(release, mirror, folder / "apt")
    env = environment.of("network", {"APT_CONFIG": str(config)})
    for command in (["update"], ["download", "libc6-dev"]):
        # A mirror may stand still; nothing of these headers is built into anything.
        words = ["apt-get", "-o", "Acquire::Check-Valid-Until=false", *command]
        done = runner.run(words, cwd=folder, env=env, timeout=300.0)
        if not done.ok:
            pytest.skip(f"the headers of Debian {suite} cannot be had: {done.text[-200:]}")
    (package,) = folder.glob("libc6-dev_*.deb")
    root = folder / "root"
    assert runner.run(["dpkg-deb", "-x", package, root]).ok
    # Of the kernel's and C++'s headers the machine's own do.
    own, target = Path("/usr/include"), root / "usr/include"
    multi = f"{os.uname().machine}-linux-gnu"
    for name in ("c++", "linux", "asm-generic", f"{multi}/c++", f"{multi}/asm"):
        (target / name).symlink_to(own / name)
    return root


@pytest.mark.long
@pytest.mark.parametrize(("suite", "first"), [("trixie", 41), ("sid", 42)])
def test_a_real_nvcc_compiles_against_the_headers_of_a_newer_debian(
    suite: str, first: int, toolkit: Path, planned: object, tmp_path: Path
) -> None:
    root = glibc_headers(suite, tmp_path)
    features = (root / "usr/include/features.h").read_text()
    minor = int(features.partition("#define\t__GLIBC_MINOR__\t")[2].split()[0])
    assert minor >= first
    compiler = getattr(planned, "host_compiler")  # noqa: B009 - any plan's
    flags = ["-ccbin", compiler, "-Xcompiler", f"--sysroot={root}"]
    refused = compiles(as_published(toolkit, tmp_path / "published"), tmp_path, *flags)
    assert "exception specification is incompatible" in refused.stderr + refused.stdout
    done = compiles(toolkit, tmp_path, *flags)
    assert done.returncode == 0, done.stdout + done.stderr
