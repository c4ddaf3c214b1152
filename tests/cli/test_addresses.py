"""Addresses on the command line, and ports that are free."""

import socket

import pytest

from fairlead.errors import BadInput
from fairlead_cli.addresses import Address, claim_port, find_free_ports, is_port_free, parse_address, service_url
from fairlead_cli.exit_codes import PortInUse


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("127.0.0.1", 8000)),
        ("8000", Address("127.0.0.1", 8000)),
        (":8000", Address("127.0.0.1", 8000)),
        ("[::1]:8000", Address("::1", 8000)),
        ("localhost:0", Address("127.0.0.1", 0)),
    ],
)
def test_address_is_parsed(text: str, address: Address) -> None:
    assert parse_address(text, flag="--listen") == address


@pytest.mark.parametrize("text", ["", "a", "127.0.0.1:", "127.0.0.1:99999", "::1:8000", "1.2.3.4:-1", "h:80x"])
def test_invalid_address_names_the_flag(text: str) -> None:
    with pytest.raises(BadInput, match="--listen: ") as refused:
        parse_address(text, flag="--listen")
    assert refused.value.field == "--listen"


def test_taken_port_names_port_and_flag() -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortInUse, match=rf"--manage: 127\.0\.0\.1:{port} is already in use"):
            claim_port(Address("127.0.0.1", port), flag="--manage")


def test_port_zero_becomes_a_free_port() -> None:
    assert claim_port(Address("127.0.0.1", 0), flag="--listen").port > 0


def test_foreign_address_is_refused() -> None:
    with pytest.raises(BadInput, match="cannot listen on"):
        claim_port(Address("192.0.2.1", 8000), flag="--listen")


def test_host_name_is_refused_as_listen_address() -> None:
    with pytest.raises(BadInput, match="not an IP address"):
        claim_port(Address("example.invalid", 8000), flag="--listen")


def test_free_ports_are_consecutive_within_a_group_and_distinct() -> None:
    groups = find_free_ports([1, 4, 4])
    assert [len(group) for group in groups] == [1, 4, 4]
    assert all(group == tuple(range(group[0], group[0] + len(group))) for group in groups)
    assert len({port for group in groups for port in group}) == 9


def test_ports_in_time_wait_count_as_free() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        served, _ = server.accept()
        served.close()  # the side that closes first keeps the port for a while
        client.close()
    assert is_port_free(port)


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000"),
        ("127.0.0.1:8000", "http://127.0.0.1:8000"),
        (":8000", "http://127.0.0.1:8000"),
        ("8000", "http://127.0.0.1:8000"),
        ("localhost:8000", "http://localhost:8000"),
        ("https://models.example/v1", "https://models.example/v1"),
        ("http://[::1]:8000", "http://[::1]:8000"),
    ],
)
def test_service_url_completes_short_forms(text: str, url: str) -> None:
    assert service_url(text, flag="--url") == url


@pytest.mark.parametrize("text", ["ftp://a", "http://", "http://[", "http://a:99999", "http://a:x", ""])
def test_invalid_url_names_the_flag(text: str) -> None:
    with pytest.raises(BadInput, match="--url: ") as refused:
        service_url(text, flag="--url")
    assert refused.value.field == "--url"


def test_urls_bracket_ipv6_and_map_wildcards_to_loopback() -> None:
    assert Address("::1", 80).url == "http://[::1]:80"
    assert Address("0.0.0.0", 80).url == "http://127.0.0.1:80"
