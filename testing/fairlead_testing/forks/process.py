"""Starts of the product's programs as forks: `subprocess.Popen`, and its form of asyncio.

After `install`, each start of `python -m PROGRAM` that a fork can replace is one, wherever the
command comes from: a test, a helper, or the product that runs in the test's process. All other
commands, and these inside `new_interpreters()`, start as always.

Without `install`, a `ForkingPopen` is a fork, and no other start is. `FAIRLEAD_TEST_FORKS=0` turns
forks off.

The programs of the product that a fork server can run, and the modules that each imports.
"""

import asyncio
import asyncio.base_subprocess
import atexit
import contextlib
import ctypes
import inspect
import os
import pickle
import platform
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

SERVER_MODULE = "fairlead_testing.forks"
"""A word of the command line of each fork server."""
_CHILD_EXEC = ("cli", "fairlead_cli", "local", "processes", "child_exec.py")
_STACK_VERBS = frozenset({"up", "demo", "replay"})
_INTERPRETER_PREFIXES = ("PYTHON", "LD_", "LC_", "LANG", "MALLOC_", "GLIBC_")
_EMULATED = frozenset({"PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"})

_GATEWAY = "fairlead_gateway"
_SUPERVISOR = f"{_GATEWAY}.supervisor"
_CLI = "fairlead_cli"

LENGTH_BYTES = 8
_MAX_FDS = 250

_CLONE_CALLS = {"x86_64": 56, "aarch64": 220}
_CLONE_PARENT = 0x8000
_CLONE_CHILD_CLEARTID = 0x200000
_CLONE_CHILD_SETTID = 0x1000000
_PR_GET_TID_ADDRESS = 40

_ARGUMENT_AREA = 16_384
"""Bytes of a server's command line, which forks overwrite with theirs."""

_LIMIT_BYTES = 64 * 1024
_START_INTERPRETER = subprocess.Popen
_CREATE_SUBPROCESS = asyncio.create_subprocess_exec
_SIGNATURE = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
_PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
_UNSUPPORTED = {"preexec_fn": None, "shell": False, "gid": None, "gids": None, "uid": None, "umask": -1}


@dataclass(frozen=True, slots=True)
class Program:
    """A program that runs as `python -m NAME`.

    imports: modules that the server imports before its first fork.
    children: programs that this program starts itself.
    has_copy: it may run from the compiled copy of the data plane.
    """

    imports: tuple[str, ...]
    children: tuple[str, ...] = ()
    has_copy: bool = True


PROGRAMS: Mapping[str, Program] = {
    "fairlead_sim": Program(
        ("fairlead_sim.__main__", "fairlead_sim.server.command_line", "fairlead_sim.server.process", "uvloop")
    ),
    "fairlead_gateway": Program(
        (
            *(f"{_GATEWAY}.__main__", f"{_SUPERVISOR}.supervisor", f"{_SUPERVISOR}.decision_publisher"),
            *(
                f"{_SUPERVISOR}.file_parsing.client",
                f"{_GATEWAY}.peers.supervisor.peer_sync",
                f"{_GATEWAY}.usage.supervisor",
            ),
            *(f"{_SUPERVISOR}.management.api", f"{_GATEWAY}.tenants.supervisor.access_service"),
        ),
        ("fairlead_gateway.worker.__main__", f"{_SUPERVISOR}.file_parsing.process"),
    ),
    "fairlead_gateway.worker.__main__": Program(("fairlead_gateway.worker.__main__", "uvloop")),
    f"{_SUPERVISOR}.file_parsing.process": Program((f"{_SUPERVISOR}.file_parsing.process",)),
    "fairlead_kvstore": Program(("fairlead_kvstore.__main__", "fairlead_kvstore.indexer.cli", "uvloop")),
    "fairlead_autoscaler": Program(("fairlead_autoscaler.__main__", "uvloop")),
    "fairlead_operator": Program(("fairlead_operator.__main__", "fairlead_operator.manager", "uvloop")),
    "fairlead_cli": Program(
        (
            *(f"{_CLI}.__main__", f"{_CLI}.app", f"{_CLI}.cluster.status.command"),
            *(f"{_CLI}.local.stack.launch", f"{_CLI}.local.processes.child_exec"),
            *("fairlead.kube.client", "cyclopts.help", "rich.markdown"),
        ),
        ("fairlead_cli", "fairlead_sim", "fairlead_gateway", "fairlead_kvstore", "fairlead_autoscaler"),
    ),
}


def program_command(argv: Sequence[str]) -> tuple[str, ...] | None:
    """Returns the name of the program and its arguments; None if this command is no known program.

    Knows `python -m NAME …`, also behind the first program of a child of `fairlead up`.
    """
    words = tuple(argv)
    if is_child_exec(words):
        words = words[6:]
    if len(words) < 3 or words[:2] != (sys.executable, "-m") or words[2] not in PROGRAMS:
        return None
    return words[2:]


def is_child_exec(argv: Sequence[str]) -> bool:
    """Returns True if the command runs another through `child_exec.py`."""
    return (
        tuple(argv[:3]) == (sys.executable, "-I", "-S")
        and len(argv) > 6
        and Path(argv[3]).parts[-len(_CHILD_EXEC) :] == _CHILD_EXEC
    )


def needed_imports(command: Sequence[str]) -> list[str]:
    """Returns the modules of a program, and of those that it starts."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [command[0]]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            found.update(dict.fromkeys(PROGRAMS[name].imports))
            if name != command[0] or starts_programs(command):
                waiting += PROGRAMS[name].children
    return list(found)


def starts_programs(command: Sequence[str]) -> bool:
    """Returns True if the program starts other programs."""
    return bool(PROGRAMS[command[0]].children) and (
        command[0] != "fairlead_cli" or bool(_STACK_VERBS.intersection(command[1:2]))
    )


def interpreter_variables(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns the variables that an interpreter reads when it starts, so that no fork can."""
    names = {os.fsencode(name) for name in _EMULATED}
    prefixes = tuple(map(os.fsencode, _INTERPRETER_PREFIXES))
    return {name: value for name, value in environ.items() if name.startswith(prefixes) and name not in names}


def copy_variables(environ: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Returns the variables by which a program finds the compiled copy of the data plane, if there
    is one.

    Why: gateways and indexers give them to their processes. A fork server that has them can fork
    these, too.
    """
    names = (b"FAIRLEAD_COMPILED", b"FAIRLEAD_CACHE", b"HOME", b"PYTHONPATH", b"PYTHONSAFEPATH")
    return _copy_variables(tuple((name, environ[name]) for name in names if name in environ))


@cache
def _copy_variables(given: tuple[tuple[bytes, bytes], ...]) -> dict[bytes, bytes]:
    """Why cached: the copy is named by a digest of all sources."""
    from fairlead.runtime.compiled_build import worker_environment

    environ = {os.fsdecode(name): os.fsdecode(value) for name, value in given}
    return {
        os.fsencode(name): os.fsencode(value)
        for name, value in worker_environment(environ).items()
        if environ.get(name) != value
    }


@dataclass(frozen=True, slots=True)
class ForkRequest:
    """One start of a program.

    argv: the whole command line.
    command: name of the program and its arguments, as `program_command` returns them.
    imports: modules that the server imports before.
    starts_programs: the program starts other programs of the product.
    fds: the numbers that the descriptors get that come with the request.
    """

    argv: tuple[str, ...]
    command: tuple[str, ...]
    imports: tuple[str, ...]
    starts_programs: bool
    environ: dict[bytes, bytes]
    folder: str
    fds: tuple[int, ...]
    ignored_signals: frozenset[int]
    blocked_signals: frozenset[int]
    file_limits: tuple[int, int]
    new_session: bool
    process_group: int


def send_request(channel: socket.socket, request: ForkRequest, fds: Sequence[int]) -> int:
    """Returns the process id of a fork; a negative error number if the server cannot fork.

    After any exception, the channel is of no more use.
    """
    data = pickle.dumps(request)
    header = len(data).to_bytes(LENGTH_BYTES, "big")
    socket.send_fds(channel, [header], fds)
    channel.sendall(data)
    return int.from_bytes(_receive(channel, LENGTH_BYTES), "big", signed=True)


def receive_request(channel: socket.socket) -> tuple[ForkRequest, list[int]]:
    """Returns the next request, and its descriptors. Raises EOFError when the channel closes."""
    header, fds, _, _ = socket.recv_fds(channel, LENGTH_BYTES, _MAX_FDS)
    header += _receive(channel, LENGTH_BYTES - len(header))
    request = pickle.loads(_receive(channel, int.from_bytes(header, "big")))
    assert isinstance(request, ForkRequest)
    return request, fds


def _receive(channel: socket.socket, size: int) -> bytes:
    """Returns exactly `size` bytes. Raises EOFError if the channel ends before."""
    data = bytearray()
    while len(data) < size:
        try:
            part = channel.recv(size - len(data))
        except ConnectionResetError:
            part = b""
        if not part:
            raise EOFError
        data += part
    return bytes(data)


def can_clone() -> bool:
    """Returns True if this system can make a fork the child of another process."""
    return sys.platform == "linux" and platform.machine() in _CLONE_CALLS and bool(_thread_id_address())


def clone_sibling() -> int:
    """Forks like `os.fork`, but the child's parent is this process's parent.

    Returns the child's process id, and 0 in the child.
    """
    call = ctypes.PyDLL(None, use_errno=True).syscall
    address = ctypes.c_void_p(_thread_id_address())
    flags = ctypes.c_long(_CLONE_PARENT | _CLONE_CHILD_SETTID | _CLONE_CHILD_CLEARTID | signal.SIGCHLD)
    number, null = ctypes.c_long(_CLONE_CALLS[platform.machine()]), ctypes.c_void_p(0)
    before, in_parent, in_child = (
        ctypes.pythonapi.PyOS_BeforeFork,
        ctypes.pythonapi.PyOS_AfterFork_Parent,
        ctypes.pythonapi.PyOS_AfterFork_Child,
    )
    before()
    pid = int(
        call(number, flags, null, null, address, address)
    )  # the two architectures differ in the order of the last
    if pid == 0:
        in_child()
        return 0
    in_parent()
    if pid < 0:
        raise OSError(ctypes.get_errno(), "clone")
    return pid


def _thread_id_address() -> int:
    """Returns where the C library keeps the main thread's id; 0 if that is unknown.

    The kernel writes the id of a fork there.
    """
    address = ctypes.c_void_p()
    failed = ctypes.CDLL(None).prctl(_PR_GET_TID_ADDRESS, ctypes.byref(address), 0, 0, 0)
    return 0 if failed else address.value or 0


_IS_AVAILABLE = (
    os.environ.get("FAIRLEAD_TEST_FORKS") != "0" and "COVERAGE_PROCESS_START" not in os.environ and can_clone()
)
_allowed: ContextVar[bool] = ContextVar("allowed", default=True)


class _Server:
    """A fork server of this process.

    process: the server; None in a fork.
    """

    def __init__(self, channel: socket.socket, process: subprocess.Popen[bytes] | None = None) -> None:
        self.channel = channel
        self.process = process
        self.owner = os.getpid()
        self.lock = threading.Lock()


_servers: dict[frozenset[tuple[bytes, bytes]], _Server] = {}
"""Servers by the variables of their interpreters: one, and one for programs without the compiled
copy.
"""
_own = interpreter_variables(os.environb)
_starting = threading.Lock()
_nested: _Server | None = None
"""The server of this fork."""


def install() -> None:
    if _IS_AVAILABLE:
        _replace_functions()


def install_nested(channel: int, environ: Mapping[bytes, bytes]) -> None:
    """Makes this fork start programs by a server of its own."""
    global _nested
    _nested = _Server(socket.socket(fileno=channel))
    _servers[frozenset(interpreter_variables(environ).items())] = _nested
    _replace_functions()


def nested_descriptor() -> int:
    return -1 if _nested is None else _nested.channel.fileno()


@contextlib.contextmanager
def new_interpreters() -> Iterator[None]:
    """Makes each start of a program a new interpreter until the block ends."""
    token = _allowed.set(False)
    try:
        yield
    finally:
        _allowed.reset(token)


class ForkingPopen(subprocess.Popen[Any]):
    """A process that may be a fork; see this module."""

    def _execute_child(self, *values: Any) -> None:
        given = _SIGNATURE.bind(self, *values).arguments
        if not self._fork(given):
            super()._execute_child(*values)  # type: ignore[misc]

    def _fork(self, given: Mapping[str, Any]) -> bool:
        """Returns False if a new interpreter must run this command."""
        argv = _argv(given["args"])
        environ = _environment(given["env"])
        command = program_command(argv)
        if command is None or not (
            _IS_AVAILABLE
            and _allowed.get()
            and given["close_fds"]
            and given["executable"] in (None, sys.executable)
            and all(given[name] == value for name, value in _UNSUPPORTED.items())
        ):
            return False
        if _nested is None:
            if interpreter_variables(environ) != _own:
                return False
            if PROGRAMS[command[0]].has_copy:
                environ |= copy_variables(environ)
        server = _running_server(interpreter_variables(environ))
        folder = os.path.abspath(given["cwd"] or os.getcwd())
        if server is None or not os.path.isdir(folder):
            return False
        inputs = (given["p2cread"], given["c2pwrite"], given["errwrite"])
        fds = {number: number if fd == -1 else fd for number, fd in enumerate(inputs)}
        fds |= {fd: fd for fd in map(int, given["pass_fds"])}
        request = ForkRequest(
            argv=argv,
            command=command,
            imports=tuple(needed_imports(command)),
            starts_programs=starts_programs(command),
            environ=environ,
            folder=folder,
            fds=tuple(fds),
            ignored_signals=frozenset(map(int, _ignored_signals())),
            blocked_signals=frozenset(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, ()))),
            file_limits=resource.getrlimit(resource.RLIMIT_NOFILE),
            new_session=given["start_new_session"],
            process_group=given.get("process_group", -1),
        )
        pid = _request(server, request, list(fds.values()))
        if pid is None:
            return False
        self.pid = pid
        self._child_created = True
        self._close_pipe_fds(*(given[name] for name in _PIPES))  # type: ignore[attr-defined]
        return True


class _Transport(asyncio.base_subprocess.BaseSubprocessTransport):
    """The transport of a process on any event loop that reads pipes."""

    def _start(self, args: Any, *values: Any, **options: Any) -> None:
        self._proc = process = ForkingPopen(args, *values, **options)
        fd, loop = os.pidfd_open(process.pid), self._loop

        def on_exit() -> None:
            loop.remove_reader(fd)
            os.close(fd)
            self._process_exited(process.wait())
            # As uvloop does, without the end of pipes that the process's own children may have.
            waiters, self._exit_waiters = self._exit_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(process.returncode)

        loop.add_reader(fd, on_exit)


async def _create_subprocess(program: Any, *args: Any, **options: Any) -> asyncio.subprocess.Process:
    """Stands in for `asyncio.create_subprocess_exec`."""
    if not _allowed.get() or program_command(_argv((program, *args))) is None:
        return await _CREATE_SUBPROCESS(program, *args, **options)
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()
    pipes = {name: options.pop(name, None) for name in ("stdin", "stdout", "stderr")}
    protocol = asyncio.subprocess.SubprocessStreamProtocol(limit=options.pop("limit", _LIMIT_BYTES), loop=loop)
    transport = _Transport(loop, protocol, (program, *args), False, bufsize=0, waiter=waiter, **pipes, **options)
    try:
        await waiter
    except BaseException:
        transport.close()
        await transport._wait()
        raise
    return asyncio.subprocess.Process(transport, protocol, loop)


def _replace_functions() -> None:
    subprocess.Popen = ForkingPopen  # type: ignore[misc]
    asyncio.create_subprocess_exec = asyncio.subprocess.create_subprocess_exec = _create_subprocess


def _argv(args: Any) -> tuple[str, ...]:
    """Returns the words of a command; none if it is no sequence of text and paths."""
    if isinstance(args, str | bytes | os.PathLike) or not isinstance(args, Sequence):
        return ()
    words = [os.fspath(word) for word in args if isinstance(word, str | os.PathLike)]
    return tuple(words) if len(words) == len(args) else ()


def _environment(environ: Mapping[Any, Any] | None) -> dict[bytes, bytes]:
    if environ is None:
        return dict(os.environb)
    return {os.fsencode(name): os.fsencode(value) for name, value in environ.items()}


def _ignored_signals() -> Iterator[int]:
    for number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:  # the interpreter's own
        if signal.getsignal(number) is signal.SIG_IGN:
            yield number


def _running_server(variables: Mapping[bytes, bytes]) -> _Server | None:
    """Returns the server for programs with these variables; None where a fork cannot have them."""
    key = frozenset(variables.items())
    with _starting:
        if key not in _servers and _nested is None:
            _servers[key] = _start_server(variables)
        server = _servers.get(key)
        return server if server is not None and server.owner == os.getpid() else None


def _start_server(variables: Mapping[bytes, bytes]) -> _Server:
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-m", SERVER_MODULE, str(theirs.fileno()), "-" * _ARGUMENT_AREA]
    # Without threads of linear algebra, which a fork would not have.
    environ = {**os.environb, **variables, b"OPENBLAS_NUM_THREADS": b"1"}
    with theirs:
        null = subprocess.DEVNULL
        process = _START_INTERPRETER(command, stdin=null, stdout=null, pass_fds=[theirs.fileno()], env=environ)
    server = _Server(ours, process)
    atexit.register(_stop, server)
    return server


def _stop(server: _Server) -> None:
    """Ends a server of this process: it reads the end of its channel."""
    if os.getpid() == server.owner:
        server.channel.close()
        if server.process is not None:
            server.process.wait()


def _request(server: _Server, request: ForkRequest, fds: list[int]) -> int | None:
    """Returns the process id of a fork; None if the server cannot fork, or has ended."""
    try:
        with server.lock:
            pid = send_request(server.channel, request, fds)
    except BaseException as error:  # a reply that is still to come would be the next request's
        with _starting:
            for key in [key for key, known in _servers.items() if known is server]:
                del _servers[key]
        _stop(server)
        if isinstance(error, EOFError | OSError):
            return None
        raise
    if pid < 0:
        return None
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:  # a sandbox whose kernel is another
        os.kill(pid, signal.SIGKILL)
        return None
    return pid
