"""A server whose authority only the system, or a variable, names: our own requests, uv and git trust it alike."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

import bootstrap
from dca.catalogue.machine import find_uv
from dca.foundation import certificates, environment, runner
from dca.foundation.errors import DcaError
from dca.sources import index
from tests.support.repositories import secured
from tests.support.web import Place

EVERY = (*certificates.VARIABLES, "SSL_CERT_DIR", "UV_SYSTEM_CERTS", "UV_NATIVE_TLS", "PIP_CERT")


@pytest.fixture
def untrusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Place, Path]]:
    """A server with https, and the file with its authority, which nothing names."""
    for name in EVERY:
        monkeypatch.delenv(name, raising=False)
    place = Place()
    file = secured(place.server, tmp_path)
    place.url = place.url.replace("http:", "https:")
    place.pages["/simple/"] = ("text/html", b"<html></html>")
    yield place, file
    place.server.shutdown()
    place.server.server_close()


def words_of(argv: list[str | Path]) -> str:
    """What a program that uses the network says when it asks the server for something that is not there."""
    return runner.run(argv, env=environment.of("network", {"UV_NO_CONFIG": "1"}), timeout=60.0).text


@pytest.mark.slow
@pytest.mark.parametrize("how", ["system", *certificates.VARIABLES])
def test_requests_uv_and_git_trust_the_same_authorities(
    how: str, untrusted: tuple[Place, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, file = untrusted
    if how == "system":
        monkeypatch.setattr(certificates, "BUNDLES", (str(tmp_path / "absent"), str(file)))
    else:
        monkeypatch.setenv(how, str(file))
    with index.session() as http:
        assert http.get(f"{place.url}/simple/", timeout=10).status_code == 200
    argv: list[str | Path] = [
        find_uv(),
        "pip",
        "install",
        "--dry-run",
        "--system",
        "--cache-dir",
        tmp_path / "uv",
        "--index-url",
    ]
    assert "certificate" not in words_of([*argv, f"{place.url}/simple", "nothing"]).lower()
    assert "certificate" not in words_of(["git", "ls-remote", f"{place.url}/nothing.git"]).lower()
    assert [path for path in place.asked if "nothing" in path]


@pytest.mark.slow
def test_without_them_the_message_says_how_to_name_them(
    untrusted: tuple[Place, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "BUNDLES", ())
    assert certificates.bundle() is None
    assert certificates.variables() == {}
    place, _ = untrusted
    with index.session() as http, pytest.raises(requests.exceptions.SSLError):
        http.get(f"{place.url}/simple/", timeout=10)
    monkeypatch.setenv("UV_DEFAULT_INDEX", f"{place.url}/simple")
    with pytest.raises(DcaError, match="could not be reached") as caught:
        index.files("nothing", "nothing.whl")
    assert "export SSL_CERT_FILE=FILE" in caught.value.remedy


def test_what_a_user_names_comes_before_the_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in EVERY:
        monkeypatch.delenv(name, raising=False)
    own, systems = tmp_path / "own.pem", tmp_path / "system.pem"
    for file in (own, systems):
        file.touch()
    monkeypatch.setattr(certificates, "BUNDLES", (str(systems),))
    monkeypatch.setattr(bootstrap, "CERTIFICATES", (str(systems),))
    assert set(certificates.variables().values()) == {str(systems)}
    assert bootstrap.isolated_environment()["PIP_CERT"] == str(systems)
    monkeypatch.setenv("SSL_CERT_FILE", str(own))
    assert set(certificates.variables().values()) == {str(own)}
    assert bootstrap.isolated_environment()["PIP_CERT"] == str(own)
    # A folder cannot be told to every program.
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path))
    assert certificates.bundle() == str(tmp_path)
    assert certificates.variables() == {}


def test_bootstrap_looks_where_dca_does() -> None:
    assert bootstrap.CERTIFICATES == certificates.BUNDLES
