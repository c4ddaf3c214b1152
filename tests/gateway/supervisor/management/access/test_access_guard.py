"""The access rules of the management port: closed to web pages of other sites, and read-only."""

from typing import Any

import httpx
import pytest

from fairlead_gateway.supervisor.management.access.access_guard import AccessGuard
from fairlead_gateway.supervisor.management.access.manage_tokens import ManageTokens
from fairlead_testing.gateway.management_client import management_answer


def _get(
    view: Any, path: str, *, method: str = "GET", token: str | None = None, hosts: tuple[str, ...] = (), **headers: str
) -> httpx.Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    app = {"tokens": ManageTokens(token), "hosts": hosts}
    return management_answer(view, f"http://127.0.0.1:9000{path}", app=app, method=method, headers=named)


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:9000", "localhost:9000", "[::1]:9000", "10.2.3.4:9000", "gateway", "gw.chat.svc:9000",
     "gw.chat.svc.cluster.local", "LOCALHOST", "status.localhost"],
)  # fmt: skip
def test_names_that_no_foreign_page_can_take_are_served(made_up: Any, host: str) -> None:
    assert _get(made_up, "/api/stats", host=host).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:9000", "127.0.0.1.evil.example", "localhost.evil.example", "evil.svc.example",
     "[::1].evil.example", "127.0.0.1:9000:1", "127.0.0.1:x", "", "[::1"],
)  # fmt: skip
def test_a_foreign_host_name_is_refused(made_up: Any, host: str) -> None:
    assert _get(made_up, "/api/stats", host=host).status_code == 403
    assert _get(made_up, "/", host=host).status_code == 403


def test_a_listed_host_name_is_served(made_up: Any) -> None:
    answer = _get(made_up, "/api/stats", hosts=("Fairlead.example.com",), host="fairlead.example.com:443")
    assert answer.status_code == 200


def test_a_foreign_origin_is_refused_and_our_own_is_not(made_up: Any) -> None:
    assert _get(made_up, "/api/stats", origin="https://evil.example").status_code == 403
    assert _get(made_up, "/api/stats", origin="null").status_code == 403
    assert _get(made_up, "/api/stats", origin="http://127.0.0.1:9000").status_code == 200


def test_another_site_may_link_to_the_page_but_not_read_the_api(made_up: Any) -> None:
    assert _get(made_up, "/api/stats", sec_fetch_site="cross-site", sec_fetch_mode="no-cors").status_code == 403
    assert _get(made_up, "/", sec_fetch_site="cross-site", sec_fetch_mode="navigate").status_code == 200


def test_no_answer_allows_other_origins(made_up: Any) -> None:
    for origin in ("https://evil.example", "http://127.0.0.1:9000"):
        answer = _get(made_up, "/api/stats", origin=origin)
        assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD", "TRACE"])
def test_only_get_is_answered(made_up: Any, method: str) -> None:
    answer = _get(made_up, "/api/stats", method=method)
    assert answer.status_code == 405
    assert answer.headers["allow"] == "GET"


def test_with_a_token_the_api_asks_for_it_and_health_does_not(made_up: Any) -> None:
    assert _get(made_up, "/readyz", token="s3cret").status_code == 200
    assert _get(made_up, "/metrics", token="s3cret").status_code == 200
    assert _get(made_up, "/", token="s3cret").status_code == 200
    assert _get(made_up, "/openapi.json", token="s3cret").status_code == 401
    refused = _get(made_up, "/api/fleet", token="s3cret")
    assert refused.status_code == 401
    assert refused.headers["www-authenticate"] == "Bearer"
    assert _get(made_up, "/api/fleet", token="s3cret", authorization="Bearer wrong").status_code == 401
    assert _get(made_up, "/api/fleet", token="s3cret", authorization="Bearer s3cret").status_code == 200


@pytest.mark.parametrize(
    ("peer", "status"), [("127.0.0.1", 200), ("::1", 200), ("10.0.0.7", 403), ("fe80::1%eth0", 403)]
)
def test_without_a_token_the_api_answers_this_machine_only_and_health_everyone(
    made_up: Any, peer: str, status: int
) -> None:
    def get(path: str) -> int:
        return management_answer(made_up, f"http://10.0.0.1:9000{path}", peer=peer).status_code

    assert (get("/api/fleet"), get("/readyz"), get("/metrics")) == (status, 200, 200)


async def test_two_host_headers_are_refused() -> None:
    sent: list[Any] = []

    async def never(scope: Any, receive: Any, send: Any) -> None:
        raise AssertionError("the app was asked")

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        return {"type": "http.request"}

    headers = [(b"host", b"127.0.0.1"), (b"host", b"127.0.0.1")]
    await AccessGuard(never)({"type": "http", "method": "GET", "path": "/", "headers": headers}, receive, send)
    assert sent[0]["status"] == 403
