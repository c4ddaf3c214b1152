"""The preStop script, run as in a pod, with a server whose gauges the test sets."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

import pytest

from fairlead.engines.containers.llama_cpp import ShellDrain
from fairlead.engines.containers.prestop_drain import DRAIN_SCRIPT, PreStopDrain
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer, ReceivedRequest

GAUGE = "vllm:num_requests_running"
STATUS, UNREADABLE = "/proc/1/status", "/no/such/file"
HookRunner = Callable[..., "subprocess.Popen[bytes]"]


class GaugeServer(CannedServer):
    """Answers with ``running``; ``asked`` is set by every look."""

    def __init__(self) -> None:
        super().__init__(self._metrics)
        self.running = 0
        self.asked = Event()

    def _metrics(self, request: ReceivedRequest) -> CannedResponse:
        self.asked.set()
        return CannedResponse((f'# HELP x\n{GAUGE}{{engine="0"}} {self.running}.0\nvllm:other 7.0\n'.encode(),))


@pytest.fixture
def engine() -> Iterator[GaugeServer]:
    with GaugeServer() as gauges:
        yield gauges


def run_shell_hook(url: str, *, most: float, quiet: str, status: str = UNREADABLE) -> "subprocess.Popen[bytes]":
    command = ShellDrain(url, (GAUGE,)).prestop_hook(most)["exec"]["command"]
    command[2], command[6] = command[2].replace(STATUS, status), quiet
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def run_hook(
    url: str, *, most: float, quiet: str, env: dict[str, str] | None = None, status: str = UNREADABLE
) -> "subprocess.Popen[bytes]":
    command = PreStopDrain(url, (GAUGE,)).prestop_hook(most)["exec"]["command"]
    command[0], command[2], command[5] = sys.executable, command[2].replace(STATUS, status), quiet
    return subprocess.Popen(command, env=env or {})


@pytest.mark.parametrize("run", [run_hook, run_shell_hook])
def test_idle_engine_may_stop(engine: GaugeServer, run: HookRunner) -> None:
    assert run(engine.url, most=60, quiet="0").wait(30) == 0


@pytest.mark.parametrize("run", [run_hook, run_shell_hook])
def test_busy_engine_is_waited_for(engine: GaugeServer, run: HookRunner) -> None:
    engine.running = 2
    process = run(engine.url, most=60, quiet="0")
    assert engine.asked.wait(30)
    engine.asked.clear()
    assert engine.asked.wait(30)  # it looked again, since requests run
    assert process.poll() is None
    engine.running = 0
    assert process.wait(30) == 0


@pytest.mark.parametrize("run", [run_hook, run_shell_hook])
def test_wait_is_bounded(engine: GaugeServer, run: HookRunner) -> None:
    engine.running = 2
    assert run(engine.url, most=1, quiet="0").wait(30) == 0


@pytest.mark.parametrize("run", [run_hook, run_shell_hook])
def test_stopped_engine_is_not_waited_for(engine: GaugeServer, run: HookRunner) -> None:
    engine.stop_listening()
    assert run(engine.url, most=60, quiet="5").wait(30) == 0


@pytest.mark.parametrize("run", [run_hook, run_shell_hook])
@pytest.mark.parametrize(("blocked", "caught"), [(0, 0x4000), (0x4000, 0), (0xFFFF_FFFC_0000_4000, 0x4A02)])
def test_starting_engine_gets_no_signal_that_it_would_lose(
    engine: GaugeServer, run: HookRunner, blocked: int, caught: int, tmp_path: Path
) -> None:
    engine.stop_listening()
    status, after = tmp_path / "status", tmp_path / "after"
    os.mkfifo(status)
    process = run(engine.url, most=60, quiet="5", status=str(status))
    for masks in [(0, 0), (0xFFFF_FFFC_0000_BFFF, 0x1_8002), (blocked, caught)]:
        with status.open("w") as page:  # waits for a look of the hook
            os.mkfifo(after)
            after.rename(status)
            page.write(f"SigQ:\t4/4000\nSigBlk:\t{masks[0]:016x}\nSigIgn:\t{0x5001:016x}\nSigCgt:\t{masks[1]:016x}\n")
    assert process.wait(30) == 0


def test_worker_polls_its_leader_without_proxy(engine: GaugeServer) -> None:
    url = engine.url.replace("127.0.0.1", "$LWS_LEADER_ADDRESS")
    env = {"LWS_LEADER_ADDRESS": "127.0.0.1", "http_proxy": "http://192.0.2.1:3128"}
    assert run_hook(url, most=60, quiet="0", env=env).wait(30) == 0
    assert engine.asked.is_set()


def test_engine_without_known_gauges_gets_a_fixed_delay() -> None:
    assert PreStopDrain().prestop_hook(300) == {"sleep": {"seconds": 10}}


def lines_of_patched(url: str, patch: str) -> list[str]:
    """Returns what the script prints to its end, after a patch of its functions."""
    command = PreStopDrain(url, (GAUGE,)).prestop_hook(60)["exec"]["command"]
    command[0], command[2], command[5] = sys.executable, patch + DRAIN_SCRIPT, "0"
    done = subprocess.run(command, env={}, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.splitlines()


def test_missing_leader_name_ends_the_wait_and_failed_lookup_does_not() -> None:
    looks = """
import socket
answers = [socket.EAI_AGAIN, socket.EAI_AGAIN, socket.EAI_NONAME]
def look(name, *_, **__):
    if name == "kubernetes.default":
        raise socket.gaierror(socket.EAI_AGAIN, "no")
    print("looked", flush=True)
    raise socket.gaierror(answers.pop(0), "no")
socket.getaddrinfo = look
"""
    assert lines_of_patched("http://leader.group:8000/metrics", looks) == ["looked"] * 3


def test_lookup_retry_of_a_local_name_server_means_leader_is_gone() -> None:
    looks = """
import socket
def look(name, *_, **__):
    print("looked at", name, flush=True)
    if name == "kubernetes.default":
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("10.96.0.1", 443))]
    raise socket.gaierror(socket.EAI_AGAIN, "no")
socket.getaddrinfo = look
"""
    lines = lines_of_patched("http://leader.group:8000/metrics", looks)
    assert lines == ["looked at leader.group", "looked at kubernetes.default"]


def test_unreachable_leader_ends_the_wait_and_a_timeout_does_not() -> None:
    connects = """
import errno, socket
answers = [errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH]
def connect(*_, **__):
    print("asked", flush=True)
    raise OSError(answers.pop(0), "no")
socket.create_connection = connect
"""
    assert lines_of_patched("http://192.0.2.1:8000/metrics", connects) == ["asked"] * 3
