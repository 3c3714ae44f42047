"""The user's configuration files, as git, pip and uv find them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.foundation import certificates, user_config
from dca.foundation.user_config import Setting

GIT = """\
[url "ssh://git@github.com/"]
\tinsteadOf = https://github.com/
[HTTP]
\tproxy = http://me:geheim@proxy.example:3128
\tsslVerify = false
[http "https://git.example/a.b"]
\tProxy =
\tsslCAInfo = /etc/own.pem
[include]
\tpath = more
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder, and no configuration of the system."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_DIRS", str(tmp_path / "xdg"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    for name in ("XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_COUNT", "PIP_CONFIG_FILE", "UV_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(certificates, "variables", dict)
    return tmp_path


def write(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    return file


def of(program: str) -> dict[str, str]:
    """The settings of a program in the home folder of a test, by key."""
    return {one.key: one.value for one in user_config.read() if one.program == program and "/etc/" not in f"{one.file}"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "variables"),
    [
        (".gitconfig", {}),
        (".config/git/config", {}),
        ("xdg/git/config", {"XDG_CONFIG_HOME": "xdg"}),
        ("elsewhere", {"GIT_CONFIG_GLOBAL": "elsewhere"}),
    ],
)
def test_gits_configuration_is_read_where_git_reads_it(
    place: str, variables: dict[str, str], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(home / place, GIT)
    write(file.parent / "more", "[http]\nversion = HTTP/1.1\n[credential]\nhelper = store\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, str(home / value))
    assert of("git") == {
        "url.ssh://git@github.com/.insteadof": "https://github.com/",
        "http.proxy": "http://me:geheim@proxy.example:3128",
        "http.sslverify": "false",
        "http.https://git.example/a.b.proxy": "",
        "http.https://git.example/a.b.sslcainfo": "/etc/own.pem",
        "include.path": "more",
        "http.version": "HTTP/1.1",
        "credential.helper": "store",
    }
    handed = user_config.git_network()
    keys = {
        handed[f"GIT_CONFIG_KEY_{n}"]: handed[f"GIT_CONFIG_VALUE_{n}"] for n in range(int(handed["GIT_CONFIG_COUNT"]))
    }
    assert keys == {
        "http.proxy": "http://me:geheim@proxy.example:3128",
        "http.https://git.example/a.b.proxy": "",
        "http.https://git.example/a.b.sslcainfo": "/etc/own.pem",
        "http.version": "HTTP/1.1",
    }


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[http\nproxy", "\0\0"])
def test_a_file_of_git_without_settings_or_with_a_mistake_hands_on_nothing(text: str, home: Path) -> None:
    write(home / ".gitconfig", text)
    assert user_config.git_network() == {}


@pytest.mark.slow
def test_a_repository_around_the_working_folder_is_not_the_users(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / "repository/.git/config", "[http]\nproxy = http://other\n[core]\nrepositoryformatversion = 0\n")
    for name in ("objects", "refs"):
        (home / "repository/.git" / name).mkdir()
    write(home / "repository/.git/HEAD", "ref: refs/heads/main\n")
    monkeypatch.chdir(home / "repository")
    assert user_config.git_network() == {}


@pytest.mark.slow
@pytest.mark.parametrize("place", [".config/pip/pip.conf", ".pip/pip.conf", "xdg/pip/pip.conf"])
def test_pips_configuration_is_read_where_pip_reads_it(place: str, home: Path) -> None:
    write(
        home / place, "[global]\nindex-url = https://a.example/simple\nextra-index-url =\n  https://b\n  https://c%d\n"
    )
    assert of("pip") == {
        "global.index-url": "https://a.example/simple",
        "global.extra-index-url": "https://b https://c%d",
    }


@pytest.mark.slow
def test_a_variable_that_names_pips_file_replaces_all_others(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(home / ".pip/pip.conf", "[global]\nproxy = http://one\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(write(home / "other", "[global]\ntimeout = 3\n")))
    assert [one for one in user_config.read() if one.program == "pip"] == [
        Setting("pip", home / "other", "global.timeout", "3")
    ]


@pytest.mark.slow
def test_uvs_configuration_is_read_where_uv_reads_it(home: Path) -> None:
    text = (
        '[[index]]\nurl = "https://a.example"\ndefault = true\n[[index]]\nurl = "https://b"\n[pip]\nno-index = true\n'
    )
    write(home / ".config/uv/uv.toml", text)
    assert of("uv") == {"index": "https://a.example https://b", "pip.no-index": "True"}


@pytest.mark.slow
@pytest.mark.parametrize("place", [".config/pip/pip.conf", ".config/uv/uv.toml"])
@pytest.mark.parametrize("content", [b"\xff\xfe[", b"[global\nx", b"x"])
def test_a_file_with_a_mistake_has_no_settings(content: bytes, place: str, home: Path) -> None:
    write(home / place, "").write_bytes(content)
    assert of("pip") == of("uv") == {}


@pytest.mark.slow
def test_a_folder_in_place_of_a_file_has_no_settings(home: Path) -> None:
    for place in (".gitconfig", ".config/pip/pip.conf", ".config/uv/uv.toml"):
        (home / place).mkdir(parents=True)
    assert of("pip") == of("uv") == of("git") == {}
