"""The cause of a connection that could not be opened: the engine, or this gateway.

A refusal, an unreachable host and a timeout say something about the engine. A lack of descriptors,
ports or memory, or a name that cannot be resolved, says nothing about it. Such failures are
*local*: no instance is blamed for them, and no silent stream is given up.
"""

import errno
import re
import socket
from typing import Final

from fairlead_gateway.worker.upstream.connection import UpstreamError

LOCAL_CAUSES: Final = frozenset({"gateway-full", "unresolved", "gateway-error"})
"""Causes of failed attempts that say nothing about the instance."""
_ENGINE_ERRNOS: Final = frozenset(
    {
        errno.ECONNREFUSED,
        errno.EHOSTUNREACH,
        errno.ENETUNREACH,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.ECONNRESET,
        errno.ECONNABORTED,
        errno.EPIPE,
    }
)
_EXHAUSTION_ERRNOS: Final = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.EADDRNOTAVAIL, errno.ENOMEM, errno.ENOBUFS, errno.EAGAIN}
)
_ERRNO_IN_TEXT: Final = re.compile(r"\[Errno (\d+)\]")


def connect_error(error: OSError) -> UpstreamError:
    """Returns the error of an attempt to connect; its request was not sent."""
    if isinstance(error, TimeoutError):
        return UpstreamError("connect-timeout", was_sent=False)
    if isinstance(error, socket.gaierror):
        return UpstreamError("unresolved", was_sent=False)
    numbers = _error_numbers(error)
    if isinstance(error, ConnectionError) or numbers & _ENGINE_ERRNOS:
        return UpstreamError("refused", was_sent=False)
    if numbers & _EXHAUSTION_ERRNOS:
        return UpstreamError("gateway-full", was_sent=False)
    return UpstreamError("gateway-error", was_sent=False)


def is_exhaustion(error: BaseException | None) -> bool:
    """Whether this process or its host lacks descriptors, ports or memory."""
    return isinstance(error, OSError) and error.errno in _EXHAUSTION_ERRNOS


def _error_numbers(error: OSError) -> set[int]:
    """Returns the error numbers; several if a host has several addresses, which then only the text
    names.
    """
    if error.errno is not None:
        return {error.errno}
    return {int(number) for number in _ERRNO_IN_TEXT.findall(str(error))}
