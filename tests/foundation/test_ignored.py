"""What a build leaves out of the user's variables and configuration is named when it would change the build."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.foundation import environment, ignored
from dca.foundation.user_config import Setting
from tests.foundation.test_environment import PLANTED, PROXIES, QUIET


def test_what_would_change_a_build_is_named_and_nothing_else() -> None:
    caller = dict.fromkeys((*PLANTED, *QUIET, *PROXIES, *environment.EVERY), "/planted")
    assert {one.name for one in ignored.of(caller=caller)} == set(PLANTED)
    assert all(one.changes for one in ignored.of(caller=caller))


@pytest.mark.parametrize(
    ("caller", "names"),
    [
        ({"CXX": ""}, []),
        ({"MAKEFLAGS": "w", "MAKELEVEL": "1"}, []),
        ({"MAKEFLAGS": "-j8"}, ["MAKEFLAGS"]),
        ({"UV_DEFAULT_INDEX": "https://a.example/simple"}, []),
        ({"PIP_INDEX_URL": "https://a.example/simple"}, ["PIP_INDEX_URL"]),
        ({"LD_AUDIT": "/x.so"}, ["LD_AUDIT"]),
        ({"NVCC_BLACKLIST": "1", "UV_BUILD_CONSTRAINT": "c"}, ["NVCC_BLACKLIST", "UV_BUILD_CONSTRAINT"]),
    ],
)
def test_a_variable_counts_when_it_is_set_and_not_used(caller: dict[str, str], names: list[str]) -> None:
    assert [one.name for one in ignored.of((), ["UV_DEFAULT_INDEX"], caller)] == names


@pytest.mark.parametrize(
    ("program", "key", "value", "instead"),
    [
        ("git", "url.ssh://git@github.com/.insteadof", "https://github.com/", "[mirrors] in config.toml"),
        ("git", "url.https://mirror.example/.pushinsteadof", "https://github.com/", None),
        ("git", "http.sslverify", "false", "http.sslCAInfo"),
        ("git", "http.sslverify", "true", None),
        ("git", "http.https://github.com/.sslverify", "0", "http.sslCAInfo"),
        ("git", "http.https://github.com/.extraheader", "Authorization: basic abc", ""),
        ("git", "http.proxy", "http://proxy:3128", None),
        ("git", "user.name", "A", None),
        ("pip", "global.index-url", "https://mirror.example/simple", "UV_DEFAULT_INDEX"),
        ("pip", "install.extra-index-url", "https://mirror.example/simple", "UV_DEFAULT_INDEX"),
        ("pip", "global.proxy", "http://proxy:3128", "HTTPS_PROXY"),
        ("pip", "global.trusted-host", "mirror.example", "SSL_CERT_FILE"),
        ("pip", "global.timeout", "60", None),
        ("uv", "index", "https://mirror.example/simple", "UV_DEFAULT_INDEX"),
        ("uv", "pip.index-url", "https://mirror.example/simple", "UV_DEFAULT_INDEX"),
        ("uv", "cache-dir", "/scratch/uv", "--cache-dir DIR"),
        ("uv", "preview", "true", None),
    ],
)
def test_a_setting_of_a_file_is_named_when_it_would_change_a_build(
    program: str, key: str, value: str, instead: str | None
) -> None:
    setting = Setting(program, Path("/home/me/file"), key, value)  # type: ignore[arg-type]
    found = ignored.of([setting, setting], caller={})
    assert [one.instead for one in found] == ([] if instead is None else [instead])
    assert all(one.name.startswith(f"/home/me/file: {key.partition('://')[0]}") for one in found)


def test_no_password_is_named() -> None:
    settings = [
        Setting("pip", Path("/f"), "global.index-url", "https://me:geheim@mirror.example/simple"),
        Setting("git", Path("/f"), "url.https://me:geheim@mirror.example/.insteadof", "https://github.com/"),
        Setting("git", Path("/f"), "http.extraheader", "Authorization: Basic geheim"),
    ]
    found = ignored.of(settings, caller={})
    assert len(found) == 3
    assert "geheim" not in str(found)
