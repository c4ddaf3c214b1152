"""``fairlead routes`` and ``fairlead adapters``: tables of what gateways know."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated

from cyclopts import Parameter

from fairlead import management_api as api
from fairlead_cli.exit_codes import run_query
from fairlead_cli.formatting import UNKNOWN, align_columns, short_instance_name
from fairlead_cli.management.client import GatewaySource, ManagementClient, open_endpoints
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.target import ModelFlag, qualified_name

_SOURCE = GatewaySource()


def routes(*, source: Annotated[GatewaySource, Parameter(name="*")] = _SOURCE, output: OutputFlag = "table") -> int:
    """List the routes: names that lead to models, with weights, fallbacks and shadows.

    All gateways of an installation have the same routes; one of them is asked.

    Exits 0 with a list, 1 when there is no route, 2 on wrong usage, 3 when no gateway can be
    reached. As JSON or YAML, an empty list is one too.
    """

    def fetch() -> Sequence[api.DeclaredRouteOut]:
        found = _fleet(source).routes
        if not found and not is_document(output):
            raise LookupError("no route: clients name models themselves (a ModelRoute makes one)")
        return found

    def show(found: Sequence[api.DeclaredRouteOut]) -> str:
        return format_document(found, output) if is_document(output) else render_routes(found)

    return run_query(fetch, show)


def adapters(
    model: ModelFlag = None,
    *,
    source: Annotated[GatewaySource, Parameter(name="*")] = _SOURCE,
    output: OutputFlag = "table",
) -> int:
    """List the LoRA adapters that engines hold now, and which engines these are.

    An adapter that no engine holds is loaded by the first request for it, and is not listed.

    Exits 0 with a list, 1 when no engine holds one, 2 on wrong usage, 3 when no gateway can be
    reached. As JSON or YAML, an empty list is one too.
    """
    wanted = qualified_name(model, source.cluster.namespace)

    def fetch() -> Mapping[str, Mapping[str, Sequence[str]]]:
        found = held_adapters(_fleet(source), wanted)
        if not found and not is_document(output):
            raise LookupError(f"no engine of {wanted or 'any model'} holds an adapter")
        return found

    def show(found: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
        return format_document(found, output) if is_document(output) else render_adapters(found)

    return run_query(fetch, show)


def _fleet(source: GatewaySource) -> api.FleetOut:
    with open_endpoints(source.manage, source.cluster) as endpoints:
        return endpoints[0].query(ManagementClient.fleet)


def render_routes(found: Sequence[api.DeclaredRouteOut]) -> str:
    """Returns a table with one row for each route."""
    rows = [["ROUTE", "OTHER NAMES", "TARGETS", "RULES", "FALLBACKS", "SHADOW"]]
    for route in found:
        targets = [f"{name} {weight}" for name, weight in route.targets.items()]
        fallbacks = [f"{fallback.model} after {' or '.join(fallback.when)}" for fallback in route.fallbacks]
        rows.append(
            [
                route.key,
                ", ".join(route.names) or UNKNOWN,
                ", ".join(targets) or UNKNOWN,
                str(route.overrides or UNKNOWN),
                "; ".join(fallbacks) or UNKNOWN,
                UNKNOWN if route.shadow is None else f"{route.shadow.model} {route.shadow.percent:g} %",
            ]
        )
    return align_columns(rows)


def held_adapters(fleet: api.FleetOut, model: str | None) -> dict[str, dict[str, list[str]]]:
    """Returns model → adapter → instances that hold it.

    model: only this one, by its name or key.
    """
    found: defaultdict[str, defaultdict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for known in fleet.models:
        if model in (None, known.key, known.name):
            for instance in known.instances:
                for adapter in instance.adapters:
                    found[known.key][adapter].append(instance.id)
    return {key: {name: found[key][name] for name in sorted(found[key])} for key in sorted(found)}


def render_adapters(found: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """Returns a table with one row for each adapter."""
    rows = [["ADAPTER", "MODEL", "HELD BY"]]
    for model, names in found.items():
        rows += [[name, model, ", ".join(map(short_instance_name, ids))] for name, ids in names.items()]
    return align_columns(rows)
