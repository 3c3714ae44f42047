"""Credentials that somebody has in URLs, environment or netrc, and everything that is printed or kept."""

from __future__ import annotations

import base64
import html
import json
import random
from pathlib import Path
from urllib.parse import quote

import pytest

from dca.catalogue.mirrors import places
from dca.catalogue.recipes import IndexFile
from dca.cli import run as command_line
from dca.foundation import runner, secrets, store
from dca.foundation.errors import DcaError
from dca.foundation.secrets import redact
from dca.sources import git, index
from tests.support import RunDca
from tests.support.web import Place

# Each holds SECRET where one would plant it; all are made up.
SHAPES = {
    "password": "https://user:SECRET@index.example/simple/",
    "token as user": "https://SECRET@index.example/simple/",
    "token and x": "https://SECRET:x-oauth-basic@index.example/simple/",
    "__token__": "https://__token__:SECRET@index.example/simple/",
    "empty user": "https://:SECRET@index.example/simple/",
    "two ats": "https://user@corp.example:SECRET@index.example/simple/",
    "a slash": "https://user:se/SECRET@index.example/simple/",
    "a hash": "https://user:SECRET#x@index.example/simple/",
    "quoted": "https://user:SECRET%21%2F@index.example/simple/",
    "with a port": "https://user:SECRET@index.example:8443/simple/",
    "upper case": "HTTPS://user:SECRET@INDEX.example/simple/",
    "git+https": "git+https://user:SECRET@git.example/x.git",
    "ssh": "ssh://user:SECRET@git.example/x.git",
    "socks": "socks5h://user:SECRET@proxy.example:1080",
    "query token": "https://index.example/simple/?token=SECRET",
    "signed": "https://s3.example/x?X-Amz-Signature=SECRET&X-Amz-Credential=SECRET",
    "sig": "https://blob.example/x?sv=1&sig=SECRET",
    "access_token": "https://index.example/simple/?a=b&access_token=SECRET&c=d",
    "fragment": "https://index.example/simple/#access_token=SECRET",
    "bearer": "Authorization: Bearer SECRET",
    "basic": "authorization: Basic SECRET",
    "proxy header": "Proxy-Authorization: Basic SECRET",
    "private token": "PRIVATE-TOKEN: SECRET",
    "cookie": "Cookie: session=SECRET",
    "api key": "X-Api-Key: SECRET",
}


def planted(shape: str, chance: random.Random) -> tuple[str, str]:
    """A credential and the text that it stands in."""
    secret = "".join(chance.choice("abcdefghkmnpqrstuvwxyzABCDEFGH23456789_-") for _ in range(24))
    return secret, SHAPES[shape].replace("SECRET", secret)


def absent(secret: str, text: str) -> bool:
    forms = (secret, quote(secret, safe=""), base64.b64encode(f"user:{secret}".encode()).decode())
    return not any(form in text for form in forms)


def test_there_are_as_many_shapes_as_promised() -> None:
    assert len(SHAPES) >= 25


@pytest.mark.slow
@pytest.mark.parametrize("shape", sorted(SHAPES))
def test_no_message_log_or_error_shows_a_credential(
    shape: str, tmp_path: Path, chance: random.Random, capsys: pytest.CaptureFixture[str]
) -> None:
    secret, text = planted(shape, chance)
    around = f"fatal: unable to access '{text}': 403 and {text}, again {text}"
    log = tmp_path / "log"
    runner.run(["sh", "-c", 'echo "$1"; echo "$1" >&2; exit 3', "sh", around], log=log)
    assert absent(secret, log.read_text())
    assert "403" in log.read_text()
    error = DcaError("DCA-402", f"{around} could not be reached.", why=around, remedy="see there.")
    assert absent(secret, str(error))
    assert absent(secret, redact(around))
    assert absent(secret, str(index.unreachable(redact(around), OSError(around))))
    if "://" in text:
        with pytest.raises(DcaError) as refused:
            git.fetch(places(text), "0" * 40, store.Store(tmp_path / "cache").open(), log)
        assert absent(secret, str(refused.value))
        assert absent(secret, git.probe(places(text)))
    assert absent(secret, log.read_text())
    assert command_line(["config", "show", text]) != 0
    output = capsys.readouterr()
    assert absent(secret, output.out + output.err)


@pytest.mark.parametrize("shape", [name for name, text in sorted(SHAPES.items()) if text.lower().startswith("http")])
@pytest.mark.parametrize("variable", ["UV_DEFAULT_INDEX", "PIP_INDEX_URL"])
def test_an_index_with_a_credential_is_used_and_never_shown(
    shape: str, variable: str, tmp_path: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret, text = planted(shape, chance)
    for name in ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    host = "127.0.0.1:9"
    for named in ("index.example:8443", "index.example", "INDEX.example", "s3.example", "blob.example"):
        text = text.replace(named, host)
    monkeypatch.setenv(variable, text)
    file = IndexFile(package="thing", version="1.0", file="thing-1.0.tar.gz", sha256="0" * 64)
    with pytest.raises(DcaError) as refused:
        index.download(file, store.Store(tmp_path / "cache"))
    assert absent(secret, str(refused.value))
    assert absent(secret, index.probe())


def test_what_netrc_and_the_environment_hold_is_known_wherever_it_turns_up(
    tmp_path: Path, chance: random.Random, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [
        "UV_INDEX_CORP_PASSWORD",
        "GITHUB_TOKEN",
        "AWS_SECRET_ACCESS_KEY",
        "TWINE_PASSWORD",
        "HF_TOKEN",
        "SOME_API_KEY",
        "CI_JOB_TOKEN",
        "DB_PASSWD",
        "MY_SECRET",
        "SERVER_KEY",
        "OPENAI_KEY",
        "THE_KEY",
    ]
    kept = {name: planted("password", chance)[0] for name in names}
    # As one in 64 does that is written in base64.
    kept |= {"AWS_SECRET_ACCESS_KEY": f"/{kept['AWS_SECRET_ACCESS_KEY']}", "HF_TOKEN": f"~{kept['HF_TOKEN']}"}
    for name, value in kept.items():
        monkeypatch.setenv(name, value)
    in_netrc = planted("password", chance)[0]
    (tmp_path / "netrc").write_text(f"machine index.example login user password {in_netrc}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    proxy = planted("password", chance)[0]
    monkeypatch.setenv("HTTPS_PROXY", f"http://user:{quote(proxy + '@!', safe='')}@proxy.example:3128")
    every = [*kept.values(), in_netrc, proxy + "@!"]
    text = " and ".join([*every, *(base64.b64encode(f"user:{secret}".encode()).decode() for secret in every[-2:])])
    log = tmp_path / "log"
    runner.run(["printf", "%s\\n", text], log=log)
    for shown in (log.read_text(), str(DcaError("DCA-402", text, why=text)), secrets.redact(text)):
        assert all(absent(secret, shown) for secret in every)
    assert " and " in secrets.redact(text)


def test_what_is_no_credential_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/tmp/agent")
    monkeypatch.setenv("EMPTY_TOKEN", "")
    monkeypatch.setenv("SHORT_TOKEN", "on")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/etc/key.json")
    (tmp_path / "key.pem").touch()
    monkeypatch.setenv("CLIENT_KEY", str(tmp_path / "key.pem"))
    for text in (
        "git+https://github.com/a/b@0123456789abcdef",
        "https://docs.example/page#part",
        "https://host:8080/a/b@v1",
        "https://host.example/x?page=2",
        "see /tmp/agent, /etc/key.json and on",
        "error: expected ';' before '}' token",
        f"see {tmp_path}/key.pem",
        "mail me@example.org",
        "g++ -DKEY=1 -o x@y.o",
        "tokens: 5",
    ):
        assert secrets.hide(text) == text


@pytest.mark.parametrize("secret", ["s3cret-of-a-server", 'a"b&c<d>\\e f', "p4s", "Bearer sk-1 2&token=3"])
def test_what_is_told_to_be_secret_is_hidden_however_it_is_quoted(secret: str) -> None:
    for form in (secret, quote(secret, safe=""), json.dumps(secret)[1:-1], repr(secret)[1:-1], html.escape(secret)):
        assert secrets.redact(f"wrong: {form}, really", secret) == "wrong: ***, really"
    assert secrets.redact("of passp4ss and bps4p", "p4s", "") == "of passp4ss and bps4p"


@pytest.mark.slow
def test_no_document_of_a_build_shows_a_credential(
    dca: RunDca, tmp_path: Path, chance: random.Random, place: Place
) -> None:
    """A plan and a failed fetch, with credentials wherever a user may have them."""
    planted_here = {name: planted("password", chance)[0] for name in ("index", "netrc", "redist", "proxy", "token")}
    (tmp_path / "netrc").write_text(f"machine 127.0.0.1 login user password {planted_here['netrc']}\n")
    (tmp_path / "netrc").chmod(0o600)
    host = place.url.removeprefix("http://")
    env = {
        "UV_DEFAULT_INDEX": f"http://user:{planted_here['index']}@{host}/simple/?key={planted_here['token']}",
        "NETRC": str(tmp_path / "netrc"),
        "DCA_REDIST_URL": f"http://user:{planted_here['redist']}@{host}/redist/",
        "HTTPS_PROXY": f"http://user:{planted_here['proxy']}@127.0.0.1:9",
        "UV_INDEX_CORP_PASSWORD": planted_here["token"],
    }
    output = ""
    for words in (("plan", "--json"), ("fetch", "--json"), ("wheel",), ("fetch", "--bundle", tmp_path / "x.dca")):
        done = dca(*words, "--recipe", "vllm-0.10.2", "--prebuilt", "all", "--cache-dir", tmp_path / "cache", env=env)
        output += done.stdout + done.stderr
    assert "DCA-" in output
    kept = "".join(
        path.read_text(errors="replace")
        for path in (tmp_path / "cache").rglob("*")
        if path.is_file() and path.suffix in (".json", ".log", ".txt", "")
    )
    for name, secret in planted_here.items():
        assert absent(secret, output), name
        assert absent(secret, kept), name


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://user:pass@host/x", "https://host/x"),
        ("see http://token@host:8080/a and https://u:p@other/b.", "see http://host:8080/a and https://other/b."),
        ("https://user:p@ss@host/x", "https://host/x"),
        ("https://host/a@b", "https://host/a@b"),
        ("mail me@example.org", "mail me@example.org"),
    ],
)
def test_credentials_are_taken_out_of_a_text(text: str, clean: str) -> None:
    assert redact(text) == clean
