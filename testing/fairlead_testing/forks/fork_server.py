"""A process that has imported the product's modules, and forks a program for each request.

Its forks are children of the process that started the server: the kernel's `CLONE_PARENT`. So that
process waits for them and gets their SIGCHLD as if it had started them itself. The kernel's
parent-death signal works too.

The server has no threads and no event loop. It ends when its channel closes.

Why: half of the processor time of the tests was interpreters that started.
"""

import contextlib
import ctypes
import errno
import gc
import importlib
import os
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

from fairlead_testing.forks import new_program
from fairlead_testing.forks.fork_request import LENGTH_BYTES, ForkRequest, receive_request
from fairlead_testing.forks.sibling_fork import clone_sibling

_PR_SET_PDEATHSIG = 1
_SHARED_IMPORTS = ("encodings.idna", "encodings.utf_8_sig")


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
    _import(request)
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


def _import(request: ForkRequest) -> None:
    missing = [name for name in (*_SHARED_IMPORTS, *request.imports) if name not in sys.modules]
    for name in missing:
        importlib.import_module(name)
    if missing:
        gc.collect()
        gc.freeze()


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
        status = new_program.run(request, fds, ready, nested)
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
