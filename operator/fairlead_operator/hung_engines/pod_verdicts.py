"""Pod verdicts: whether the engine of a pod hangs, by the reports on its instances. Pure.

A pod with data-parallel ranks has several instances. Its engine hangs if each of them does.

Why: a restart ends the ranks that still answer.
"""

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fairlead.fleet.hung_engines import EjectionReport, HungVerdict, hung_verdict
from fairlead_operator.hung_engines.gateway_reports import GatewayReport

_Reports = dict[str, EjectionReport | None]


def pod_verdicts(reports: Iterable[GatewayReport], grace_seconds: float) -> dict[str, HungVerdict]:
    """Returns the verdict about each pod, by its uid.

    A gateway that has not ejected an instance vetoes only if it had an answer within the grace.
    Otherwise it knows nothing, and is left out. A pod of which no gateway knows anything has no
    verdict.
    """
    by_pod: dict[str, dict[str, _Reports]] = {}
    for report in reports:
        for instance in report.instances:
            ranks = by_pod.setdefault(instance.id.partition("/")[0], {})
            known = ranks.setdefault(instance.id, {})
            if isinstance(instance.ejection, EjectionReport):
                known[report.name] = instance.ejection
            elif instance.ejection is None and _is_within(instance.answer_age_seconds, grace_seconds):
                known[report.name] = None
    return {
        uid: verdict for uid, ranks in by_pod.items() if (verdict := _pod_verdict(ranks, grace_seconds)) is not None
    }


def _pod_verdict(ranks: Mapping[str, _Reports], grace_seconds: float) -> HungVerdict | None:
    verdicts = [hung_verdict(known, grace_seconds=grace_seconds) for _, known in sorted(ranks.items()) if known]
    hung = [verdict for verdict in verdicts if verdict.is_hung]
    if len(hung) == len(verdicts) < len(ranks):
        return None  # nothing is known of the other ranks
    if len(ranks) == 1:
        return verdicts[0]
    if len(hung) < len(ranks):
        return HungVerdict(False, f"{len(hung)} of {len(ranks)} ranks hang")
    return replace(hung[0], reason=f"all {len(hung)} ranks hang; the first one: {hung[0].reason}")


def _is_within(seconds: float | None, grace_seconds: float) -> bool:
    return seconds is not None and seconds <= grace_seconds
