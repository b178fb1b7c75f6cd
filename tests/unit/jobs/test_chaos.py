"""The parts of chaos without Flink and Kafka: plan, events, account, faults, links, report."""

from __future__ import annotations

import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from jobs.chaos import faults, report
from jobs.chaos.broker import Brokers, LinkedBroker
from jobs.chaos.clock import Clock
from jobs.chaos.components import signal_processes
from jobs.chaos.events import events, number_of, poison
from jobs.chaos.faults import KINDS, ClockJump, DiskFull, Hang, Kill, NoCheckpoints, chosen
from jobs.chaos.ledger import Bits, Ledger
from jobs.chaos.leftovers import Leftovers
from jobs.chaos.plan import Planned, schedule
from jobs.chaos.proxy import Link
from jobs.chaos.run import Done, Options, Outcome, _Injurer
from jobs.chaos.stack import check
from jobs.environment import ROOT, NotReadyError
from jobs.ports import HOST
from jobs.settings import load
from tests.support.waiting import wait_until
from udfs.batches.events import Decoder

FRAUD = ROOT / "conf" / "fraud.yaml"
RANGES = {"a": (0.0, 0.0), "b": (1.0, 2.0), "c": (3.0, 3.0)}


# -- the plan -----------------------------------------------------------------------------------


def test_a_seed_gives_the_same_faults_and_another_one_others() -> None:
    first, again, other = (list(islice(schedule(RANGES, seed), 30)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_every_kind_comes_once_in_each_round() -> None:
    planned = list(islice(schedule(RANGES, 5), 30))
    assert [p.number for p in planned] == list(range(1, 31))
    for start in range(0, 30, 3):
        assert sorted(p.kind for p in planned[start : start + 3]) == ["a", "b", "c"]
    assert all(RANGES[p.kind][0] <= p.holds_s <= RANGES[p.kind][1] for p in planned)


# -- what is written ----------------------------------------------------------------------------


@pytest.mark.parametrize("conf", ["fraud.yaml", "examples/payments.yaml"])
def test_events_are_accepted_and_poison_is_not(conf: str) -> None:
    schema = load(ROOT / "conf" / conf).schema_
    made = list(islice(events(schema, 3), 5_000))
    decoder = Decoder.for_events(schema.arriving, schema.arriving_keys)
    places = [(0, n, 1_760_000_000_000) for n in range(len(made))]
    decoded = decoder.decode([e.value for e in made], np.array(places, np.int64))
    assert not decoded.rejects
    ids = [i for part in decoded.parts for i in part.texts[schema.event.id]]
    assert [number_of(i) for i in ids] == list(range(5_000))
    spoiled = [poison(e, schema.event.id, n) for n, e in enumerate(made[:100])]
    refused = decoder.decode(spoiled, np.array(places[:100], np.int64)).rejects
    assert sorted(r.offset for r in refused) == list(range(100))


# -- the account --------------------------------------------------------------------------------


def test_bits_grow_and_name_what_is_missing() -> None:
    bits = Bits()
    assert bits.add(200_000)
    assert not bits.add(200_000)
    assert bits.count == 1
    assert bits.missing(3) == [0, 1, 2]
    assert bits.missing(200_001, 1_000_000) == list(range(200_000))
    assert Bits().missing(70_000, 70_000)[-1] == 69_999


def test_the_account_of_a_good_run() -> None:
    ledger = Ledger(written=3, copies=1, poison={(0, 7)})
    for number in (0, 1, 2, 1):
        ledger.predicted(number, "timeout" if number == 2 else None)
    ledger.dead((0, 7))
    ledger.dead((0, 7))
    ledger.doubled((1, 1))
    assert (ledger.lost, ledger.wrong, ledger.repeats) == (0, 0, 1)
    assert ledger.fallbacks == {"timeout": 1}
    assert ledger.records == 5


def test_what_is_lost_is_counted_and_named() -> None:
    ledger = Ledger(written=3, copies=2, poison={(0, 7), (1, 9)})
    ledger.predicted(1)
    ledger.dead((0, 7))
    ledger.doubled((0, 3))
    assert ledger.lost == 2 + 1 + 1
    assert ledger.first_lost() == ["event 0", "event 2", "poison at 1:9"]


def test_what_is_wrong_is_counted() -> None:
    ledger = Ledger(written=1)
    ledger.predicted(-1)  # an id that nobody wrote
    ledger.dead((0, 0))  # a good record refused
    ledger.doubled((0, 1))  # nothing was written twice
    assert (ledger.wrong, ledger.lost, ledger.repeats) == (3, 1, 0)


# -- faults -------------------------------------------------------------------------------------


def test_kinds_are_chosen_by_name() -> None:
    assert chosen("all") == list(KINDS)
    assert chosen(" poison, kill-broker,poison") == ["poison", "kill-broker"]
    with pytest.raises(ValueError, match="no fault 'x'; known are: all, kill-taskmanager"):
        chosen("poison,x")
    with pytest.raises(ValueError, match="no fault is named"):
        chosen(",")


@dataclass
class Sleeper:
    """A process that a fault can act on."""

    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def pid(self) -> int:
        return self.started[-1].pid

    def revive(self) -> None:
        if not self.started or self.started[-1].poll() is not None:
            code = "import time; time.sleep(600)"
            self.started.append(subprocess.Popen([sys.executable, "-c", code]))


@pytest.fixture
def sleeper() -> Iterator[Sleeper]:
    part = Sleeper()
    part.revive()
    yield part
    for process in part.started:
        process.kill()
        process.wait()


def test_what_was_killed_is_started_again_once(sleeper: Sleeper) -> None:
    fault, first = Kill(sleeper), sleeper.pid()
    assert fault.inject(0.0) == f"kill -9 {first}"
    assert not psutil.pid_exists(first)
    fault.heal()
    fault.heal()
    assert sleeper.pid() != first
    assert len(sleeper.started) == 2


def test_what_was_stopped_goes_on(sleeper: Sleeper) -> None:
    fault = Hang(sleeper)
    fault.heal()  # before anything was done
    fault.inject(0.0)
    process = psutil.Process(sleeper.pid())
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, 5, "it is stopped")
    fault.heal()
    wait_until(lambda: process.status() != psutil.STATUS_STOPPED, 5, "it goes on")


def test_a_process_that_died_while_stopped_is_started_again(sleeper: Sleeper) -> None:
    fault, first = Hang(sleeper), sleeper.pid()
    fault.inject(0.0)
    os.kill(first, signal.SIGKILL)
    sleeper.started[0].wait()
    fault.heal()
    assert sleeper.pid() != first


def test_what_a_process_has_started_is_hurt_with_it(tmp_path: Path) -> None:
    child = "import subprocess; subprocess.run(['sleep', '600'])"
    parent = subprocess.Popen([sys.executable, "-c", child])
    process = psutil.Process(parent.pid)
    wait_until(lambda: bool(process.children()), 10, "it has a child")
    started = process.children()[0]
    assert signal_processes([parent.pid], signal.SIGSTOP) == [parent.pid, started.pid]
    wait_until(lambda: started.status() == psutil.STATUS_STOPPED, 5, "the child is stopped")
    signal_processes([parent.pid], signal.SIGKILL)
    parent.wait()
    assert not started.is_running()
    assert signal_processes([parent.pid], signal.SIGCONT) == []


def test_the_clock_jumps_for_a_process_that_runs(tmp_path: Path) -> None:
    clock = Clock.made_in(tmp_path)
    if clock is None:
        pytest.skip("there is no C compiler")
    code = "import sys, time\nfor _ in sys.stdin: print(time.time(), time.monotonic(), flush=True)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | clock.variables(),
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def off_s() -> float:
            print(file=process.stdin, flush=True)
            told, steady = map(float, process.stdout.readline().split())  # type: ignore[union-attr]
            assert abs(steady - time.monotonic()) < 2
            return told - time.time()

        assert abs(off_s()) < 2
        fault = ClockJump(clock)
        assert fault.inject(1.0) == "+30 s"
        wait_until(lambda: abs(off_s() - 30) < 2, 5, "it is ahead")
        assert fault.inject(0.0) == "-30 s"
        wait_until(lambda: abs(off_s() + 30) < 2, 5, "it is behind")
        fault.heal()
        wait_until(lambda: abs(off_s()) < 2, 5, "it is right")
        process.stdin.close()


def test_without_a_compiler_no_clock_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Clock.made_in(tmp_path) is None
    stack = SimpleNamespace(clock=None, brokers=Brokers.in_folder(tmp_path, 1))
    assert KINDS["clock-jump"].make(stack, Any) is None  # type: ignore[arg-type]
    assert KINDS["move-leader"].make(stack, Any) is None  # type: ignore[arg-type]


def test_a_full_disk_is_one_that_no_file_can_grow_on(sleeper: Sleeper) -> None:
    process = psutil.Process(sleeper.pid())
    before = process.rlimit(resource.RLIMIT_FSIZE)
    fault = DiskFull(lambda: [sleeper.pid(), 2**22 + 1])  # the second one does not exist
    fault.inject(0.0)
    assert process.rlimit(resource.RLIMIT_FSIZE)[0] < 10_000
    fault.heal()
    fault.heal()
    assert process.rlimit(resource.RLIMIT_FSIZE) == before
    with pytest.raises(NotReadyError, match="does not run"):
        DiskFull(list).inject(0.0)


def test_the_checkpoints_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "chk-1").mkdir(parents=True)
    fault = NoCheckpoints(folder)
    fault.heal()
    fault.inject(0.0)
    with pytest.raises(NotADirectoryError):
        (folder / "chk-2").mkdir()
    fault.heal()
    fault.heal()
    assert (folder / "chk-1").is_dir()
    with pytest.raises(FileNotFoundError):
        NoCheckpoints(tmp_path / "none").inject(0.0)


def test_checkpoints_that_were_written_meanwhile_are_kept(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    (folder / "job" / "chk-1").mkdir(parents=True)
    fault = NoCheckpoints(folder)
    fault.inject(0.0)
    folder.unlink()
    (folder / "job" / "chk-2").mkdir(parents=True)
    fault.heal()
    assert sorted(p.name for p in (folder / "job").iterdir()) == ["chk-1", "chk-2"]


class Interrupted:
    """A fault that is interrupted after it has broken something."""

    def __init__(self) -> None:
        self.is_broken = False

    def inject(self, strength: float) -> str:
        self.is_broken = True
        raise KeyboardInterrupt

    def heal(self) -> None:
        self.is_broken = False


def test_what_is_broken_is_healed_on_ctrl_c() -> None:
    fault, watch = Interrupted(), SimpleNamespace(now_s=lambda: 0.0)
    injurer = _Injurer(Any, Any, watch, print)  # type: ignore[arg-type]
    with pytest.raises(KeyboardInterrupt):
        injurer._make(Planned(1, "poison", 0.0, 0.0, 0.0), fault)
    assert not fault.is_broken


class Slow:
    """A fault whose making, or whose first healing, fails with what nobody expects."""

    def __init__(self, inject_fails: bool) -> None:
        self.inject_fails, self.heals = inject_fails, 0

    def inject(self, strength: float) -> str:
        if self.inject_fails:
            raise SystemError("not callable")
        return "done"

    def heal(self) -> None:
        self.heals += 1
        if self.heals == 1 and not self.inject_fails:
            raise SystemError("not yet")


@pytest.mark.parametrize(
    ("inject_fails", "trouble"), [(False, ""), (True, "not made: SystemError('not callable')")]
)
def test_what_fails_in_a_fault_is_tried_again_or_told(inject_fails: bool, trouble: str) -> None:
    fault = Slow(inject_fails)
    stack = SimpleNamespace(runs=lambda: fault.heals > 1, mend=lambda: None)
    writer = SimpleNamespace(ends=dict, failure="")
    watch = SimpleNamespace(now_s=lambda: 0.0, has_passed=lambda ends: True, failure="")
    injurer = _Injurer(stack, writer, watch, print)  # type: ignore[arg-type]
    done = injurer._make(Planned(1, "poison", 0.0, 0.0, 0.0), fault)
    assert done.trouble == trouble
    assert done.recovery_s is not None


def test_what_a_killed_run_left_is_ended_by_the_next(sleeper: Sleeper, tmp_path: Path) -> None:
    Leftovers(tmp_path).note("server", None, "nothing")
    Leftovers(tmp_path).note("server", os.getpid(), "no argument of this process has this")
    Leftovers(tmp_path).note("keeper", sleeper.pid(), "time.sleep(600)")
    Leftovers(tmp_path).end()
    assert sleeper.started[0].wait(5) is not None  # and this process lives on
    Leftovers(tmp_path).end()


# -- links --------------------------------------------------------------------------------------


@pytest.fixture
def echo() -> Iterator[int]:
    """A server that gives back what it gets; its port."""
    listening = socket.create_server((HOST, 0))

    def serve(connection: socket.socket) -> None:
        with connection:
            try:
                while piece := connection.recv(65_536):
                    connection.sendall(piece)
            except OSError:
                return

    def accept() -> None:
        while True:
            try:
                connection, _ = listening.accept()
            except OSError:
                return
            threading.Thread(target=serve, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    yield int(listening.getsockname()[1])
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def asked(client: socket.socket, text: bytes) -> bytes:
    client.sendall(text)
    return client.recv(100)


def test_a_link_can_be_cut_be_silent_and_be_slow(echo: int) -> None:
    with Link(echo) as link:
        with socket.create_connection((HOST, link.port), timeout=5) as client:
            assert asked(client, b"one") == b"one"
            link.be("slow 100")
            start_s = time.monotonic()
            assert asked(client, b"two") == b"two"
            assert time.monotonic() - start_s > 0.19  # there and back
            link.be("silent")
            client.settimeout(0.3)
            with pytest.raises(TimeoutError):
                asked(client, b"three")
            client.settimeout(5)
            link.be("pass")
            assert client.recv(100) == b"three"  # nothing of it was lost
            link.be("cut")
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        with pytest.raises(ConnectionError), socket.create_connection((HOST, link.port)) as client:
            client.settimeout(5)
            asked(client, b"four")
        link.be("pass")
        with socket.create_connection((HOST, link.port), timeout=5) as client:
            assert asked(client, b"five") == b"five"


def test_a_link_ends_with_who_started_it(echo: int) -> None:
    link = Link(echo)
    with link:
        assert faults.Injured(link, "slow").inject(0.0) == "slow 20 ms each way"
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((HOST, link.port), timeout=5)


def test_the_broker_tells_clients_of_the_link_to_come_by_the_proxy(tmp_path: Path) -> None:
    broker = LinkedBroker(tmp_path)
    text = broker._server_properties(1_234)
    lines = dict(line.split("=", 1) for line in text.splitlines())
    assert f"LINK://127.0.0.1:{broker.link_port}," in lines["listeners"]
    advertised = f"LINK://127.0.0.1:{broker.proxy_port},PLAINTEXT://127.0.0.1:1234"
    assert lines["advertised.listeners"] == advertised
    hosts = {part.partition("://")[2].rpartition(":")[0] for part in lines["listeners"].split(",")}
    assert hosts == {"127.0.0.1"}


def test_several_brokers_have_a_replica_of_everything_each(tmp_path: Path) -> None:
    brokers = Brokers.in_folder(tmp_path, 3)
    texts = [broker._server_properties(1_234) for broker in brokers.all]
    found = [dict(line.split("=", 1) for line in text.splitlines()) for text in texts]
    assert [lines["node.id"] for lines in found] == ["1", "2", "3"]
    voters = {lines["controller.quorum.voters"] for lines in found}
    assert len(voters) == 1
    for lines in found:
        own = next(v for v in voters.copy().pop().split(",") if v.startswith(lines["node.id"]))
        assert f"CONTROLLER://{own.partition('@')[2]}" in lines["listeners"]
        assert lines["default.replication.factor"] == "3"
        assert lines["min.insync.replicas"] == "2"
    assert len(set(brokers.bootstrap.split(","))) == 3


# -- loopback only ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"kafka.bootstrap_servers": "kafka.example:9092"},
        {"kafka.bootstrap_servers": "127.0.0.1:9092,10.0.0.7:9092"},
        {"model.server": "10.1.2.3:8500"},
    ],
)
def test_another_machine_is_refused(changes: dict[str, str]) -> None:
    with pytest.raises(NotReadyError, match="chaos is for loopback only"):
        check(load(FRAUD, changes))


def test_a_job_that_needs_more_is_refused() -> None:
    check(load(FRAUD))
    with pytest.raises(NotReadyError, match="the job has rollup, which chaos cannot bring up"):
        check(load(ROOT / "conf" / "iot.yaml"))


# -- the report ---------------------------------------------------------------------------------


def outcome() -> Outcome:
    options = Options(FRAUD, {"batch.buckets": 2}, ["poison"], 1.0)
    ledger = Ledger(written=2)
    ledger.predicted(0)
    ledger.predicted(1, "timeout")
    made = [
        Done(1, "poison", "50 <records>", 1.0, 0.0, 0.25),
        Done(2, "kill-broker", "kill -9 7", 3.0, 1.5, 4.0),
    ]
    return Outcome("2026-01-01T00:00:00+00:00", options, made, 20.0, ledger, per_second={1: 5})


def test_a_good_run_is_told_so(tmp_path: Path) -> None:
    run = outcome()
    assert run.is_good
    document = report.document(run)
    assert document["recovery_s"] == {"poison": [0.25], "kill-broker": [4.0]}
    assert {document[n] for n in ("lost", "wrong", "duplicates", "unrecovered")} == {0}
    assert document["fallbacks"] == {"timeout": 1}
    assert report.summary(run)["fallbacks"] == "1 (timeout 1)"
    _, page = report.write(run, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert "nothing lost, nothing wrong" in text
    assert "50 &lt;records&gt;" in text
    assert "<script" not in text
    assert "http" not in text.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    "done",
    [
        Done(3, "poison", "", 5.0, 0.0, None),
        Done(3, "poison", "", 5.0, 0.0, 1.0, "not healed: no"),
    ],
)
def test_a_fault_without_recovery_or_healing_is_a_failure(done: Done) -> None:
    run = outcome()
    run.faults.append(done)
    assert not run.is_good
    assert "not as it should be" in report.html(run)
    assert report.document(run)["unrecovered"] == 1
