"""The numbers of `/api/stats`: the last minute and the time since the start.

They are read from the counters that the metrics are rendered from.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev

from fairlead import management_api as api
from fairlead.fleet.model import Fleet, InstanceState
from fairlead_gateway.telemetry import UNKNOWN, LoadView, MetricsRecorder
from fairlead_gateway.telemetry import counters as at
from fairlead_gateway.telemetry.counters import (
    OVERHEAD_BOUNDS,
    SECONDS_BOUNDS,
    WINDOW_SECONDS,
    InstanceCounters,
    ModelCounters,
    quantile,
)
from fairlead_gateway.telemetry.decision_log import COMPARED

_Counts = tuple[Sequence[int], Sequence[float]]


def model_stats(
    key: str, telemetry: MetricsRecorder, fleet: Fleet, loads: Mapping[str, LoadView], now: float
) -> api.ModelStatsOut:
    """Returns the numbers of a model: 0 where nothing happened, null where nothing is known."""
    series = telemetry.models.get(key) or ModelCounters()
    uptime = max(1e-9, now - telemetry.started_at)
    window_seconds = min(uptime, now - (int(now) - WINDOW_SECONDS))
    ids = [instance.id for instance in fleet.instances.get(key, ())]
    routable = {item.id for item in fleet.instances.get(key, ()) if item.state is InstanceState.READY}
    minute = {item: _instance_window(series.instances.get(item), now) for item in ids}
    own = [loads[item] for item in ids if item in loads]
    totals = _instance_totals(series, ids)
    ints, sums = series.last_minute(now)
    return api.ModelStatsOut(
        in_flight=sum(load.inflight for load in own),
        queue=sum(load.waiting for load in own),
        window=_slice_out(ints, sums, window_seconds, _load_variation(minute, routable)),
        totals=_slice_out(series.ints, series.sums, uptime, _load_variation(totals, routable)),
        decisions=dict(sorted(series.by_rule.items())),
        instances=_instances_out(minute, totals),
        shadows=_shadows_out(series),
    )


def _shadows_out(series: ModelCounters) -> list[api.ShadowOut]:
    originals = sorted({original for original, _ in (*series.shadow_copies, *series.shadow_sums)})
    return [
        api.ShadowOut(
            original=original,
            outcomes={word: count for (name, word), count in sorted(series.shadow_copies.items()) if name == original},
            compared=series.shadow_sums.get((original, COMPARED), 0),
            copies=_shadow_side_out(series.shadow_sums, original, "copy"),
            originals=_shadow_side_out(series.shadow_sums, original, "original"),
        )
        for original in originals
    ]


def _shadow_side_out(sums: Mapping[tuple[str, str], int], original: str, side: str) -> api.ShadowSideOut:
    def mean(name: str, unit: float) -> float | None:
        return _share(sums.get((original, f"{name}:{side}"), 0) * unit, sums.get((original, name), 0))

    return api.ShadowSideOut(
        errors=sums.get((original, f"errors:{side}"), 0),
        ttft_mean_seconds=mean("ttft", 1e-6),
        tpot_mean_seconds=mean("tpot", 1e-6),
        output_tokens_mean=mean("output_tokens", 1.0),
    )


def unknown_model_requests(telemetry: MetricsRecorder, now: float) -> int:
    """Returns the number of requests rejected in the last minute without a model of the fleet.

    They named no such model, or were rejected before their model was known.
    """
    series = telemetry.models.get(UNKNOWN)
    return 0 if series is None else series.last_minute(now)[0][at.REJECTED]


def _slice_out(ints: Sequence[int], sums: Sequence[float], seconds: float, load_cov: float | None) -> api.SliceOut:
    ended = ints[at.FINISHED] + ints[at.REJECTED]
    return api.SliceOut(
        seconds=seconds,
        requests=ended,
        requests_per_second=ended / seconds,
        errors=ints[at.ERRORS],
        aborts=ints[at.ABORTS],
        rejected=ints[at.REJECTED],
        retries=ints[at.RETRIES],
        ttft_seconds=_quantiles(ints[at.TTFT : at.TTFT + at.SECONDS_BINS], sums[at.TTFT_SUM]),
        itl_seconds=_quantiles(ints[at.ITL : at.ITL + at.SECONDS_BINS], sums[at.ITL_SUM]),
        overhead_seconds=_quantiles(
            ints[at.OVERHEAD : at.OVERHEAD + at.OVERHEAD_BINS], sums[at.OVERHEAD_SUM], OVERHEAD_BOUNDS
        ),
        within_objective=_share(ints[at.WITHIN], ints[at.JUDGED]),
        cached_token_share=_share(ints[at.CACHED_TOKENS], ints[at.CACHE_KNOWN_PROMPT_TOKENS]),
        predicted_cached_token_share=_share(ints[at.PREDICTED_TOKENS], ints[at.PREDICTION_KNOWN_PROMPT_TOKENS]),
        share_on_homes=_share(ints[at.ON_HOME], ints[at.ROUTED]),
        prompt_tokens=ints[at.PROMPT_TOKENS],
        output_tokens=ints[at.OUTPUT_TOKENS],
        load_cov=load_cov,
    )


def _quantiles(counts: Sequence[int], total: float, bounds: Sequence[float] = SECONDS_BOUNDS) -> api.QuantilesOut:
    count = sum(counts)
    return api.QuantilesOut(
        p50=quantile(counts, 0.5, bounds),
        p90=quantile(counts, 0.9, bounds),
        p99=quantile(counts, 0.99, bounds),
        mean=total / count if count else None,
    )


def _share(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _instance_window(series: InstanceCounters | None, now: float) -> _Counts:
    return ([0] * at.I_INTS, [0.0] * at.I_SUMS) if series is None else series.last_minute(now)


def _instance_totals(series: ModelCounters, ids: Sequence[str]) -> dict[str, _Counts]:
    return {item: (found.ints, found.sums) for item in ids if (found := series.instances.get(item)) is not None}


def _load_variation(counts: Mapping[str, _Counts], routable: set[str]) -> float | None:
    """Returns the coefficient of variation of the prompt tokens that routable instances computed.

    None if they computed nothing.
    """
    computed = [counts[item][0][at.I_COMPUTED_TOKENS] if item in counts else 0 for item in routable]
    return pstdev(computed) / fmean(computed) if any(computed) else None


def _instances_out(counts: Mapping[str, _Counts], totals: Mapping[str, _Counts]) -> dict[str, api.InstanceStatsOut]:
    work = {item: ints[at.I_COMPUTED_TOKENS] + ints[at.I_OUTPUT_TOKENS] for item, (ints, _) in counts.items()}
    total = sum(work.values())
    return {
        item: api.InstanceStatsOut(
            requests=ints[at.I_ROUTED],
            errors=ints[at.I_ERRORS] + ints[at.I_RETRIED_AWAY],
            ttft_mean_seconds=_share(sums[at.I_TTFT_SUM], ints[at.I_FIRST]),
            itl_mean_seconds=_share(sums[at.I_ITL_SUM], ints[at.I_GAPS]),
            computed_tokens=ints[at.I_COMPUTED_TOKENS],
            output_tokens=ints[at.I_OUTPUT_TOKENS],
            share_of_work=_share(work[item], total),
            totals=_totals_out(totals.get(item)),
        )
        for item, (ints, sums) in counts.items()
    }


def _totals_out(counts: _Counts | None) -> api.InstanceTotalsOut:
    ints, sums = counts or ([0] * at.I_INTS, [0.0] * at.I_SUMS)
    return api.InstanceTotalsOut(
        attempts=ints[at.I_ROUTED],
        errors=ints[at.I_ERRORS] + ints[at.I_RETRIED_AWAY],
        first_tokens=ints[at.I_FIRST],
        ttft_seconds=sums[at.I_TTFT_SUM],
        gaps=ints[at.I_GAPS],
        gap_seconds=sums[at.I_ITL_SUM],
        answers=ints[at.I_ANSWERS],
        log_tokens=sums[at.I_LOG_TOKENS_SUM],
        computed_tokens=ints[at.I_COMPUTED_TOKENS],
    )
