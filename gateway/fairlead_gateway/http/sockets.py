"""Addresses and listening sockets: the management port, which is the helper's, and the public one, which all workers share.

The kernel shares a port among sockets that ask for it (``SO_REUSEPORT``), also with a process of the same user that was left
behind by somebody else, and says nothing. So the port is asked for alone first: that is refused while anybody listens there.
Then it is held by a socket that never listens, so that its number stays ours while workers come and go.
"""

import errno
import logging
import socket
import sys
import time
from dataclasses import dataclass

LISTEN_BACKLOG = 4096
_log = logging.getLogger("fairlead.gateway")
_SO_BINDTOIFINDEX = 62  # of <asm-generic/socket.h>: which interface a socket belongs to
_UNUSED_INTERFACE = 2**31 - 1  # the kernel does not ask whether there is one of this number
_RELEASE_SECONDS = 1.0  # workers of a gateway that was killed close the port within a twentieth
_RETRY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """Where to listen; port 0 is a free one."""

    host: str
    port: int

    def bind(self, *, shared: bool = False) -> socket.socket:
        """A listening socket; ``shared`` with others of this user that say so too."""
        return socket.create_server(
            (self.host, self.port), family=self.family, backlog=LISTEN_BACKLOG, reuse_port=shared
        )

    def reserve(self) -> socket.socket:
        """Hold the port without listening. Raises OSError when somebody else has it."""
        if self.port:
            self._check_exclusive()
        reserved = self._create_socket(
            reuse_address=bool(self.port)
        )  # a free port is nobody's, also not of one who waits to listen
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind((self.host, self.port))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # so that others who ask are refused
        except OSError as error:
            reserved.close()
            raise self._bind_error(error) from error
        return reserved

    @property
    def family(self) -> socket.AddressFamily:
        """IPv4 or IPv6."""
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def _check_exclusive(self) -> None:
        """Ask for the port without sharing, for a moment: the last user may be on its way out."""
        end = time.monotonic() + _RELEASE_SECONDS
        while True:
            probe = self._create_socket(reuse_address=True)
            try:
                probe.bind((self.host, self.port))
                return
            except OSError as error:
                if error.errno != errno.EADDRINUSE or time.monotonic() >= end:
                    raise self._bind_error(error) from error
                time.sleep(_RETRY_SECONDS)
            finally:
                probe.close()

    def _create_socket(self, *, reuse_address: bool) -> socket.socket:
        """A socket; ``again``: also where connections of the last user have not quite ended."""
        created = socket.socket(self.family, socket.SOCK_STREAM)
        created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
        if self.family is socket.AF_INET6:
            created.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return created

    def _bind_error(self, error: OSError) -> OSError:
        shown = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return OSError(error.errno, f"cannot listen on {shown}: {error.strerror}")


def refuse_new_connections(listening: socket.socket) -> bool:
    """From now on let no new connection in through this socket, while handshakes that are under way come to their end; False where
    the system cannot.

    There is no call for that: a listening socket lets in until it is closed, and closing it resets whom nobody has accepted. But one
    that belongs to an interface hears nothing from others, and a handshake keeps the interface that it began with. New clients
    are refused at once; where others listen on the port too, the share of this one is dropped, and reaches them when the
    clients try again after a second. It takes no privilege (Linux 5.7), unlike a packet filter (``SO_ATTACH_FILTER``), which
    newer kernels keep for CAP_NET_ADMIN."""
    try:
        if sys.platform != "linux":
            raise OSError(errno.ENOPROTOOPT, "not Linux")
        listening.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _UNUSED_INTERFACE)
    except OSError as error:
        _log.debug("new connections come in until the port closes: %s", error)
        return False
    return True


def socket_url(bound: socket.socket, *, secure: bool = False) -> str:
    """The URL of a listening socket."""
    host, port = bound.getsockname()[:2]
    return f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}"
