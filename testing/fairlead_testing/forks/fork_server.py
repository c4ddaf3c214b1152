"""A process that has imported the product's modules, and forks a program for each request.

Its forks are children of the process that started the server: the kernel's `CLONE_PARENT`. So that
process waits for them and gets their SIGCHLD as if it had started them itself. The kernel's
parent-death signal works too.

The server has no threads and no event loop. It ends when its channel closes.

Why: half of the processor time of the tests was interpreters that started.

A fork that becomes a program: its start and its end are like those of a new interpreter.
"""

import atexit
import contextlib
import ctypes
import errno
import fcntl
import gc
import importlib
import io
import os
import resource
import runpy
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NoReturn, cast

from fairlead_testing.forks.process import (
    LENGTH_BYTES,
    ForkRequest,
    clone_sibling,
    install_nested,
    is_child_exec,
    nested_descriptor,
    program_command,
    receive_request,
)

_PR_SET_MM, _PR_SET_MM_MAP = 35, 14
_STAT_FIELDS = (23, 24, 42, 43, 44, 44, 25, 45, 46, 47, 48)
"""Places of the fields of `_MemoryMap` in `/proc/self/stat`, behind the name of the program."""
_FLUSH_FAILED = 120
"""Exit code of an interpreter that cannot flush its standard output."""

_PR_SET_PDEATHSIG = 1
_SHARED_IMPORTS = ("encodings.idna", "encodings.utf_8_sig")


class _MemoryMap(ctypes.Structure):
    """The kernel's `prctl_mm_map`."""

    arg_start: int
    arg_end: int
    brk: int
    _fields_ = (
        *((f"{part}_{what}", ctypes.c_uint64) for what in ("code", "data") for part in ("start", "end")),
        *((name, ctypes.c_uint64) for name in ("start_brk", "brk", "start_stack", "arg_start", "arg_end")),
        *((name, ctypes.c_uint64) for name in ("env_start", "env_end", "auxv")),
        *((name, ctypes.c_uint32) for name in ("auxv_size", "executable")),
    )


class _ReplacedError(BaseException):
    """A program that executes another in its place."""

    def __init__(self, argv: Sequence[str]) -> None:
        super().__init__(argv)
        self.argv = tuple(argv)


def run(request: ForkRequest, fds: Sequence[int], ready: int, nested: socket.socket | None) -> int:
    """Runs the program of a request; returns its exit code.

    ready: a pipe that closes once descriptors, folder and signals are those of the request.
    nested: the channel of a fork server for the programs that this program starts.
    """
    keep = [ready] if nested is None else [ready, nested.fileno()]
    kept = _place_descriptors(fds, request.fds, keep)
    resource.setrlimit(resource.RLIMIT_NOFILE, request.file_limits)
    os.chdir(request.folder)
    _set_environment(request.environ)
    _set_command_line(request.argv)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        ignored = number in request.ignored_signals or number in (signal.SIGPIPE, signal.SIGXFSZ)
        signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    if signal.SIGINT not in request.ignored_signals:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    _open_standard_streams(is_unbuffered="PYTHONUNBUFFERED" in os.environ)
    if nested is not None:
        nested.detach()
        install_nested(kept[1], request.environ)
    gc.enable()
    os.close(kept[0])
    signal.pthread_sigmask(signal.SIG_SETMASK, request.blocked_signals)
    code = _exit_code(request)
    return _finish(code)


def _place_descriptors(fds: Sequence[int], targets: Sequence[int], keep: Sequence[int]) -> list[int]:
    """Moves descriptors to their numbers, and closes all others.

    Returns the new numbers of `keep`.
    """
    first = max([*targets, *fds, *keep]) + 1
    moved = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, first) for fd in (*fds, *keep)]
    for fd, target in zip(moved, targets, strict=False):
        os.dup2(fd, target, inheritable=True)
    kept = moved[len(fds) :]
    for name in os.listdir("/proc/self/fd"):
        if int(name) not in {*targets, *kept}:
            with contextlib.suppress(OSError):  # the folder's own
                os.close(int(name))
    return kept


def _set_environment(environ: Mapping[bytes, bytes]) -> None:
    old_zone = os.environb.get(b"TZ")
    for name in set(os.environb) - set(environ):
        del os.environb[name]
    os.environb.update(environ)
    if environ.get(b"TZ") != old_zone:
        time.tzset()
    sys.dont_write_bytecode = bool(environ.get(b"PYTHONDONTWRITEBYTECODE"))


def _set_command_line(argv: Sequence[str]) -> None:
    """Writes the command line where `ps` and `/proc` read it."""
    sys.orig_argv = list(argv)
    fields = Path("/proc/self/stat").read_text(errors="replace").rpartition(")")[2].split()
    map_ = _MemoryMap(*[int(fields[place]) for place in _STAT_FIELDS], executable=-1 & 0xFFFFFFFF)
    size = map_.arg_end - map_.arg_start
    line = b"".join(os.fsencode(word) + b"\0" for word in argv)[: size - 1]
    ctypes.memmove(map_.arg_start, line.ljust(size, b"\0"), size)
    library = ctypes.CDLL(None)
    library.sbrk.restype = ctypes.c_void_p
    map_.arg_end, map_.brk = map_.arg_start + len(line), library.sbrk(0)
    # If the kernel refuses, zero bytes are left at the end.
    library.prctl(
        _PR_SET_MM, _PR_SET_MM_MAP, ctypes.byref(map_), ctypes.c_ulong(ctypes.sizeof(map_)), ctypes.c_ulong(0)
    )


def _open_standard_streams(*, is_unbuffered: bool) -> None:
    encoding, errors = sys.stdout.encoding, sys.stdout.errors
    streams = {"stdin": io.TextIOWrapper(io.BufferedReader(io.FileIO(0, closefd=False)), encoding, errors, "\n")}
    for number, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(number, "w", closefd=False)
        streams[name] = io.TextIOWrapper(
            cast(Any, raw if is_unbuffered else io.BufferedWriter(raw)),
            encoding,
            "backslashreplace" if number == 2 else errors,
            "\n",
            line_buffering=number == 2 or (not is_unbuffered and raw.isatty()),
            write_through=is_unbuffered,
        )
    for name, stream in streams.items():
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _exit_code(request: ForkRequest) -> int:
    """Runs the program; returns the exit code that a new interpreter would have."""
    try:
        _run_program(request)
    except SystemExit as error:
        if error.code is None or isinstance(error.code, int):
            return (error.code or 0) & 0xFF
        print(error.code, file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        _print_error(error)
        _finish(0)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(128 + signal.SIGINT)
    except BaseException as error:  # noqa: BLE001 as the interpreter does
        _print_error(error)
        return 1
    return 0


def _run_program(request: ForkRequest) -> None:
    if is_child_exec(request.argv):
        from fairlead_cli.local.processes import child_exec

        execute, os.execvp = os.execvp, cast(Any, _replace)
        try:
            child_exec.main(list(request.argv[4:]))
            return
        except _ReplacedError as replaced:
            argv = replaced.argv
        finally:
            os.execvp = execute
        _close_after_exec()
        _set_command_line(argv)
    main = sys.modules["__main__"] = ModuleType("__main__")
    main.__dict__["__builtins__"] = __builtins__
    sys.argv = ["-m", *request.command[1:]]
    if not sys.flags.safe_path:
        sys.path[0] = os.getcwd()
    name = request.command[0]
    if not hasattr(sys.modules.get(name), "__path__"):
        sys.modules.pop(name, None)  # it runs as `__main__`
    sys.modules.pop(f"{name}.__main__", None)
    runpy._run_module_as_main(name)  # type: ignore[attr-defined]


def _replace(file: Any, argv: Any) -> NoReturn:
    """Stands in for `os.execvp`."""
    if program_command(argv) is None:
        os.execve(file, argv, os.environ)
    raise _ReplacedError(argv)


def _close_after_exec() -> None:
    """Closes what an `exec` would close."""
    for name in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # the folder's own
            if name != nested_descriptor() and not os.get_inheritable(name):
                os.close(name)


def _print_error(error: BaseException) -> None:
    """Prints a traceback that begins where the program does."""
    trace: TracebackType | None = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
        trace = trace.tb_next
    if sys.excepthook is sys.__excepthook__:
        traceback.print_exception(type(error), error, trace)
    else:
        sys.excepthook(type(error), error, trace)


def _finish(code: int) -> int:
    """Ends as an interpreter does: threads, handlers, collection, streams."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    gc.collect()
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        code = _FLUSH_FAILED
    with contextlib.suppress(OSError, ValueError):
        sys.stderr.flush()
    return code


def serve(channel: socket.socket) -> None:
    """Forks a program for each request, until the channel closes."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_IGN)  # the end of the channel ends it
    gc.disable()
    while True:
        try:
            request, fds = receive_request(channel)
        except EOFError:
            return
        try:
            reply = _fork(channel, request, fds)
        except Exception as error:  # noqa: BLE001 a program that cannot be imported fails with its own message elsewhere
            print(f"fork server: {request.command[0]}: {error!r}", file=sys.stderr, flush=True)
            reply = -(getattr(error, "errno", None) or errno.ENOEXEC)
        finally:
            for fd in fds:
                os.close(fd)
        with contextlib.suppress(OSError):
            channel.sendall(reply.to_bytes(LENGTH_BYTES, "big", signed=True))


def _fork(channel: socket.socket, request: ForkRequest, fds: list[int]) -> int:
    """Returns the process id of the fork, once it has its descriptors and its session."""
    missing = [name for name in (*_SHARED_IMPORTS, *request.imports) if name not in sys.modules]
    for name in missing:
        importlib.import_module(name)
    if missing:
        gc.collect()
        gc.freeze()
    threads = len(os.listdir("/proc/self/task"))
    if threads != 1:
        raise OSError(errno.EAGAIN, f"the server has {threads} threads")
    reading, writing = os.pipe()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    with open(reading, "rb") as pipe:
        try:
            pid = clone_sibling()
            if pid == 0:
                _become(channel, request, reading, fds, writing)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            os.close(writing)
        pipe.read()  # ends when the fork is set up, or has ended
    return pid


def _become(channel: socket.socket, request: ForkRequest, pipe: int, fds: list[int], ready: int) -> NoReturn:
    """Turns this fork into the program of the request, and ends with it."""
    status = 70
    try:
        channel.close()
        os.close(pipe)
        if request.new_session:
            os.setsid()
        if request.process_group >= 0:
            os.setpgid(0, request.process_group)
        nested = _start_nested_server([*fds, ready]) if request.starts_programs else None
        status = run(request, fds, ready, nested)
    finally:
        os._exit(status)


def _start_nested_server(close: Sequence[int]) -> socket.socket:
    """Forks a server for the programs that this program starts; returns its channel."""
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    if os.fork() == 0:
        with contextlib.suppress(BaseException):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() == parent:
                ours.close()
                for fd in close:
                    os.close(fd)
                null = os.open(os.devnull, os.O_RDWR)
                for fd in range(3):
                    os.dup2(null, fd)
                signal.pthread_sigmask(signal.SIG_SETMASK, [])
                serve(theirs)
        os._exit(0)
    theirs.close()
    return ours
