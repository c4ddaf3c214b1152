"""The file of token issuers: what it says, and errors with line, field and fix."""

from pathlib import Path

import pytest

from fairlead.errors import ManifestError
from fairlead.limits import Limits
from fairlead_gateway.bearer_tokens.supervisor.issuer_file import IssuerConfig, parse_issuer_file

PATH = Path("/etc/fairlead/issuers.yaml")
SMALLEST = "issuers:\n- issuer: https://a.example\n  audiences: [fairlead]\n  jwksUrl: https://a.example/keys\n"


def parse(text: str) -> tuple[IssuerConfig, ...]:
    return parse_issuer_file(text.encode(), PATH, Limits())


def test_the_smallest_file_names_no_algorithms() -> None:
    assert parse(SMALLEST) == (
        IssuerConfig(issuer="https://a.example", audiences=["fairlead"], jwks_url="https://a.example/keys"),
    )


def test_paths_are_relative_to_the_file() -> None:
    (issuer,) = parse(
        "issuers:\n- issuer: https://kubernetes.default.svc\n  audiences: [fairlead]\n  algorithms: [RS256]\n"
        "  jwksUrl: https://kubernetes.default.svc/openid/v1/jwks\n  caFile: ca.crt\n"
        "  tokenFile: /var/run/secrets/kubernetes.io/serviceaccount/token\n"
    )
    assert issuer.ca_file == str(PATH.parent / "ca.crt")
    assert issuer.token_file == "/var/run/secrets/kubernetes.io/serviceaccount/token"
    assert issuer.algorithms == ["RS256"]


@pytest.mark.parametrize(
    ("text", "line", "field", "message"),
    [
        ("", 1, "(document)", "the file is empty"),
        (SMALLEST + "---\n" + SMALLEST, 1, "(document)", "2 YAML documents"),
        ("issuers: []\n", 1, "issuers", "must not be empty"),
        (
            SMALLEST.replace("https://a.example\n", "http://a.example\n"),
            2,
            "issuers[0].issuer",
            "not the URL of an issuer",
        ),
        (SMALLEST.replace("  audiences: [fairlead]\n", ""), 2, "issuers[0].audiences", "is missing"),
        (SMALLEST.replace("[fairlead]", "[]"), 3, "issuers[0].audiences", "must not be empty"),
        (SMALLEST.replace("jwksUrl: https", "jwksUrl: http"), 4, "issuers[0].jwksUrl", "not protected by TLS"),
        (SMALLEST + "  jwksFile: keys.json\n", 2, "issuers[0]", "the key set is not given, or twice"),
        (SMALLEST.replace("  jwksUrl: https://a.example/keys\n", ""), 2, "issuers[0]", "the key set is not given"),
        (SMALLEST + "  algorithms: [HS256]\n", 5, "issuers[0].algorithms[0]", '"HS256" is not an algorithm'),
        (SMALLEST + "  algorithms: [none]\n", 5, "issuers[0].algorithms[0]", '"none" is not an algorithm'),
        (SMALLEST + "  audience: x\n", 5, "issuers[0].audience", "unknown field"),
        (SMALLEST + SMALLEST.partition("\n")[2], 5, "issuers[1].issuer", "already given in issuers[0]"),
        (
            SMALLEST.replace("jwksUrl: https://a.example/keys", "jwksFile: k\n  caFile: c"),
            5,
            "issuers[0].caFile",
            "belongs to",
        ),
    ],
)
def test_a_problem_names_line_field_and_fix(text: str, line: int, field: str, message: str) -> None:
    with pytest.raises(ManifestError) as refused:
        parse(text)
    (problem,) = refused.value.problems
    assert (problem.line, problem.field) == (line, field)
    assert message in problem.message
    assert problem.fix


def test_the_number_of_issuers_is_bounded() -> None:
    entries = "".join(SMALLEST.partition("\n")[2].replace("a.example", f"a{number}.example") for number in range(17))
    with pytest.raises(ManifestError, match="17 issuers; the limit is 16"):
        parse(f"issuers:\n{entries}")
