"""Names of artefacts, as container engines and helm read them."""

import pytest

from fairlead.errors import BadInput
from fairlead_cli.oci.reference import Reference, is_loopback, parse_prefix

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ghcr.io/team/gateway:1.2", Reference("ghcr.io", "team/gateway", "1.2")),
        (f"oci://ghcr.io/team/charts/fairlead@{DIGEST}", Reference("ghcr.io", "team/charts/fairlead", "", DIGEST)),
        ("localhost:5000/a", Reference("localhost:5000", "a")),
        ("127.0.0.1:5000/a/b:x", Reference("127.0.0.1:5000", "a/b", "x")),
        ("vllm/vllm-openai:v0.32.0", Reference("docker.io", "vllm/vllm-openai", "v0.32.0")),
        ("redis:8", Reference("docker.io", "library/redis", "8")),
    ],
)
def test_a_name_has_registry_repository_and_version(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected


@pytest.mark.parametrize("text", ["", "ghcr.io/", "ghcr.io/Team/a", "ghcr.io/a:", "ghcr.io/a@sha256:1", "ghcr.io/../a"])
def test_what_is_no_name_is_refused(text: str) -> None:
    with pytest.raises(BadInput, match="no name"):
        Reference.parse(text)


def test_a_registry_may_have_a_path() -> None:
    assert parse_prefix("ghcr.io/team/fairlead/") == ("ghcr.io", "team/fairlead")
    assert parse_prefix("oci://localhost:5000") == ("localhost:5000", "")
    for wrong in ("", "a b", "ghcr.io/Team"):
        with pytest.raises(BadInput):
            parse_prefix(wrong)


def test_only_this_machine_is_reached_without_tls() -> None:
    assert all(is_loopback(host) for host in ("localhost", "localhost:5000", "127.0.0.1:5000", "[::1]:5000"))
    assert not any(is_loopback(host) for host in ("ghcr.io", "10.0.0.1:5000", "localhost.example.org"))
