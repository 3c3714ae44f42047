"""What is known of compiler caches, and what a machine has of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from dca.catalogue import compiler_caches
from dca.foundation import data
from tests.support.machines import program


def test_a_cache_that_is_installed_from_a_lock_has_one_of_its_version() -> None:
    for cache in compiler_caches.load_all():
        if cache.version:
            assert f"{cache.name}=={cache.version} " in data.cache_lock(cache.name).read_text()


@pytest.mark.parametrize(
    ("version", "cuda", "broken"),
    [("0.16.0", "13.2.1", False), ("0.16.0", "13.3", True), ("0.17.0", "13.4.22", True), ("0.18.0", "13.4.22", False)],
)
def test_sccache_is_known_to_break_on_newer_cudas(version: str, cuda: str, broken: bool) -> None:
    assert (compiler_caches.find("sccache").broken(version, cuda) is not None) == broken


@pytest.mark.parametrize(
    ("env", "kind", "address"),
    [
        ({}, None, ""),
        ({"SCCACHE_REDIS_ENDPOINT": ""}, None, ""),
        ({"SCCACHE_REDIS_ENDPOINT": "redis://a:1"}, "Redis", "redis://a:1"),
        ({"SCCACHE_WEBDAV_ENDPOINT": "https://a/b"}, "WebDAV", "https://a/b"),
        ({"SCCACHE_BUCKET": "b"}, "S3", "https://s3.amazonaws.com"),
        ({"SCCACHE_BUCKET": "b", "SCCACHE_ENDPOINT": "http://a:9"}, "S3", "http://a:9"),
        ({"SCCACHE_ENDPOINT": "http://a:9"}, None, ""),
    ],
)
def test_a_remote_is_the_one_whose_variable_is_set(env: dict[str, str], kind: str | None, address: str) -> None:
    remote = compiler_caches.find("sccache").remote(env)
    assert (remote.kind if remote else None) == kind
    assert (remote.address(env) if remote else "") == address
    assert [found.shared for found in compiler_caches.look(env)] == [kind or "", ""]


@pytest.mark.parametrize(
    ("text", "scheduler"),
    [
        ('[dist]\nscheduler_url = "http://a:1"\n', "SCCACHE_CONF"),
        ('[dist]\nscheduler_url = ""\n', ""),
        ("[dist.auth]\ntype = 'token'\n", ""),
        ("dist = 1\n", ""),
        ("[dist\n", ""),
        (None, ""),
    ],
)
def test_a_scheduler_of_builders_is_read_from_the_settings(text: str | None, scheduler: str, tmp_path: Path) -> None:
    file = tmp_path / "conf.toml"
    if text is not None:
        file.write_text(text)
    assert [found.scheduler for found in compiler_caches.look({"SCCACHE_CONF": str(file)})] == [scheduler, ""]
    assert not any(found.scheduler for found in compiler_caches.look({}))


@pytest.mark.parametrize(("said", "version"), [("ccache version 4.9.1", "4.9.1"), ("what?", "")])
def test_ccache_is_the_one_on_path(said: str, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = program(tmp_path / "ccache", f"echo '{said}'")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = compiler_caches.look({})[1]
    assert (found.version, found.path) == (version, str(path) if version else "")
