"""One build over machines: the real scheduler and builders of sccache-dist, of which one is ill, killed or stopped."""

from __future__ import annotations

import contextlib
import http.server
import json
import random
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import requests

from dca.compile.compiler_cache import builders, sccache
from dca.compile.compiler_cache.tool import Unusable
from dca.foundation import store
from dca.pipeline.wheel import Made
from tests.support import link_cache, programs, wait_for
from tests.support.builders import Cluster, free_port, require
from tests.support.machines import program
from tests.support.toy import Toy


def job(builder: str, number: int = 0) -> bytes:
    """What a scheduler answers that gives a builder."""
    address, _, port = builder.rpartition(":")
    token = b"a token"
    place = struct.pack("<I4BH", 0, *map(int, address.split(".")), int(port))
    return struct.pack("<IQ", 0, len(token)) + token + struct.pack("<Q", number) + place + b"\1" + b"digest"


class Scheduler:
    """A stand-in for the scheduler, which gives builders in turn.

    Args:
        builders: what it gives; an empty text is a builder that it could not reach.
        stack: that ends it.
    """

    def __init__(self, builders: list[str], stack: contextlib.ExitStack) -> None:
        self.asked: list[tuple[str, bytes]] = []
        scheduler, turn = self, iter(builders * 100)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                scheduler.asked.append((self.headers["Authorization"], body))
                given = next(turn)
                self._say(200 if given else 500, job(given, len(scheduler.asked)) if given else b"")

            def do_GET(self) -> None:
                self._say(200, json.dumps({"num_servers": len(set(builders)), "num_cpus": 4}).encode())

            def _say(self, status: int, content: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        stack.callback(server.server_close)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        stack.callback(server.shutdown)
        self.url = f"http://127.0.0.1:{server.server_address[1]}"


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Callable[..., tuple[builders.Gate, Scheduler]]]:
    """Starts a gate in front of a stand-in for a scheduler."""
    with contextlib.ExitStack() as stack:

        def start(*given: str) -> tuple[builders.Gate, Scheduler]:
            scheduler = Scheduler(list(given), stack)
            return builders.Gate(scheduler.url, tmp_path, stack), scheduler

        yield start


def allocate(gate: builders.Gate, toolchain: bytes = b"toolchain") -> str:
    """The builder that a client of sccache is given; empty for none."""
    answer = requests.post(
        gate.url + builders.ALLOCATE[1:], toolchain, headers={"Authorization": "Bearer t"}, timeout=9
    )
    return builders.given(answer.content) if answer.ok else ""


A, B, C = "127.0.0.1:1", "10.1.2.3:65535", "10.0.0.9:7"


def test_a_gate_hands_on_what_the_scheduler_gives_with_the_token_of_the_client(
    gate: Callable[..., tuple[builders.Gate, Scheduler]],
) -> None:
    one, scheduler = gate(A, B)
    assert [allocate(one), allocate(one)] == [A, B]
    assert scheduler.asked == [("Bearer t", b"toolchain")] * 2
    assert one.known == (A, B)


def test_a_builder_that_is_left_out_is_given_to_nobody(gate: Callable[..., tuple[builders.Gate, Scheduler]]) -> None:
    one, _ = gate(A, B)
    one.leave_out(A, "ill")
    assert {allocate(one) for _ in range(5)} == {B}
    one.leave_out(B, "ill too")
    assert allocate(one) == ""


def test_another_builder_is_asked_for_when_the_scheduler_cannot_reach_one(
    gate: Callable[..., tuple[builders.Gate, Scheduler]],
) -> None:
    one, _ = gate("", A)
    assert allocate(one) == A


def test_each_builder_is_probed_alone_and_one_that_comes_later_gets_nothing(
    gate: Callable[..., tuple[builders.Gate, Scheduler]],
) -> None:
    one, scheduler = gate(A, B)
    with one.probing():
        assert [allocate(one), allocate(one, b"another")] == [A, A]
        assert one.known == (A, B)
        one.target = B
        before = len(scheduler.asked)
        assert [allocate(one), allocate(one, b"another")] == [B, B]
        # Each was given at the first turn, and kept.
        assert len(scheduler.asked) - before <= 1
    assert C not in one.known
    other, _ = gate(A)
    with other.probing():
        allocate(other)
    other.scheduler = Scheduler([C, A], contextlib.ExitStack()).url
    assert allocate(other) == A
    assert other.left_out == {C: "it came after the builders were probed."}


def test_without_its_scheduler_everything_is_compiled_here(
    gate: Callable[..., tuple[builders.Gate, Scheduler]],
) -> None:
    one, _ = gate(A)
    one.scheduler = f"http://127.0.0.1:{free_port()}"
    assert allocate(one) == ""
    with pytest.raises(Unusable, match="it does not answer"):
        one.builders()


def test_a_scheduler_that_gives_no_builder_to_the_probe_says_why(
    gate: Callable[..., tuple[builders.Gate, Scheduler]],
) -> None:
    one, _ = gate("")
    with one.probing():
        assert allocate(one) == ""
    assert (one.target, one.refused) == ("", "it answers with HTTP status 500.")


@pytest.mark.parametrize("content", [b"", b"\0\0", job(A)[:20], job(A)[:-13], builders.refusal("no"), b"\xff" * 60])
def test_an_answer_without_a_builder_is_none(content: bytes) -> None:
    assert builders.given(content) == ""


def test_the_address_of_a_builder_may_be_of_ipv6() -> None:
    place = struct.pack("<I", 1) + bytes(15) + b"\1" + struct.pack("<H", 10501)
    assert builders.given(struct.pack("<IQ", 0, 0) + struct.pack("<Q", 3) + place) == "[::1]:10501"


@pytest.mark.parametrize("start", ["scheduler_url = ", "scheduler_url="])
@pytest.mark.parametrize("quote", ['"', "'"])
def test_the_scheduler_of_the_settings_is_replaced_and_nothing_else(start: str, quote: str, tmp_path: Path) -> None:
    more = '# here\n[dist.auth]\ntype = "token"\ntoken = "secret"\n'
    file = tmp_path / "own.toml"
    more += '# scheduler_url = "http://old:1"\n'
    file.write_text(f"[dist]\n{start}{quote}http://a:1{quote} {more}")
    assert builders.scheduler(str(file)) == "http://a:1"
    (tmp_path / "run").mkdir()
    made = builders.through("http://127.0.0.1:9/", str(file), tmp_path / "run", tmp_path / 'a "b"')
    assert made.stat().st_mode & 0o777 == 0o600
    kept = f'cache_dir = "{tmp_path}/a \\"b\\""\n'
    assert made.read_text() == f'[dist]\n{kept}{start}"http://127.0.0.1:9/" {more}'
    # Asked for again, it has one already.
    assert builders.through("http://b:2", str(made), tmp_path, tmp_path).read_text().count("cache_dir") == 1


@pytest.mark.parametrize("text", ["[dist", "dist = 3"])
def test_settings_that_cannot_be_read_are_a_reason(text: str, tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text(text)
    with pytest.raises(Unusable, match="cannot be read"):
        builders.scheduler(str(file))


def test_a_scheduler_that_cannot_be_replaced_is_a_reason(tmp_path: Path) -> None:
    file = tmp_path / "own.toml"
    file.write_text('[dist]\nscheduler_url = """http://a:1"""\n')
    (tmp_path / "run").mkdir()
    with pytest.raises(Unusable, match="as one line"):
        builders.through("http://127.0.0.1:9/", str(file), tmp_path / "run", tmp_path)


@pytest.mark.parametrize("here", [0, 3])
@pytest.mark.parametrize("there", [0, 1])
def test_what_fails_on_a_builder_is_compiled_here_before_it_counts(
    there: int, here: int, gate: Callable[..., tuple[builders.Gate, Scheduler]], tmp_path: Path
) -> None:
    said = f"sccache: Job failed on server {A}:\nbwrap: no namespace" if there else "a warning"
    words = {
        "socket": shlex.quote(str(tmp_path / "s")),
        "program": str(program(tmp_path / "sccache", f"printf '%s\\n' {shlex.quote(said)} >&2; exit {there}")),
        "failed": shlex.quote(str(tmp_path)),
        "nvcc": "/nvcc",
    }
    compiler = program(tmp_path / "g++", f'echo "here $@" >&2; exit {here}')
    launch = tmp_path / "launch"
    store.write_bytes(launch, sccache.DISTRIBUTED.format(**words).encode(), mode=0o755)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        done = subprocess.run([launch, compiler, "-c", "a b"], capture_output=True, text=True, check=False)
    assert done.returncode == (here if there else 0)
    assert done.stderr == ("here -c a b\n" if there else "a warning\n")
    one, _ = gate(A)
    one.blame()
    blamed = {A: "a part failed there that this machine compiles: bwrap: no namespace"} if there and not here else {}
    assert one.left_out == blamed
    assert one.used({}, 0).repeated == len(blamed)
    assert not list(tmp_path.glob("*.said"))


@pytest.mark.slow
def test_a_builder_that_is_gone_is_noticed(
    gate: Callable[..., tuple[builders.Gate, Scheduler]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(builders, "WATCH_SECONDS", 0.05)
    monkeypatch.setattr(builders, "SILENT_SECONDS", 0.3)
    gone = f"127.0.0.1:{free_port()}"
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hung = f"127.0.0.1:{silent.getsockname()[1]}"
        one, _ = gate(gone, hung)
        allocate(one)
        allocate(one)
        threading.Thread(target=one.watch, daemon=True).start()
        assert wait_for(lambda: set(one.left_out) == {gone, hung})
    assert one.left_out[gone] == "it cannot be reached: Connection refused"
    assert one.left_out[hung] == builders.NO_ANSWER
    assert one.hung == f"the builder {hung} does not answer any more."


@pytest.fixture(scope="module")
def cluster(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A scheduler and two builders; skipped by name where there can be none."""
    require()
    one = Cluster(tmp_path_factory.mktemp("cluster"), cache)
    yield one
    one.end()


@pytest.fixture(scope="module")
def toy(cache: store.Store, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    return Toy(tmp_path_factory.mktemp("toy"), link_cache(tmp_path_factory.mktemp("cache"), cache))


WORDS = ("wheel", "--recipe", "toy", "--source", "source", "--with", "more", "--jobs", "4", "--json")


def forget(toy: Toy) -> None:
    """Remove what was compiled."""
    for name in ("build", "run", "compiled"):
        shutil.rmtree(toy.cache / name, ignore_errors=True)


def start(toy: Toy, cluster: Cluster | None) -> subprocess.Popen[str]:
    """A build of the toy from nothing, by the builders of a cluster."""
    forget(toy)
    more = ("--compiler-cache", "sccache" if cluster else "off", "--out", toy.folder / "dist")
    env = {**toy.env, **({"SCCACHE_CONF": str(cluster.settings)} if cluster else {})}
    return subprocess.Popen(
        toy.words(*WORDS, *more),
        cwd=toy.folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(run: subprocess.Popen[str]) -> Made:
    stdout, stderr = run.communicate(timeout=900)
    assert run.returncode == 0, stderr[-4000:]
    return Made.model_validate(json.loads(stdout))


@pytest.fixture(scope="module")
def alone(toy: Toy) -> Made:
    """The wheel that this machine builds alone."""
    return ended(start(toy, None))


def used(made: Made) -> builders.Builders:
    cache = made.compiler_cache
    assert cache is not None
    assert cache.off == ""
    assert cache.builders is not None
    return cache.builders


@pytest.mark.whole
@pytest.mark.network
def test_a_wheel_whose_parts_two_builders_compile_has_the_same_bytes(cluster: Cluster, toy: Toy, alone: Made) -> None:
    made = ended(start(toy, cluster))
    assert made.sha256 == alone.sha256
    how = used(made)
    assert (how.here, how.repeated, how.left_out) == (0, 0, {})
    assert set(how.places) == set(cluster.builders)
    # cudafe++, cicc, ptxas and g++ of two kernels, and g++ of the module.
    assert sum(how.places.values()) >= 9


@pytest.mark.whole
@pytest.mark.network
def test_a_builder_that_is_ill_before_the_build_gets_no_part_of_it(cluster: Cluster, toy: Toy, alone: Made) -> None:
    ill, well = cluster.builders
    cluster.make_ill(ill)
    try:
        made = ended(start(toy, cluster))
    finally:
        cluster.heal(ill)
    how = used(made)
    assert made.sha256 == alone.sha256
    assert set(how.places) == {well}
    assert set(how.left_out) == {ill}
    assert "No permissions to create new namespace" in how.left_out[ill]


def compiling(toy: Toy) -> bool:
    """Whether ninja runs: the probes are over."""
    return any("\0-C\0" in line and "\0-j\0" in line for line in programs(f"{toy.cache}/build/"))


@pytest.mark.whole
@pytest.mark.network
def test_builders_that_fall_ill_in_the_middle_cost_compiling_here(cluster: Cluster, toy: Toy, alone: Made) -> None:
    run = start(toy, cluster)
    try:
        assert wait_for(lambda: compiling(toy), 300.0)
        for builder in cluster.builders:
            cluster.make_ill(builder)
        made = ended(run)
    finally:
        for builder in cluster.builders:
            cluster.heal(builder)
    how = used(made)
    assert made.sha256 == alone.sha256
    assert how.repeated >= 1
    assert how.left_out
    assert all("No permissions to create new namespace" in why for why in how.left_out.values())


@pytest.mark.whole
@pytest.mark.proof
@pytest.mark.network
def test_a_builder_killed_in_the_middle_costs_no_byte(
    cluster: Cluster, toy: Toy, alone: Made, scale: Callable[[int], int], chance: random.Random
) -> None:
    for number in range(scale(10)):
        run, victim = start(toy, cluster), chance.choice(cluster.builders)
        assert wait_for(lambda: compiling(toy), 300.0)
        assert wait_for(lambda: cluster.busy(victim) or run.poll() is not None, 120.0)  # noqa: B023
        assert run.poll() is None
        time.sleep(chance.random())
        cluster.signal(victim, signal.SIGKILL)
        try:
            made = ended(run)
        finally:
            cluster.restart(victim)
        print(f"{number}: {made.seconds:.1f} s; {used(made)}")
        assert made.sha256 == alone.sha256
        assert programs(f"{toy.cache}/env/") == []


@pytest.mark.whole
@pytest.mark.network
def test_a_builder_that_stops_answering_in_the_middle_does_not_hold_up_a_build(
    cluster: Cluster, toy: Toy, alone: Made
) -> None:
    """sccache waits 20 minutes for it."""
    run, victim = start(toy, cluster), cluster.builders[0]
    assert wait_for(lambda: compiling(toy), 300.0)
    assert wait_for(lambda: cluster.busy(victim), 120.0)
    cluster.signal(victim, signal.SIGSTOP)
    try:
        made = ended(run)
    finally:
        cluster.signal(victim, signal.SIGKILL)
        cluster.restart(victim)
    assert made.sha256 == alone.sha256
    assert made.compiler_cache is not None
    assert made.compiler_cache.off in ("", f"the builder {victim} does not answer any more.")
