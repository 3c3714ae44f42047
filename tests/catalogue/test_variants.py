"""The names of variant wheels, and what their files say of machines."""

from __future__ import annotations

import json

import pytest
from packaging.utils import InvalidWheelFilename
from packaging.version import Version

from dca.catalogue import variants
from dca.catalogue.variants import PLAIN, Variant, of_build, overclaimed, plain_name, wheel_name

HOPPER = of_build("12.4", ["9.0"], [], "12.0")


@pytest.mark.parametrize(
    ("name", "label", "plain"),
    [
        (
            "vllm-0.10.2+dca3-cp38-abi3-linux_x86_64-cu124_sm90.whl",
            "cu124_sm90",
            "vllm-0.10.2+dca3-cp38-abi3-linux_x86_64",
        ),
        ("vllm-0.10.2+dca3-cp38-abi3-linux_x86_64.whl", "", "vllm-0.10.2+dca3-cp38-abi3-linux_x86_64"),
        ("x-1.0-1-py3-none-any.whl", "", "x-1.0-1-py3-none-any"),
        ("x-1.0-1a-py2.py3-none-any-null.whl", "null", "x-1.0-1a-py2.py3-none-any"),
    ],
)
def test_a_name_ends_with_the_label(name: str, label: str, plain: str) -> None:
    assert (wheel_name(name).label, plain_name(name)) == (label, f"{plain}.whl")
    assert plain_name(f"{plain}.whl") == f"{plain}.whl"
    assert wheel_name("vllm-0.10.2+dca3-py3-none-any-null.whl").version == Version("0.10.2+dca3")


@pytest.mark.parametrize(
    "name",
    [
        "x.whl",
        "x-1.0-py3-none-any-longer_than_sixteen.whl",
        "x-1.0-py3-none-any-UPPER.whl",
        "x-1.0-py3-none-any-a-b.whl",
        "x-1.0-py3-none-any-.whl",
        "x-1.0-py3-none-any-a/b.whl",
        "x-1.0-py3-none-any-a\n.whl",
        "x-1.0-py3-none-any-null.zip",
    ],
)
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidWheelFilename):
        wheel_name(name)


def test_a_build_is_for_its_archs_and_the_drivers_that_run_it() -> None:
    assert HOPPER.label == "cu124_sm90"
    assert HOPPER.properties == {"nvidia": {"cuda_version_lower_bound": ("12.0", "12.4"), "sm_arch": ("90_real",)}}
    two = of_build("12.8", ["9.0", "8.0"], [], "12.8")
    assert (two.label, two.properties["nvidia"]["cuda_version_lower_bound"]) == ("cu128_sm80.sm90", ("12.8",))
    many = of_build("12.8", ["8.0", "9.0", "12.0"], ["12.0"], "12.8")
    assert len(many.label) <= variants.LONGEST
    assert many.label.startswith("cu128_")
    assert many.properties["nvidia"]["sm_arch"] == ("120_real", "120_virtual", "80_real", "90_real")
    assert many.label != of_build("12.8", ["8.0", "9.0", "12.0"], [], "12.8").label


def test_what_is_written_is_read() -> None:
    for variant in (HOPPER, PLAIN, of_build("12.8", ["8.0", "9.0", "12.0"], ["12.0"], "12.8")):
        assert variants.read(variants.written([variant]), variant.label) == variant
    every = json.loads(variants.written([HOPPER, PLAIN]))
    assert every["$schema"] == variants.SCHEMA
    assert every["default-priorities"] == {"namespace": ["nvidia"]}
    assert set(every["variants"]) == {"cu124_sm90", "null"}
    assert variants.written([HOPPER, PLAIN]) == variants.written([PLAIN, HOPPER, HOPPER])
    with pytest.raises(ValueError, match="cu124_sm90"):
        variants.written([HOPPER, Variant(label="cu124_sm90", properties={"nvidia": {"sm_arch": ("80_real",)}})])


def test_what_is_no_description_is_refused() -> None:
    right = json.loads(variants.written([HOPPER]))
    wrong: list[bytes] = [b"", b"\xff", b"[]", b"{}", b"1", b"null", b"[" * 100_000, variants.written([PLAIN])]
    wrong.append(variants.written([HOPPER, PLAIN]))
    changes: tuple[dict[str, object], ...] = (
        {"variants": {"cu124_sm90": {"nvidia": {"sm_arch": []}}}},
        {"variants": {"cu124_sm90": {"nvidia": {"sm_arch": ["../x"]}}}},
        {"variants": {"cu124_sm90": {"NVIDIA": {"sm_arch": ["90_real"]}}}},
        {"variants": {"cu124_sm90": {}}},
        {"variants": {"cu124_sm90": {"nvidia": "sm_arch"}}},
        {"variants": []},
        {"providers": {"nvidia": {"requires": "x"}}},
        {"default-priorities": 3},
    )
    wrong += [json.dumps(right | change).encode() for change in changes]
    for content in wrong:
        with pytest.raises(ValueError, match=variants.FILE) as error:
            variants.read(content, "cu124_sm90")
        assert str(error.value).replace("\n", "").isprintable(), content[:80]


def test_code_that_later_gpus_do_not_run_is_noticed() -> None:
    known = ("8.0", "8.6", "8.7", "8.9", "9.0", "10.0", "10.3")
    assert overclaimed(["8.0", "9.0"], ["8.0", "9.0"], [], known) == []
    assert overclaimed(["8.7"], ["8.7"], [], known) == ["8.9"]
    assert overclaimed(["10.0"], ["10.0a"], [], known) == ["10.3"]
    assert overclaimed(["10.0"], ["10.0a"], ["9.0"], known) == []
