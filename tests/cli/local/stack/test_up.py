"""`fairlead up` with real engines, Redis and gateway, and a stop that leaves nothing behind."""

import functools
import os
import pty
import select
import socket
import subprocess
import sys
import tempfile
import termios
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from signal import SIGHUP, SIGINT, SIGKILL, SIGTERM, Signals

import httpx
import openai
import pytest

from fairlead_testing.local_stack import SMALL_MANIFEST, LocalStack, StackFootprint
from fairlead_testing.processes import block_until, descendants, is_alive, is_listening

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc"),
    pytest.mark.timeout(300),
]
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Why is the sky blue?"}]}


@pytest.fixture
def up(tmp_path: Path) -> Iterator[LocalStack]:
    with LocalStack(tmp_path, "--speed", "20") as process:
        yield process.wait_ready()


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack of all tests that only ask it."""
    with LocalStack(tmp_path_factory.mktemp("up"), "--speed", "20") as process:
        yield process.wait_ready()


@functools.cache
def client() -> httpx.Client:
    """One client for all requests, each with a connection of its own."""
    return httpx.Client(timeout=60, trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))


def post_chat(up: LocalStack, **fields: object) -> httpx.Response:
    return client().post(f"{up.url}/v1/chat/completions", json={**QUESTION, **fields})


def small_manifest(folder: Path) -> str:
    """Writes a model with two engines; the bundled example has eight."""
    (folder / "model.yaml").write_text(SMALL_MANIFEST)
    return str(folder / "model.yaml")


def assert_leaves_nothing(up: LocalStack, number: Signals) -> None:
    footprint = StackFootprint(up)
    up.signal(number)
    assert up.wait_exit() == (-number if number == SIGKILL else 0)
    block_until(footprint.is_gone, f"no process, no port and no directory is left after {number.name}")


@pytest.mark.usefixtures("new_interpreters")
def test_client_streams_and_ctrl_c_leaves_no_process(up: LocalStack) -> None:
    footprint = StackFootprint(up)
    assert len(footprint.ports) == 4
    assert all(is_listening(port) for port in footprint.ports)
    with openai.OpenAI(base_url=f"{up.url}/v1", api_key="none", max_retries=0) as user:
        pieces = list(user.chat.completions.create(stream=True, max_tokens=12, **QUESTION))  # type: ignore[call-overload]  # keywords from a dict
    assert len([piece for piece in pieces if piece.choices and piece.choices[0].delta.content]) == 12
    with httpx.stream(
        "POST",
        f"{up.url}/v1/chat/completions",
        json={**QUESTION, "stream": True, "max_tokens": 400, "ignore_eos": True},
        trust_env=False,
    ) as answer:
        lines = answer.iter_lines()
        next(line for line in lines if '"content"' in line)
        up.signal(SIGINT)
        assert list(lines)[-2:] == ["data: [DONE]", ""], "the request in flight finishes"
    assert up.wait_exit() == 0
    block_until(footprint.is_gone, "no process, no port and no directory is left")
    assert sum(line.startswith("ready") for line in up.lines) == 1
    assert any("curl" in line for line in up.lines)
    assert any("from openai import OpenAI" in line for line in up.lines)
    assert any(f"{up.manage}/" in line for line in up.lines)


def test_sigkill_leaves_no_process(up: LocalStack) -> None:
    assert_leaves_nothing(up, SIGKILL)


def test_signal_during_start_leaves_no_process(tmp_path: Path) -> None:
    with LocalStack(tmp_path) as starting:
        block_until(lambda: len(starting.children()) >= 2, "the first processes run")
        pids = set(starting.children())
        starting.signal(SIGINT)
        assert starting.wait_exit() == 0
    assert not any(line.startswith("ready") for line in starting.lines)
    block_until(lambda: not any(map(is_alive, pids)), "all processes end")
    assert not list(tmp_path.glob("fairlead/up-*"))


def test_requests_succeed_while_a_killed_engine_restarts_and_sigterm_leaves_nothing(up: LocalStack) -> None:
    victim = up.pid_of("fairlead_sim engine")
    with ThreadPoolExecutor(4) as pool:  # traffic as it was before: retries are bounded by a share of it
        before = list(pool.map(lambda _: post_chat(up, max_tokens=1), range(60)))
    os.kill(victim, SIGKILL)
    after = [post_chat(up, max_tokens=1) for _ in range(40)]
    assert [answer.text for answer in (*before, *after) if answer.status_code != 200] == []
    block_until(lambda: returns(up) == 1, "the engine is back")
    block_until(lambda: up.command("local", "status").returncode == 0, "status finds all engines again")
    assert victim not in descendants(up.process.pid)
    assert_leaves_nothing(up, SIGTERM)


def test_killed_redis_indexer_or_gateway_is_restarted_and_sighup_leaves_no_process(up: LocalStack) -> None:
    for count, part in enumerate(("-server ", "-m fairlead_kvstore ", "-m fairlead_gateway "), start=1):
        os.kill(up.pid_of(part), SIGKILL)
        if part != "-m fairlead_gateway ":
            answer = post_chat(up, max_tokens=3)
            assert answer.status_code == 200, f"without {part}: {answer.text}"
        block_until(lambda count=count: returns(up) == count, f"{part} is back")  # type: ignore[misc]
        assert post_chat(up, max_tokens=3).status_code == 200, f"after {part}"
    assert_leaves_nothing(up, SIGHUP)


def returns(up: LocalStack) -> int:
    return sum("is ready again" in line for line in up.lines)


@pytest.mark.parametrize("flag", ["--listen", "--manage"])
def test_busy_port_names_its_flag_and_starts_nothing(tmp_path: Path, flag: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        addresses = {"--listen": ":0", "--manage": ":0", flag: f"127.0.0.1:{port}"}
        command = [sys.executable, "-m", "fairlead_cli", "up", *(word for pair in addresses.items() for word in pair)]
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
    assert done.returncode == 2
    assert f"{flag}: 127.0.0.1:{port} is already in use" in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())


def test_port_of_another_stack_names_its_pid(shared: LocalStack) -> None:
    done = shared.command("up", "--listen", shared.url.removeprefix("http://"))
    assert done.returncode == 2
    assert f"by the fairlead up with pid {shared.state()['pid']}" in done.stderr
    assert "--listen :0 --manage :0" in done.stderr


def test_invalid_manifest_names_its_line_and_starts_nothing(tmp_path: Path) -> None:
    with LocalStack(tmp_path, manifest="apiVersion: serving.fairlead.io/v1alpha1\nkind: ModelDeploymint\n") as wrong:
        assert wrong.wait_exit() == 2
    assert "model.yaml:2: kind:" in "".join(wrong.lines)
    assert not list(tmp_path.glob("fairlead/up-*"))


def test_engines_that_cannot_start_end_the_command_with_last_lines(tmp_path: Path) -> None:
    text = """
apiVersion: serving.fairlead.io/v1alpha1
kind: ModelDeployment
metadata: {name: tiny}
spec:
  model: {uri: "hf://org/tiny"}
  engine: {type: Sim, args: ["--no-such-switch"]}
  pools: [{acceleratorClassName: cpu}]
"""
    with LocalStack(tmp_path, manifest=text) as failing:
        assert failing.wait_exit() == 1
    output = "".join(failing.lines)
    assert "main-0 does not start" in output
    assert "--no-such-switch" in output
    assert not list(tmp_path.glob("fairlead/up-*"))


def test_closed_output_ends_the_stack(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "fairlead_cli", "up", small_manifest(tmp_path), "--listen", ":0", "--manage", ":0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    ) as process:
        assert process.stdout is not None
        next(line for line in process.stdout if line.startswith("ready"))
        pids = descendants(process.pid)
        engine = next(pid for pid in pids if b"fairlead_sim" in Path(f"/proc/{pid}/cmdline").read_bytes())
        process.stdout.close()
        os.kill(engine, SIGKILL)  # an event, which cannot be printed
        process.wait(60)
    block_until(lambda: not any(map(is_alive, pids)), "nothing is left")


def test_chat_and_status_find_the_running_stack(shared: LocalStack) -> None:
    answer = shared.command("chat", "tiny", "--message", "Why?", "--max-tokens", "4")
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout.strip()
    status = shared.command("local", "status")
    assert status.returncode == 0, status.stdout + status.stderr
    assert "tiny  dual-hash  2/2 ready" in status.stdout
    assert shared.url in status.stdout
    assert "→ main-" in status.stdout
    assert shared.command("local", "status", "other").returncode == 2


def assert_index_is_used(up: LocalStack) -> None:
    def states() -> list[str | None]:
        models = client().get(f"{up.manage}/api/fleet").raise_for_status().json()["models"]
        indexes = [instance["index"] for model in models for instance in model["instances"]]
        return [None if index is None else index["state"] for index in indexes]

    block_until(lambda: len(states()) == 2 and None not in states(), "the gateway follows both engines")
    assert post_chat(up, max_tokens=4).status_code == 200
    block_until(lambda: "index" in states(), "the gateway knows what an engine caches")


STAND_IN = f"""#!{sys.executable}
import json, os, sys

arguments = dict(zip(sys.argv[3::2], sys.argv[4::2]))
config = json.loads(sys.argv[-1].partition("=")[2])
os.execv(sys.executable, [
    sys.executable, "-m", "fairlead_sim", "engine", "--listen", "127.0.0.1:" + arguments["--port"],
    "--served-model-name", arguments["--served-model-name"],
    "--kv-events", config["endpoint"], "--kv-replay", config["replay_endpoint"],
])
"""
"""A program `vllm` that is a simulated engine."""


def test_gateway_uses_the_index_of_real_engines(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text(STAND_IN)
    program.chmod(0o700)
    with tempfile.TemporaryDirectory(prefix="up-", dir="/tmp") as runtime:
        path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
        with LocalStack(Path(runtime), "--real", environment=path).wait_ready() as up:
            assert_index_is_used(up)
            (folder,) = Path(runtime).glob("fairlead/up-*")
            assert folder.stat().st_mode & 0o777 == 0o700
            block_until(lambda: len(list(folder.glob("*.events"))) == 2, "both engines publish their events")
            block_until(lambda: up.command("index", "stats").returncode == 0, "the indexer writes its first batch")
            verified = up.command("index", "verify")
            assert verified.returncode == 0, verified.stdout + verified.stderr


def test_two_stacks_run_side_by_side(shared: LocalStack) -> None:
    with LocalStack(shared.runtime).wait_ready() as second:
        assert {shared.url, shared.manage}.isdisjoint({second.url, second.manage})
        assert second.url in second.command("local", "status").stdout
    block_until(lambda: shared.url in shared.command("local", "status").stdout, "the first one is found again")


def test_terminal_shows_the_live_view_and_is_restored(tmp_path: Path) -> None:
    terminal, child_terminal = pty.openpty()
    termios.tcsetwinsize(child_terminal, (40, 100))
    before = termios.tcgetattr(child_terminal)
    environment = {**os.environ, "TERM": "xterm-256color", "XDG_RUNTIME_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "fairlead_cli", "up", small_manifest(tmp_path), "--listen", ":0", "--manage", ":0"]
    process = subprocess.Popen(
        command, stdin=child_terminal, stdout=child_terminal, stderr=child_terminal, env=environment
    )
    screen = bytearray()
    try:
        read_until(terminal, screen, b"Ctrl-C stops everything")
        read_until(terminal, screen, b"status page")
        read_until(terminal, screen, "● Ready".encode())
        process.send_signal(SIGINT)
        read_until(terminal, screen, b"nothing of it runs any more")
        assert process.wait(60) == 0
        assert termios.tcgetattr(child_terminal) == before
        assert screen.count(b"\x1b[?25h") == screen.count(b"\x1b[?25l") == 1  # the cursor is hidden, and shown again
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
        os.close(child_terminal)
    assert b"Traceback" not in screen


def read_until(terminal: int, screen: bytearray, expected: bytes) -> None:
    while expected not in screen:
        ready, _, _ = select.select([terminal], [], [], 60)
        assert ready, f"{expected!r} never came: {bytes(screen)!r}"
        screen += os.read(terminal, 65_536)
