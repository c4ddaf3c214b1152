"""Ports that are chosen before their servers listen are all different, and none is taken."""

import socket

from fairlead_testing.processes import unused_port, unused_ports


def test_ports_of_many_calls_are_different() -> None:
    assert len({*unused_ports(200), *(unused_port() for _ in range(200))}) == 400


def test_a_port_that_is_taken_is_left_out() -> None:
    with socket.create_server(("127.0.0.1", unused_port())) as taken:
        assert taken.getsockname()[1] not in unused_ports(1_100), "more than the share has"
