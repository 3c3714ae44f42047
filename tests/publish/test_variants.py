"""Variant wheels: uv chooses by GPU and driver, pip takes none of them, and they are checked like every other wheel."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dca import inspection, publish
from dca.catalogue import variants
from dca.catalogue.variants import PLAIN, Variant, of_build
from dca.cli.index import render as rendered
from dca.cli.inspect import render
from dca.foundation import store
from dca.foundation.errors import DcaError
from dca.foundation.events import Silent
from dca.publish import layout
from dca.publish.bucket import Bucket
from dca.publish.check import check
from dca.publish.folder import Folder
from dca.publish.records import parse_record
from dca.publish.verified import Folder as Here
from dca.publish.verified import Served, verify_index
from dca.trust import signing
from dca.trust.verify import Trusted
from tests.publish.test_verified import KEY
from tests.support.made_wheels import Details, make, put
from tests.support.served import pip, served, uv
from tests.support.uploads import instead_of_boto3

VERSION = "0.10.2+dca3"
PLAIN_VERSION = "0.10.2+dca3.cu124.lean.sm90"
FILE = f"vllm-{VERSION}-variants.json"
OURS = [signing.KeySigner(KEY)]
BY_KEY = Trusted((KEY.public_key(),))
# What a machine has, and which wheel is right for it: of those that its driver and GPU run, that of the newest CUDA.
RIGHT = {
    ("8.0", "12.2"): "cu124_sm80",
    ("8.0", "12.6"): "cu124_sm80",
    ("8.0", "13.0"): "cu128_sm80",
    ("8.9", "12.4"): "cu124_sm80",
    ("8.9", "12.8"): "cu128_sm80",
    ("9.0", "12.4"): "cu124_sm90",
    ("9.0", "12.8"): "cu128_sm90",
    ("9.0", "13.0"): "cu128_sm90",
    ("10.0", "13.0"): "cu128_sm100",
}
# A GPU without code, a driver that is too old for the GPU's code, and one that is too old for all.
NONE = (("7.5", "13.0"), ("10.0", "12.4"), ("9.0", "11.8"))
OLDEST = {"12.4": "12.0", "12.8": "12.0"}


def variant_wheel(folder: Path, variant: Variant, cuda: str | None, version: str = VERSION) -> Path:
    details = Details(variant=variant)
    return make(folder, version, cuda=cuda, content=f"x = '{variant.label}'\n", details=details)


def wheels(folder: Path) -> list[Path]:
    made = []
    for cuda, archs in {"12.4": ("8.0", "9.0"), "12.8": ("8.0", "9.0", "10.0")}.items():
        for arch in archs:
            oldest = "12.8" if arch == "10.0" else OLDEST[cuda]
            made.append(variant_wheel(folder, of_build(cuda, [arch], [], oldest), cuda))
    return made


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five variants, and a plain wheel of the same source; signed."""
    folder = tmp_path_factory.mktemp("variants")
    plain = make(folder / "dist", PLAIN_VERSION, content="x = 'plain'\n")
    put(folder / "index", *wheels(folder / "dist"), plain, signers=OURS, variants=True)
    return folder / "index"


class Machine:
    """A machine that uv installs on, as far as NVIDIA's provider sees it."""

    def __init__(self, patched: pytest.MonkeyPatch, python: Path, target: Path) -> None:
        self.patched, self.python, self.target = patched, python, target

    def takes(self, url: str, arch: str, driver: str, *words: str) -> str:
        """What is installed with a GPU and a driver; empty if uv refuses."""
        self.patched.setenv("NV_VARIANT_PROVIDER_FORCE_SM_ARCH", arch)
        self.patched.setenv("NV_VARIANT_PROVIDER_FORCE_CUDA_DRIVER_VERSION", driver)
        return self.plain(url, "--preview-features", "wheel-variants", *words)

    def plain(self, url: str, *words: str) -> str:
        where = ["--python", str(self.python), "--target", str(self.target), "--no-deps", "--index-url", url]
        done = uv("pip", "install", "-v", *where, *words, "vllm")
        if done.returncode:
            assert "unsupported wheel variants" in done.stderr or "no wheels" in done.stderr, done.stderr[-2000:]
            return ""
        assert "nvidia-variant-provider" not in done.stdout, "uv has NVIDIA's provider built in"
        assert "Unknown variant metadata schema" not in done.stderr
        says = (self.target / "vllm/__init__.py").read_text()
        shutil.rmtree(self.target)
        return says.split("'")[1]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, python: Path, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, python, tmp_path / "target")


@pytest.mark.long
@pytest.mark.parametrize("as_json", [False, True], ids=["html", "json"])
def test_uv_takes_the_variant_for_the_machine(index: Path, machine: Machine, as_json: bool) -> None:
    with served(index, as_json=as_json) as web:
        assert machine.takes(f"{web.url}variants/", "9.0", "12.4") == "cu124_sm90"
        assert machine.takes(f"{web.url}variants/", "7.5", "13.0") == ""
        assert web.errors() == []


@pytest.mark.long
def test_nine_machines_get_the_right_variant_and_three_get_none(index: Path, machine: Machine) -> None:
    with served(index) as web:
        url = f"{web.url}variants/"
        assert {(arch, driver): machine.takes(url, arch, driver) for arch, driver in RIGHT} == RIGHT
        assert [machine.takes(url, arch, driver) for arch, driver in NONE] == [""] * 3
        # Without the preview, and among the plain wheels, there are no variants.
        assert machine.plain(url) == ""
        assert machine.takes(f"{web.url}simple/", "9.0", "12.4") == "plain"


@pytest.mark.long
def test_pip_takes_the_plain_wheel_and_says_that_there_is_none_among_variants(
    index: Path, python: Path, tmp_path: Path
) -> None:
    with served(index) as web:
        none = pip(python, "--no-deps", "--target", str(tmp_path), "--index-url", f"{web.url}variants/", "vllm")
        assert (none.returncode, "No matching distribution" in none.stderr) == (1, True), none.stderr
        plain = pip(python, "--no-deps", "--target", str(tmp_path), "--index-url", f"{web.url}simple/", "vllm")
        assert plain.returncode == 0, plain.stderr
        assert web.bodies() == [f"vllm-{PLAIN_VERSION}-py3-none-any.whl"]


@pytest.mark.long
def test_the_null_variant_is_for_machines_without_another(machine: Machine, tmp_path: Path) -> None:
    files = [*wheels(tmp_path / "dist")[:2], variant_wheel(tmp_path / "dist", PLAIN, None)]
    put(tmp_path / "index", *files, variants=True)
    with served(tmp_path / "index") as web:
        assert machine.takes(f"{web.url}variants/", "7.5", "13.0") == "null"
        assert machine.takes(f"{web.url}variants/", "9.0", "12.4") == "cu124_sm90"


def test_pages_list_variants_in_a_view_of_their_own(index: Path) -> None:
    for view, has, lacks in (("simple", PLAIN_VERSION, f"{VERSION}-"), ("variants", f"{VERSION}-", PLAIN_VERSION)):
        for name in ("index.html", "index.json"):
            text = (index / view / "vllm" / name).read_text().replace("%2B", "+")
            assert (has in text, lacks in text) == (True, False), (view, name)
    assert not (index / "cu128").exists(), "its only wheels are variants"
    described = (index / "variants/vllm" / FILE).read_bytes()
    assert set(json.loads(described)["variants"]) == set(RIGHT.values())
    page = json.loads((index / "variants/vllm/index.json").read_bytes())
    (entry,) = [file for file in page["files"] if file["filename"] == FILE]
    assert entry["hashes"] == {"sha256": store.sha256_bytes(described)}
    front = (index / "index.html").read_text()
    assert '<a href="variants/">variants (5)</a>' in front
    assert f"uv pip install --preview-features wheel-variants --index URL/variants/ vllm=={VERSION}" in front
    assert f"pip install --extra-index-url URL/variants/ vllm=={VERSION}" not in front.replace("uv pip", "uv")


@pytest.mark.slow
def test_an_index_with_variants_is_verified_as_a_folder_and_served(index: Path) -> None:
    found = verify_index(Here(index), BY_KEY, Silent())
    assert (found.problems, [one.wrong for one in found.wheels]) == ((), [()] * 6)
    with served(index) as web:
        for trusted in (BY_KEY, Trusted()):
            found = verify_index(Served(web.url), trusted, Silent())
            assert (found.problems, [one.wrong for one in found.wheels]) == ((), [()] * 6)
    checked = check(index)
    assert (checked.wrong, checked.behind) == ((), ())


@pytest.fixture
def copy(index: Path, tmp_path: Path) -> Path:
    shutil.copytree(index, tmp_path / "index")
    return tmp_path / "index"


@pytest.mark.slow
def test_a_changed_file_of_variants_is_found(copy: Path) -> None:
    """Whoever writes it decides what every machine installs."""
    file = copy / "variants/vllm" / FILE
    file.write_bytes(file.read_bytes().replace(b"90_real", b"75_real"))
    for trusted in (BY_KEY, Trusted()):
        assert any(FILE in problem for problem in verify_index(Here(copy), trusted, Silent()).problems)
        with served(copy) as web:
            assert any(FILE in problem for problem in verify_index(Served(web.url), trusted, Silent()).problems)


def test_a_record_that_says_another_variant_than_the_wheel_is_found(copy: Path) -> None:
    (record,) = (copy / layout.RECORDS).glob("*cu124_sm90.whl.json")
    record.write_text(record.read_text().replace("90_real", "75_real"))
    found = verify_index(Here(copy), Trusted(), Silent())
    assert any("says variant" in problem for problem in found.problems)
    record.write_text(record.read_text().replace('"label": "cu124_sm90"', '"label": "cu124_sm75"'))
    found = verify_index(Here(copy), Trusted(), Silent())
    assert any("variant is not the one that the name" in problem for problem in found.problems)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"label": "cu124_sm90"', '"label": "../x"'),
        ('"label": "cu124_sm90"', '"label": "null"'),
        ('"90_real"', '"../../x"'),
        ('"90_real"', '"90_real", "90_real"'),
        ('"sm_arch"', '"<script>"'),
        ('"nvidia"', '"NVIDIA"'),
    ],
)
def test_a_record_with_a_hostile_variant_is_damaged(copy: Path, old: str, new: str) -> None:
    (record,) = (copy / layout.RECORDS).glob("*cu124_sm90.whl.json")
    text = record.read_text()
    assert old in text
    with pytest.raises(DcaError) as error:
        parse_record(record.name.removesuffix(".json"), text.replace(old, new).encode())
    assert error.value.code == "DCA-908"


def test_a_bucket_serves_variants_with_their_own_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = instead_of_boto3(monkeypatch)
    place, cache = Bucket("s3://wheels/a/"), store.Store(tmp_path / "no-cache")
    publish.publish(wheels(tmp_path)[:2], place, cache, Silent(), publish.Additions(signers=OURS, variants=True))
    content, more = objects.objects[f"a/variants/vllm/{FILE}"]
    assert (set(json.loads(content)["variants"]), more["ContentType"]) == (
        {"cu124_sm80", "cu124_sm90"},
        "application/json",
    )
    assert objects.objects["a/variants/vllm/"][0] == objects.objects["a/variants/vllm/index.html"][0]
    publish.remove([f"vllm=={VERSION}"], place, OURS)
    assert not [key for key in objects.objects if key.startswith("a/variants/")]


def test_removing_and_yanking_keep_the_other_variants(copy: Path) -> None:
    name = f"vllm-{VERSION}-py3-none-any-cu124_sm80.whl"
    publish.remove([name], Folder(copy), OURS)
    left = json.loads((copy / "variants/vllm" / FILE).read_bytes())["variants"]
    assert set(left) == set(RIGHT.values()) - {"cu124_sm80"}
    publish.remove([f"vllm=={VERSION}"], Folder(copy), OURS)
    assert not (copy / "variants").exists()
    checked = check(copy)
    assert (checked.wrong, checked.behind) == ((), ())


def test_variants_are_published_if_they_are_asked_for(tmp_path: Path) -> None:
    wheel = wheels(tmp_path / "dist")[0]
    shown = rendered(put(tmp_path / "other", wheel, make(tmp_path / "dist", PLAIN_VERSION), variants=True))
    assert f"uv pip install --preview-features wheel-variants --index URL/variants/ vllm=={VERSION}" in shown
    assert f"uv pip install --index URL/cu124/ vllm=={PLAIN_VERSION}" in shown
    with pytest.raises(DcaError, match="is a variant") as error:
        put(tmp_path / "index", wheel)
    assert (error.value.code, "--variants" in error.value.remedy) == ("DCA-201", True)
    assert not (tmp_path / "index").exists()


def test_inspect_says_what_a_variant_is_for(tmp_path: Path) -> None:
    inspected = inspection.inspect(wheels(tmp_path)[0])
    assert (inspected.problems, inspected.variant) == ((), of_build("12.4", ["8.0"], [], "12.0"))
    assert "  variant       cu124_sm80: nvidia :: cuda_version_lower_bound :: 12.0 or 12.4, " in render(inspected)
    plain = inspection.inspect(make(tmp_path))
    assert (plain.variant, "variant" in plain.model_dump(mode="json"), "variant" in render(plain)) == (
        None,
        False,
        False,
    )


INFO = f"vllm-{VERSION}.dist-info/{variants.FILE}"
RIGHT_ONE = of_build("12.4", ["8.0"], [], "12.0")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (variants.written([PLAIN]), "does not describe the variant cu124_sm80"),
        (b"{", "does not describe the variant cu124_sm80"),
        (variants.written([of_build("12.4", ["8.0"], [], "12.0"), PLAIN]), "does not describe the variant cu124_sm80"),
        (
            variants.written([Variant(label="cu124_sm80", properties={"nvidia": {"sm_arch": ("90_real",)}})]),
            "is for sm_90, but dca.json says it was built for sm_80",
        ),
        (
            variants.written([RIGHT_ONE]).replace(b"nvidia-variant-provider>", b"evil-provider>"),
            "asks another provider than that of nvidia",
        ),
        (variants.written([RIGHT_ONE]).replace(b"peps/850/v0.2.0", b"v0.2.0"), "is of another draft"),
    ],
)
def test_a_variant_that_is_not_what_it_says_is_refused(content: bytes, says: str, tmp_path: Path) -> None:
    wheel = make(tmp_path / "dist", VERSION, details=Details(variant=RIGHT_ONE, changed={INFO: content}))
    with pytest.raises(DcaError) as error:
        put(tmp_path / "index", wheel, variants=True)
    assert (error.value.code, says in error.value.why) == ("DCA-901", True), error.value.why


def test_a_label_without_a_description_is_refused_and_a_description_without_a_label(tmp_path: Path) -> None:
    for details, label, says in (
        (Details(), "-cu124_sm80", "it has no variant.json"),
        (Details(variant=RIGHT_ONE), "", "no label in its name"),
    ):
        wheel = make(tmp_path / "dist", VERSION, details=details)
        named = wheel.rename(wheel.with_name(f"vllm-{VERSION}-py3-none-any{label}.whl"))
        with pytest.raises(DcaError, match="not published") as error:
            put(tmp_path / "index", named, variants=True)
        assert says in error.value.why


def test_two_variants_with_one_label_are_refused(tmp_path: Path) -> None:
    one = variant_wheel(tmp_path / "dist", of_build("12.4", ["8.0"], [], "12.0"), "12.4")
    details = Details(variant=of_build("12.4", ["8.0"], [], "12.2"), tag="cp38-abi3-linux_x86_64")
    put(tmp_path / "index", one, variants=True)
    with pytest.raises(DcaError, match="two variants") as error:
        put(tmp_path / "index", make(tmp_path / "dist", VERSION, details=details), variants=True)
    assert (error.value.code, "for other machines" in error.value.why) == ("DCA-901", True)
    assert check(tmp_path / "index").fine
