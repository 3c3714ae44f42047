"""The machine's own mirror, and a configuration of apt that touches nothing of the machine."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path

import pytest

from dca.catalogue.toolkits import Apt, AptPackage
from dca.foundation import store
from dca.toolchain import apt
from dca.toolchain.apt import Mirror

WANTED = Apt(
    distribution="debian",
    suite="trixie",
    components=("main", "non-free"),
    architecture="amd64",
    packages=(AptPackage(name="thing", version="1.0-1", sha256="0" * 64),),
)

RELEASE = 'PRETTY_NAME="Debian"\nID=debian\nVERSION_CODENAME=bookworm\n'


def etc(folder: Path, files: dict[str, str], release: str = RELEASE) -> Path:
    for name, text in {"os-release": release, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


DEB822 = """\
# The machine's mirror.
Types: deb deb-src
URIs: https://mirror.example/debian/
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/archive.gpg
"""


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(DEB822, id="plain"),
        pytest.param(DEB822.replace("URIs: ", "URIs:\n "), id="value on the next line"),
        pytest.param(
            DEB822.replace("Suites: bookworm ", "Suites:\n bookworm-security\n# a comment\n\tbookworm\n "),
            id="value over several lines with a comment",
        ),
        pytest.param(re.sub(r"(?m)^\S+:", lambda name: name[0].lower(), DEB822), id="names of fields in small letters"),
        pytest.param(DEB822 + "Enabled: yes\n", id="enabled"),
        pytest.param(DEB822.replace("URIs: ", "URIs: file:/srv/debian "), id="second of two places"),
        pytest.param("Types: deb\nURIs: https://other.example/x\nSuites: sid\n \n" + DEB822, id="second stanza"),
    ],
)
def test_a_mirror_is_found_in_the_newer_format(text: str, tmp_path: Path) -> None:
    folder = etc(tmp_path, {"apt/sources.list.d/debian.sources": text})
    assert apt.mirror("debian", folder) == Mirror("https://mirror.example/debian", "/usr/share/keyrings/archive.gpg")


@pytest.mark.parametrize("value", ["no", "No", "false"])
def test_a_source_that_is_switched_off_is_passed_over(value: str, tmp_path: Path) -> None:
    other = DEB822.replace("mirror.example", "other.example")
    folder = etc(tmp_path, {"apt/sources.list.d/debian.sources": f"{DEB822}Enabled: {value}\n\n{other}"})
    mirror = apt.mirror("debian", folder)
    assert mirror is not None
    assert mirror.uri == "https://other.example/debian"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(DEB822.replace("deb deb-src", "deb-src"), id="sources only"),
        pytest.param(DEB822.replace("bookworm", "sid"), id="another suite"),
        pytest.param(DEB822.replace("https://mirror.example", "cdrom://x"), id="a disc"),
        pytest.param(DEB822.replace("URIs", "#URIs"), id="no place"),
        pytest.param("", id="empty"),
    ],
)
def test_what_cannot_give_packages_of_the_machines_suite_is_no_mirror(text: str, tmp_path: Path) -> None:
    assert apt.mirror("debian", etc(tmp_path, {"apt/sources.list.d/debian.sources": text})) is None


def test_a_key_that_stands_in_the_source_itself_is_no_path_of_a_keyring(tmp_path: Path) -> None:
    key = "Signed-By:\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQINBF: abc\n -----END PGP PUBLIC KEY BLOCK-----"
    text = DEB822.replace("Signed-By: /usr/share/keyrings/archive.gpg", key)
    mirror = apt.mirror("debian", etc(tmp_path, {"apt/sources.list.d/debian.sources": text}))
    assert mirror == Mirror("https://mirror.example/debian", "")


@pytest.mark.parametrize(
    ("line", "signed_by"),
    [
        ("deb https://mirror.example/debian bookworm main contrib", ""),
        ("  deb\thttps://mirror.example/debian/ bookworm main # the mirror", ""),
        ("deb [arch=amd64] https://mirror.example/debian bookworm main", ""),
        ("deb [arch=amd64 signed-by=/etc/k.gpg] https://mirror.example/debian bookworm main", "/etc/k.gpg"),
        ("deb [ signed-by=/etc/k.gpg arch=amd64,arm64 ] https://mirror.example/debian bookworm main", "/etc/k.gpg"),
    ],
)
@pytest.mark.parametrize("name", ["sources.list", "sources.list.d/debian.list"])
def test_a_mirror_is_found_in_the_older_format(name: str, line: str, signed_by: str, tmp_path: Path) -> None:
    text = (
        "# deb https://off.example/debian bookworm main\n\n"
        "deb-src https://src.example/debian bookworm main\n"
        "deb cdrom:[Debian 12]/ bookworm main\n"
        f"deb https://other.example/debian sid main\n{line}\n"
    )
    mirror = apt.mirror("debian", etc(tmp_path, {f"apt/{name}": text}))
    assert mirror == Mirror("https://mirror.example/debian", signed_by)


def test_a_machine_of_another_distribution_has_no_mirror(tmp_path: Path) -> None:
    folder = etc(
        tmp_path,
        {"apt/sources.list": "deb https://mirror.example/ubuntu noble main\n"},
        release='ID="ubuntu"\nID_LIKE=debian\nVERSION_CODENAME=noble\n',
    )
    assert apt.mirror("debian", folder) is None
    assert apt.mirror("ubuntu", folder) == Mirror("https://mirror.example/ubuntu", "")


@pytest.mark.parametrize("release", ["ID=debian\n", ""])
def test_a_machine_that_does_not_say_what_it_runs_has_no_mirror(release: str, tmp_path: Path) -> None:
    assert apt.mirror("debian", etc(tmp_path, {"apt/sources.list.d/x.sources": DEB822}, release)) is None


def test_a_machine_without_apt_has_no_mirror(tmp_path: Path) -> None:
    assert apt.mirror("debian", tmp_path) is None
    assert apt.mirror("debian", etc(tmp_path, {})) is None


# --- downloading ---------------------------------------------------------------------------------------------


def test_what_another_run_downloads_is_waited_for_and_its_folder_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    package = AptPackage(name="thing", version="1.0-1", sha256=store.sha256_bytes(b"deb"))
    release = WANTED.model_copy(update={"packages": (package,)})
    cache = store.Store(tmp_path / "cache")
    place, under_way = cache.download(package.sha256, "thing.deb"), cache.folder("apt", release.suite) / "lists/partial"
    under_way.mkdir(parents=True)
    waits, outcomes = threading.Event(), []

    def second() -> None:
        outcomes.extend(apt.download(release, cache, tmp_path / "log", waits.set))

    with cache.lock("apt", release.suite):
        thread = threading.Thread(target=second)
        thread.start()
        assert waits.wait(20)
        store.write_bytes(place, b"deb")
    thread.join(20)
    assert outcomes == [place]
    assert under_way.is_dir()


# --- the private configuration -------------------------------------------------------------------------------


@pytest.fixture
def proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An apt-config that tells a machine's settings, two of them its proxies."""
    program = tmp_path / "bin" / "apt-config"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        "echo 'Acquire \"\";'\n"
        "echo 'Acquire::http::Proxy \"http://proxy.example:3128\";'\n"
        "echo 'Acquire::https::Proxy::mirror.example \"DIRECT\";'\n"
        "echo 'Acquire::AllowInsecureRepositories \"1\";'\n"
        "echo 'Acquire::http::Pipeline-Depth \"0\";'\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def configure(state: Path, signed_by: str = "/usr/share/keyrings/archive.gpg") -> dict[str, list[str]]:
    """The settings of a configuration, each with its values."""
    path = apt._configure(WANTED, Mirror("https://mirror.example/debian", signed_by), state)
    assert path.is_relative_to(state)
    settings: dict[str, list[str]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r'([\w:.-]+) "([^"]*)";', line)
        assert match, line
        settings.setdefault(match[1], []).append(match[2])
    return settings


@pytest.mark.usefixtures("proxies")
@pytest.mark.parametrize("name", ["state", "Ordner mit Leerzeichen für apt"])
def test_every_folder_of_the_configuration_lies_below_the_state(name: str, tmp_path: Path) -> None:
    state = tmp_path / name
    settings = configure(state)
    folders = {key: value for key, value in settings.items() if key == "Dir" or key.startswith("Dir::")}
    outside = {
        key: values for key, values in folders.items() if not all(Path(path).is_relative_to(state) for path in values)
    }
    # What lies outside is read only: nothing, and the keys that the machine trusts.
    assert {path for values in outside.values() for path in values} == {"/dev/null", "/etc/apt/trusted.gpg.d"}
    assert {"Dir", "Dir::State", "Dir::State::lists", "Dir::State::status", "Dir::Cache", "Dir::Etc"} <= set(folders)
    assert (state / "lists" / "partial").is_dir()
    assert (state / "cache" / "archives" / "partial").is_dir()
    assert (state / "status").read_bytes() == b""


@pytest.mark.usefixtures("proxies")
def test_the_sources_are_the_mirror_with_its_keyring_and_the_wanted_suite(tmp_path: Path) -> None:
    configure(tmp_path / "state")
    (sources,) = (tmp_path / "state" / "etc" / "sources.list.d").iterdir()
    assert sources.read_text().splitlines() == [
        "Types: deb",
        "URIs: https://mirror.example/debian",
        "Suites: trixie",
        "Components: main non-free",
        "Architectures: amd64",
        "Signed-By: /usr/share/keyrings/archive.gpg",
    ]


@pytest.mark.usefixtures("proxies")
def test_a_mirror_without_a_keyring_names_none(tmp_path: Path) -> None:
    configure(tmp_path / "state", signed_by="")
    (sources,) = (tmp_path / "state" / "etc" / "sources.list.d").iterdir()
    assert "Signed-By" not in sources.read_text()


@pytest.mark.usefixtures("proxies")
def test_of_the_machines_settings_only_the_proxies_are_taken_over(tmp_path: Path) -> None:
    settings = configure(tmp_path / "state")
    assert settings["Acquire::http::Proxy"] == ["http://proxy.example:3128"]
    assert settings["Acquire::https::Proxy::mirror.example"] == ["DIRECT"]
    assert settings["Acquire::AllowInsecureRepositories"] == ["false"]
    assert settings["APT::Get::AllowUnauthenticated"] == ["false"]
    assert not any("Pipeline" in key for key in settings)


@pytest.mark.usefixtures("proxies")
def test_a_user_without_a_name_can_use_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 2_000_000_000)
    assert configure(tmp_path / "state")["APT::Architecture"] == ["amd64"]
