"""Listening sockets: of the management port, and of the public port that all workers share.

With `SO_REUSEPORT`, the kernel silently shares a port with any process of the same user, also with
one that was left running. So the port is first bound exclusively, which fails while another process
listens. Then a socket that never listens reserves the port, so that workers can start and end.
"""

import errno
import logging
import socket
import sys
import time
from dataclasses import dataclass

LISTEN_BACKLOG = 4096
_log = logging.getLogger("fairlead.gateway")
_SO_BINDTOIFINDEX = 62  # <asm-generic/socket.h>: the interface that a socket is bound to
_UNUSED_INTERFACE = 2**31 - 1  # the kernel does not check that it exists
_RELEASE_SECONDS = 1.0  # workers of a killed gateway close the port within 50 ms
_RETRY_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class ListenAddress:
    """An address to listen on; port 0 is a free port."""

    host: str
    port: int

    def bind(self, *, shared: bool = False) -> socket.socket:
        """Returns a listening socket.

        shared: share the port with other sockets of this user that share it too.
        """
        return socket.create_server(
            (self.host, self.port), family=self.family, backlog=LISTEN_BACKLOG, reuse_port=shared
        )

    def reserve(self) -> socket.socket:
        """Returns a bound socket that does not listen. Raises OSError if another process has the
        port.
        """
        if self.port:
            self._check_exclusive()
        reserved = self._create_socket(reuse_address=bool(self.port))
        try:
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reserved.bind((self.host, self.port))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)  # so that an exclusive bind by others fails
        except OSError as error:
            reserved.close()
            raise self._bind_error(error) from error
        return reserved

    @property
    def family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if ":" in self.host else socket.AF_INET

    def _check_exclusive(self) -> None:
        """Binds the port exclusively for a moment. Retries for a second if the last user is closing
        it.
        """
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
        """Returns an unbound TCP socket of the address's family.

        reuse_address: bind even if connections of the last user linger.
        """
        created = socket.socket(self.family, socket.SOCK_STREAM)
        created.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, int(reuse_address))
        if self.family is socket.AF_INET6:
            created.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        return created

    def _bind_error(self, error: OSError) -> OSError:
        shown = f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
        return OSError(error.errno, f"cannot listen on {shown}: {error.strerror}")


def refuse_new_connections(listening: socket.socket) -> bool:
    """Refuses new connections on a listening socket and lets started handshakes finish.

    Returns False if the system cannot do that.

    Why: there is no system call for it. A listening socket accepts until it is closed, and closing
    it resets connections that were not accepted. But a socket that is bound to an interface gets
    nothing from other interfaces, and a started handshake keeps its interface. New clients are
    refused at once. If other workers listen on the port, clients of this one reach them by retrying
    after a second. Binding to an interface needs no privilege since Linux 5.7. `SO_ATTACH_FILTER`
    needs CAP_NET_ADMIN in newer kernels.
    """
    try:
        if sys.platform != "linux":
            raise OSError(errno.ENOPROTOOPT, "not Linux")
        listening.setsockopt(socket.SOL_SOCKET, _SO_BINDTOIFINDEX, _UNUSED_INTERFACE)
    except OSError as error:
        _log.debug("new connections come in until the port closes: %s", error)
        return False
    return True


def socket_url(bound: socket.socket, *, secure: bool = False) -> str:
    host, port = bound.getsockname()[:2]
    return f"http{'s' if secure else ''}://{f'[{host}]' if ':' in host else host}:{port}"
