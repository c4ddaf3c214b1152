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
    found = parse_redis_url(url)
    assert (found.kind, found.url, found.description, found.hosts) == ("one", url, words, ())


def test_sentinel_url_has_a_service_and_two_users() -> None:
    found = parse_redis_url(
        "rediss+sentinel://app:p%40ss@a.example.com:5000,[fd00::1],b/main/2?sentinel_password=other&ssl_ca_certs=/ca"
    )
    assert found.hosts == (("a.example.com", 5000), ("fd00::1", 26379), ("b", 26379))
    assert (found.kind, found.service, found.database, found.tls) == ("sentinel", "main", 2, True)
    assert (found.username, found.password, found.sentinel_username) == ("app", "p@ss", None)
    assert (found.sentinel_password, found.ca_file) == ("other", "/ca")
    assert found.description == "main by sentinels a.example.com:5000,[fd00::1]:26379,b:26379"


def test_cluster_url_has_only_nodes() -> None:
    found = parse_redis_url("redis+cluster://:secret@a,b:7000/")
    assert (found.kind, found.hosts) == ("cluster", (("a", 6379), ("b", 7000)))
    assert (found.username, found.password, found.tls) == (None, "secret", False)
    assert found.description == "cluster a:6379,b:7000"
    assert parse_redis_url("redis+cluster://a").password is None


@pytest.mark.parametrize(
    ("url", "said"),
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
def test_invalid_url_is_refused_without_showing_the_password(url: str, said: str) -> None:
    with pytest.raises(BadInput) as found:
        parse_redis_url(url)
    assert said in str(found.value)
    assert "h3cret" not in str(found.value)
    assert found.value.field == "redis"
    assert "redis+sentinel://" in (found.value.hint or "")
