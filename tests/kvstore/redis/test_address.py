"""Redis URLs, valid and invalid."""

import pytest

from fairlead.errors import BadInput
from fairlead_kvstore.redis.address import parse_redis_url


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("redis://:s3cret@redis.example.com:6379/0", "redis.example.com:6379"),
        ("rediss://user:s3cret@redis.example.com", "redis.example.com"),
        ("unix:///run/redis.sock?password=s3cret", "/run/redis.sock"),
    ],
)
def test_single_server_url_is_left_to_the_client(url: str, words: str) -> None:
    address = parse_redis_url(url)
    assert (address.kind, address.url, address.description, address.hosts) == ("one", url, words, ())


def test_sentinel_url_has_a_service_and_two_users() -> None:
    address = parse_redis_url(
        "rediss+sentinel://app:p%40ss@a.example.com:5000,[fd00::1],b/main/2?sentinel_password=other&ssl_ca_certs=/ca"
    )
    assert address.hosts == (("a.example.com", 5000), ("fd00::1", 26379), ("b", 26379))
    assert (address.kind, address.service, address.database, address.tls) == ("sentinel", "main", 2, True)
    assert (address.username, address.password) == ("app", "p@ss")
    assert address.options == {"sentinel_password": "other", "ssl_ca_certs": "/ca"}
    assert address.description == "main by sentinels a.example.com:5000,[fd00::1]:26379,b:26379"


def test_cluster_url_has_only_nodes() -> None:
    address = parse_redis_url("redis+cluster://:secret@a,b:7000/")
    assert (address.kind, address.hosts) == ("cluster", (("a", 6379), ("b", 7000)))
    assert (address.username, address.password, address.tls) == (None, "secret", False)
    assert address.description == "cluster a:6379,b:7000"
    assert parse_redis_url("redis+cluster://a").password is None


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("localhost:6379", "it is not a URL"),
        ("http://h3cret@a", "the scheme 'http' is not supported"),
        ("sentinel://a", "the scheme 'sentinel' is not supported"),
        ("redis+sentinel://a:26379", "the name by which sentinels know the master is missing"),
        ("redis+sentinel://:h3cret@a/main/x", "'x' is not a database number"),
        ("redis+sentinel://:h3cret@a,/main", "a host is missing"),
        ("redis+sentinel:///main", "a host is missing"),
        ("redis+sentinel://a:99999/main", "'a:99999' is not a host with a port"),
        ("redis+sentinel://a b/main", "'a b' is not a host with a port"),
        ("redis+sentinel://a/main?db=1", "'db' is not an option of this URL"),
        ("redis+sentinel://a/main?ssl_ca_certs=/ca", "ssl_ca_certs is for TLS"),
        ("redis+cluster://a/1", "a cluster has one database"),
        ("redis+cluster://:h3cret@a?sentinel_password=h3cret", "'sentinel_password' is not an option"),
        ("redis+cluster://a#b", "no fragment"),
    ],
)
def test_invalid_url_is_refused_without_showing_the_password(url: str, reason: str) -> None:
    with pytest.raises(BadInput) as refused:
        parse_redis_url(url)
    assert reason in str(refused.value)
    assert "h3cret" not in str(refused.value)
    assert refused.value.field == "redis"
    assert "redis+sentinel://" in (refused.value.hint or "")
