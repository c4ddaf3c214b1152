"""`fairlead routes` and `fairlead adapters`."""

import msgspec

from fairlead import management_api as api
from fairlead.routes.model import Shadow
from fairlead_cli.fleet.command import held_adapters, render_routes
from fairlead_testing.cli.command_line import run_program
from fairlead_testing.http.scripted_servers import CannedResponse, CannedServer

ROUTE = api.DeclaredRouteOut(
    "chat/assistant",
    names=["gpt-4o"],
    targets={"chat/big": 9, "chat/small": 1},
    overrides=2,
    fallbacks=[api.DeclaredFallbackOut("chat/small", ["Error", "Timeout"])],
    shadow=Shadow("chat/next", 10),
)
INSTANCES = [
    api.InstanceOut("main-0/9001/0", adapters=["sql"]),
    api.InstanceOut("main-1/9002/0", adapters=["sql", "legal"]),
]
FLEET = api.FleetOut(models=[api.ModelOut("chat/big", "chat", "big", instances=INSTANCES)], routes=[ROUTE])


def answering(fleet: api.FleetOut) -> CannedServer:
    return CannedServer({"/api/fleet": CannedResponse([msgspec.json.encode(fleet)])})


def test_a_route_is_one_row_with_weights_fallbacks_and_shadow() -> None:
    plain = api.DeclaredRouteOut("chat/plain", targets={"chat/big": 1})
    header, row, other = render_routes([ROUTE, plain]).splitlines()
    assert header.split() == ["ROUTE", "OTHER", "NAMES", "TARGETS", "RULES", "FALLBACKS", "SHADOW"]
    assert " ".join(row.split()) == (
        "chat/assistant gpt-4o chat/big 9, chat/small 1 2 chat/small after Error or Timeout chat/next 10 %"
    )
    assert " ".join(other.split()) == "chat/plain – chat/big 1 – – –"


def test_adapters_are_listed_with_the_engines_that_hold_them() -> None:
    both = ["main-0/9001/0", "main-1/9002/0"]
    assert held_adapters(FLEET, None) == {"chat/big": {"legal": ["main-1/9002/0"], "sql": both}}
    assert held_adapters(FLEET, "big") == held_adapters(FLEET, "chat/big") == held_adapters(FLEET, None)
    assert held_adapters(FLEET, "small") == {}


def test_the_verbs_ask_a_gateway() -> None:
    with answering(FLEET) as server:
        routes = run_program("routes", "--manage", server.url)
        adapters = run_program("adapters", "big", "--manage", server.url)
        document = run_program("adapters", "-o", "json", "--manage", server.url)
    assert "chat/assistant" in routes.stdout
    assert "sql       chat/big   main-0, main-1" in adapters.stdout
    assert set(msgspec.json.decode(document.stdout)["chat/big"]) == {"legal", "sql"}


def test_without_routes_or_adapters_the_exit_code_is_1() -> None:
    with answering(api.FleetOut()) as server:
        for verb, words in (("routes", "no route"), ("adapters", "no engine of any model holds an adapter")):
            done = run_program(verb, "--manage", server.url)
            assert (done.returncode, done.stdout) == (1, "")
            assert words in done.stderr
