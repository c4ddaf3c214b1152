"""Sockets of the reader: unread messages stay within their budget."""

from dataclasses import replace

import pytest
import zmq

from fairlead.limits import Limits
from fairlead_kvstore.reader.zmq_socket import ZmqSockets


@pytest.mark.parametrize(("pending", "largest"), [(None, None), (1_000_000, 300_000), (10, 1_000)])
def test_unread_events_of_one_engine_are_bounded_in_bytes(pending: int | None, largest: int | None) -> None:
    limits = Limits()
    if pending is not None and largest is not None:
        limits = replace(limits, kv_pending_bytes=pending, kv_events_bytes=largest)
    sockets = ZmqSockets(limits)
    try:
        socket = sockets.open_subscriber()
        messages = socket.getsockopt(zmq.RCVHWM)
        assert messages > 0, "0 would mean no limit"
        assert socket.getsockopt(zmq.MAXMSGSIZE) == limits.kv_events_bytes
        assert messages * limits.kv_events_bytes <= max(limits.kv_pending_bytes, limits.kv_events_bytes)
        assert limits.kv_pending_bytes < 32 * 1024 * 1024
        assert socket.getsockopt(zmq.RCVBUF) == limits.kv_receive_buffer_bytes
    finally:
        sockets.close()
