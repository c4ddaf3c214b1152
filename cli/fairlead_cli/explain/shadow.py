"""``fairlead explain shadow``: how models answer copies of requests, against the originals."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from cyclopts import Parameter

from fairlead_cli.exit_codes import run_query
from fairlead_cli.formatting import UNKNOWN, align_columns, format_count, format_seconds
from fairlead_cli.management import api_types
from fairlead_cli.management.client import GatewaySource, ManagementClient, ManagementEndpoint, open_endpoints
from fairlead_cli.output import OutputFlag, format_document, is_document
from fairlead_cli.target import ModelFlag, qualified_name

_GATEWAY = GatewaySource()
_COMPARED = ("answered", "failed")
Comparisons = Mapping[str, Sequence[api_types.Shadow]]
"""By the model that gets the copies."""


def explain_shadow(
    model: ModelFlag = None,
    *,
    source: Annotated[GatewaySource, Parameter(name="*")] = _GATEWAY,
    output: OutputFlag = "table",
) -> int:
    """Explain how a model answers copies of requests for another model.

    The model is the `shadow` of a route. Shows errors, TTFT, TPOT and the length of answers, of the
    same requests on both sides, since each gateway has started. Also shows why other requests were
    not copied. In a cluster, each gateway has a table of its own.

    Exits 0 with an answer, 1 when no request was copied, 2 on wrong usage, 3 when no gateway can be
    reached.
    """
    wanted = qualified_name(model, source.cluster.namespace)

    def fetch() -> Mapping[str, Comparisons]:
        with open_endpoints(source.manage, source.cluster) as endpoints:
            name = None if wanted is None else endpoints[0].qualify_model(wanted)
            found = {endpoint.name: _of_model(_shadows(endpoint), name) for endpoint in endpoints}
        if not any(found.values()):
            where = ", ".join(found)
            raise LookupError(f"no request was copied to {name or 'a model'} at {where}: see `shadow` of the routes")
        return found

    def show(found: Mapping[str, Comparisons]) -> str:
        if is_document(output):
            return format_document(found, output)
        return "\n\n".join(
            "\n".join(render_comparison(key, shadow, gateway if len(found) > 1 else None))
            for gateway, comparisons in found.items()
            for key, shadows in comparisons.items()
            for shadow in shadows
        )

    return run_query("explain shadow", fetch, show)


def render_comparison(key: str, shadow: api_types.Shadow, gateway: str | None) -> list[str]:
    """Returns the comparison of two models as lines.

    gateway: whose requests these are; None for the only one.
    """
    where = "" if gateway is None else f", at {gateway}"
    others = [f"{word} {count:,}" for word, count in shadow.outcomes.items() if word not in _COMPARED]
    missing = f"; without an answer: {', '.join(others)}" if others else ""
    copies, originals = shadow.copies, shadow.originals
    rows = [
        ("", "copy", "original", ""),
        (
            "errors",
            _share(copies.errors, shadow.compared),
            _share(originals.errors, shadow.compared),
            "",
        ),
        _row("TTFT", copies.ttft_mean_seconds, originals.ttft_mean_seconds, format_seconds),
        _row("TPOT", copies.tpot_mean_seconds, originals.tpot_mean_seconds, format_seconds),
        _row("answer tokens", copies.output_tokens_mean, originals.output_tokens_mean, format_count),
    ]
    return [
        f"{key} answers copies of requests for {shadow.original}{where}",
        f"{shadow.compared:,} of {sum(shadow.outcomes.values()):,} compared{missing}",
        *align_columns(rows).splitlines(),
    ]


def _row(
    name: str, copied: float | None, original: float | None, show: Callable[[float | None], str]
) -> tuple[str, str, str, str]:
    change = "" if copied is None or not original else f"{100 * (copied / original - 1):+.0f} %"
    return name, show(copied), show(original), change


def _share(errors: int, compared: int) -> str:
    return f"{100 * errors / compared:.1f} %" if compared else UNKNOWN


def _shadows(endpoint: ManagementEndpoint) -> Comparisons:
    models = endpoint.query(ManagementClient.stats).models
    return {key: stats.shadows for key, stats in models.items() if stats.shadows}


def _of_model(found: Comparisons, name: str | None) -> Comparisons:
    return {key: shadows for key, shadows in found.items() if name in (None, key, key.partition("/")[2])}
