"""HTTP metrics of an engine in the names of vLLM's instrumentation: counts, sizes and durations."""

from collections.abc import Iterable

from fairlead_sim.engine.metric_families import HIGH_RESOLUTION_BUCKETS, LOW_RESOLUTION_BUCKETS
from fairlead_sim.engine.prometheus_exposition import HistogramSeries, MetricFamily, MetricValue, SummarySeries

_UNCOUNTED = frozenset({"/metrics", "/health", "/load", "/ping", "/version", "/server_info"})
_NO_ROUTE = "none"


class HttpMetrics:
    """The HTTP metrics of one engine.

    created: Unix time of the start.
    """

    def __init__(self, created: float) -> None:
        self._requests = MetricFamily(
            "http_requests_total", "counter", "Requests by route, method and class.", created=created
        )
        self._received = MetricFamily("http_request_size_bytes", "summary", "Request bodies by route.", created=created)
        self._sent = MetricFamily("http_response_size_bytes", "summary", "Response bodies by route.", created=created)
        self._durations_family = MetricFamily(
            "http_request_duration_highr_seconds", "histogram", "Time to answer.", created=created
        )
        self._by_route = MetricFamily(
            "http_request_duration_seconds", "histogram", "Time to answer, by route.", created=created
        )
        self._all_durations = self._durations_family.histogram({}, HIGH_RESOLUTION_BUCKETS)
        self._request_counts: dict[tuple[str, str, str], MetricValue] = {}
        self._sizes: dict[str, tuple[SummarySeries, SummarySeries]] = {}
        self._durations: dict[tuple[str, str], HistogramSeries] = {}

    def observe_response(
        self, route: str | None, method: str, status: int, seconds: float, *, received_bytes: int, sent_bytes: int
    ) -> None:
        """Counts one answered request.

        route: the pattern of the path; None if no route matched. Some routes are never counted.
        """
        if route in _UNCOUNTED:
            return
        handler = route or _NO_ROUTE
        name = (handler, method, f"{status // 100}xx")
        counted = self._request_counts.get(name)
        if counted is None:
            counted = self._requests.value({"handler": handler, "method": method, "status": name[2]})
            self._request_counts[name] = counted
        counted.value += 1
        sizes = self._sizes.get(handler)
        if sizes is None:
            labels = {"handler": handler}
            sizes = self._sizes[handler] = (self._received.summary(labels), self._sent.summary(labels))
        sizes[0].observe(received_bytes)
        sizes[1].observe(sent_bytes)
        duration = self._durations.get((handler, method))
        if duration is None:
            duration = self._by_route.histogram({"handler": handler, "method": method}, LOW_RESOLUTION_BUCKETS)
            self._durations[(handler, method)] = duration
        duration.observe(seconds)
        self._all_durations.observe(seconds)

    def lines(self) -> Iterable[str]:
        """Yields the lines of the metrics page."""
        for family in (self._requests, self._received, self._sent, self._durations_family, self._by_route):
            yield from family.lines()
