"""Programs as forks behave as programs in new interpreters do, and so do their ends."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import uvloop

from fairlead_testing.forks.process import PROGRAMS, SERVER_MODULE, ForkingPopen, Program, new_interpreters
from fairlead_testing.processes import block_until, command_line, descendants, is_alive

PROBE = "probe_of_forks"
FORKED = subprocess.Popen is ForkingPopen
Probe = Callable[[str], tuple[str, ...]]
needs_forks = pytest.mark.skipif(not FORKED, reason="forks are off")


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Probe:
    """Returns a function that makes a program of some code; its folder is the current one."""
    monkeypatch.setitem(PROGRAMS, PROBE, Program((), has_copy=False))
    monkeypatch.chdir(tmp_path)

    def write(code: str) -> tuple[str, ...]:
        (tmp_path / f"{PROBE}.py").write_text(f"import os, signal, sys\n{code}\n")
        return (sys.executable, "-m", PROBE)

    return write


@pytest.fixture(params=[pytest.param("fork", marks=needs_forks), "interpreter"])
def start(request: pytest.FixtureRequest) -> Iterator[str]:
    """Starts programs in one of the two ways."""
    with new_interpreters() if request.param == "interpreter" else contextlib.nullcontext():
        yield request.param


def is_fork(pid: int) -> bool:
    """Returns True if a process got the first environment of a fork server."""
    return b"OPENBLAS_NUM_THREADS=1" in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")


def server_pids() -> list[int]:
    """Returns the fork servers of this process, but for that of compiled programs."""
    children = map(int, Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
    servers = [pid for pid in children if SERVER_MODULE in command_line(pid)]
    return [pid for pid in servers if b"PYTHONSAFEPATH" not in Path(f"/proc/{pid}/environ").read_bytes()]


@needs_forks
def test_program_is_a_fork_and_a_child_of_this_process(probe: Probe) -> None:
    command = probe("print(os.getppid(), __name__, flush=True); sys.stdin.read()")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"{os.getpid()} __main__\n"
        assert is_fork(process.pid)
        assert tuple(command_line(process.pid)) == (*command, "")
        process.communicate("")
    assert process.returncode == 0
    assert not Path(f"/proc/{process.pid}").exists()


def test_program_in_a_new_interpreter_is_no_fork(probe: Probe) -> None:
    with new_interpreters():
        done = subprocess.run(probe("print(os.environ.get('X'), sys.orig_argv[2])"), stdout=subprocess.PIPE, text=True)
    assert done.stdout == f"None {PROBE}\n"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("", 0),
        ("sys.exit(3)", 3),
        ("sys.exit(None)", 0),
        ("sys.exit('a message')", 1),
        ("1 / 0", 1),
        ("os._exit(7)", 7),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.kill(os.getpid(), signal.SIGINT)", -signal.SIGINT),
        ("import threading; threading.Timer(0.01, os._exit, [9]).start()", 9),
    ],
)
@pytest.mark.usefixtures("start")
def test_exit_code(code: str, expected: int, probe: Probe) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        code = f"signal.signal({int(number)}, signal.{'SIG_DFL' if number == signal.SIGTERM else 'default_int_handler'})\n{code}"
    done = subprocess.run(probe(code), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == expected
    assert ("a message" in done.stderr) == ("message" in code)
    assert ("ZeroDivisionError" in done.stderr) == ("1 / 0" in code)
    assert "fork_server" not in done.stderr


@pytest.mark.usefixtures("start")
def test_arguments_environment_folder_and_streams(probe: Probe, tmp_path: Path) -> None:
    code = "print(sys.argv[1:], os.environ['X'], 'HOME' in os.environ, os.getcwd(), sys.stdin.read()); print('é', file=sys.stderr)"
    command = probe(code)
    environ = {name: value for name, value in os.environ.items() if name != "HOME"} | {"X": "ü"}
    done = subprocess.run([*command, "a b"], input="given", capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.stdout == f"['a b'] ü False {tmp_path} given\n"
    assert done.stderr == "é\n"
    done = subprocess.run(command, input="", stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environ)
    assert sorted(done.stdout.splitlines()) == sorted([f"[] ü False {tmp_path} ", "é"])


@pytest.mark.usefixtures("start")
def test_output_without_a_line_end_and_handlers_of_the_end_are_not_lost(probe: Probe) -> None:
    code = "import atexit, threading; atexit.register(print, 'last', end=''); threading.Thread(target=lambda: print('one')).start()"
    assert subprocess.run(probe(code), stdout=subprocess.PIPE, text=True).stdout == "one\nlast"


@pytest.mark.usefixtures("start")
def test_program_has_the_descriptors_that_it_was_given_and_no_others(probe: Probe) -> None:
    reading, writing = os.pipe()
    code = f"print(sorted(int(name) for name in os.listdir('/proc/self/fd'))); os.write({writing}, b'x')"
    done = subprocess.run(probe(code), pass_fds=[writing], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    os.close(writing)
    with open(reading, "rb") as pipe:
        assert pipe.read() == b"x"
    descriptors = [int(name) for name in done.stdout.strip("[]\n").split(",")]
    assert [fd for fd in descriptors if Path("/proc/self/fd").exists()][:3] == [0, 1, 2]
    assert set(descriptors) - {0, 1, 2, writing} == {max(set(descriptors) - {writing})}  # that of the folder itself


@pytest.mark.usefixtures("start")
def test_signals_are_ignored_or_not_as_in_this_process(probe: Probe) -> None:
    code = "print([signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE)])\n"
    code += "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, signal.pthread_sigmask(0, []))"
    previous = [
        signal.signal(number, kind) for number, kind in ((signal.SIGUSR1, signal.SIG_IGN), (signal.SIGUSR2, print))
    ]
    interrupt = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        done = subprocess.run(probe(code), stdout=subprocess.PIPE, text=True)
    finally:
        for number, handler in zip((signal.SIGUSR1, signal.SIGUSR2), previous, strict=True):
            signal.signal(number, handler)
        signal.signal(signal.SIGINT, interrupt)
    ignored, default = signal.SIG_IGN, signal.SIG_DFL
    assert done.stdout == f"{[ignored, default, ignored]}\nTrue set()\n"


@pytest.mark.usefixtures("start")
def test_new_session_holds_at_once(probe: Probe) -> None:
    process = subprocess.Popen(probe("signal.pause()"), start_new_session=True)
    assert os.getsid(process.pid) == process.pid
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.usefixtures("start")
def test_missing_folder_is_an_error_of_the_caller(probe: Probe, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        subprocess.run(probe(""), cwd=tmp_path / "missing")


@needs_forks
def test_each_fork_draws_other_random_numbers(probe: Probe) -> None:
    command = probe("import random; print(random.random())")
    outputs = {subprocess.run(command, stdout=subprocess.PIPE, text=True).stdout for _ in range(3)}
    assert len(outputs) == 3


@needs_forks
def test_variable_of_the_interpreter_starts_a_new_one(probe: Probe) -> None:
    environ = {**os.environ, "PYTHONHASHSEED": "1"}
    code = "print(hash('a'), sys.flags.hash_randomization)"
    outputs = {subprocess.run(probe(code), stdout=subprocess.PIPE, env=environ).stdout for _ in range(2)}
    assert len(outputs) == 1


@needs_forks
def test_fork_outlives_its_server_and_the_next_has_a_new_one(probe: Probe) -> None:
    command = probe("sys.exit(int(sys.stdin.read()))")
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        (old,) = server_pids()
        os.kill(old, signal.SIGKILL)
        block_until(lambda: not is_alive(old), "the server has ended")
        assert subprocess.run(command, input="4", text=True).returncode == 4
        process.communicate("5")
    assert process.returncode == 5
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True) as process:
        assert is_fork(process.pid)
        process.communicate("6")
    assert server_pids() != [old]
    assert not Path(f"/proc/{old}").exists()


@needs_forks
def test_descriptors_of_this_process_stay_as_many(probe: Probe) -> None:
    command = probe("")
    subprocess.run(command)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        subprocess.run(command, capture_output=True)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_process_of_asyncio(loop: Callable[[], asyncio.AbstractEventLoop], start: str, probe: Probe) -> None:
    async def run() -> None:
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *probe("print(sys.stdin.read()); sys.exit(4)"), stdin=pipe, stdout=pipe
        )
        assert (await process.communicate(b"given"))[0] == b"given\n"
        assert process.returncode == 4
        process = await asyncio.create_subprocess_exec(
            *probe("print('ready', flush=True); signal.pause()"), stdout=pipe
        )
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
        assert is_fork(process.pid) == (start == "fork")
        process.kill()
        assert await process.wait() == -signal.SIGKILL
        assert await process.stdout.read() == b""

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(run())


@needs_forks
@pytest.mark.parametrize("compiled", ["0", "1"])
def test_children_of_a_fork_are_forks(compiled: str, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text("models: []\n")
    command = [
        sys.executable,
        "-m",
        "fairlead_gateway",
        "--fleet",
        str(tmp_path / "fleet.yaml"),
        "--listen",
        "127.0.0.1:0",
    ]
    environ = os.environ | {"FAIRLEAD_COMPILED": compiled}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline().startswith("ready ")
            pids = descendants(process.pid)
            modules = {command_line(pid)[2] for pid in pids}
            assert "fairlead_gateway.worker.__main__" in modules
            assert all(map(is_fork, pids))
            parents = {Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1] for pid in pids}
            assert parents == {str(process.pid)}
        finally:
            process.kill()
    block_until(lambda: not any(map(is_alive, pids)), "the gateway's processes have ended")


@needs_forks
@pytest.mark.parametrize("program", ["fairlead_autoscaler", "fairlead_cli", "fairlead_kvstore", "fairlead_operator"])
def test_server_has_one_thread_after_the_imports_of_a_program(program: str) -> None:
    done = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, text=True)
    assert done.stdout.lower().startswith("usage")
    assert all(len(os.listdir(f"/proc/{server}/task")) == 1 for server in server_pids())


@pytest.mark.parametrize("module", sorted({module for program in PROGRAMS.values() for module in program.imports}))
def test_modules_of_programs_exist(module: str) -> None:
    assert find_spec(module) is not None


@pytest.mark.parametrize("program", ["fairlead_autoscaler", "fairlead_cli", "fairlead_kvstore"])
@pytest.mark.usefixtures("new_interpreters")
def test_program_starts_in_a_new_interpreter(program: str) -> None:
    done = subprocess.run([sys.executable, "-m", program, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.lower().startswith("usage")


@pytest.mark.usefixtures("new_interpreters")
def test_operator_starts_in_a_new_interpreter(tmp_path: Path) -> None:
    environ = {**os.environ, "KUBECONFIG": str(tmp_path / "missing")}
    done = subprocess.run([sys.executable, "-m", "fairlead_operator"], stderr=subprocess.PIPE, text=True, env=environ)
    assert done.returncode == 2
    assert done.stderr.startswith("fairlead-operator: ")
