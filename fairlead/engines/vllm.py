"""vLLM: ``vllm serve`` and the ``vllm:*`` metrics of its releases.

A metrics page has 50 to 90 kB of which a dozen lines matter, and it is read for every engine every few seconds. So it is not
parsed: each wanted series is looked for by its name at the start of a line, which costs microseconds.
"""

from collections.abc import Iterator, Sequence
from math import isfinite

from fairlead.engines.base import Launch, Replica
from fairlead.errors import BadInput
from fairlead.signals import EngineSignals

_RUNNING = (b"vllm:num_requests_running",)
_WAITING = (b"vllm:num_requests_waiting",)
_KV_USAGE = (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc")
_PROMPT_TOKENS = (b"vllm:prompt_tokens_total",)
_GENERATION_TOKENS = (b"vllm:generation_tokens_total",)
_PREFIX_QUERIES = (b"vllm:prefix_cache_queries_total", b"vllm:gpu_prefix_cache_queries_total")
_PREFIX_HITS = (b"vllm:prefix_cache_hits_total", b"vllm:gpu_prefix_cache_hits_total")
_PREEMPTIONS = (b"vllm:num_preemptions_total",)
_SLEEP_STATE = b"vllm:engine_sleep_state"


class Vllm:
    """A real vLLM, found on PATH; one process per replica."""

    kind = "vllm"
    health_path = "/health"
    metrics_path = "/metrics"

    def launch(self, replica: Replica, ports: Sequence[int]) -> Launch:
        """``vllm serve`` on one port. Cached tokens are reported, since that is what routing is judged by."""
        if len(ports) != 1:
            raise BadInput("one vllm process serves one port", field="ports", hint="start one process per replica")
        command = ["vllm", "serve", local_source(replica.source), "--served-model-name", replica.name]
        command += ["--host", "127.0.0.1", "--port", str(ports[0]), "--enable-prompt-tokens-details"]
        return Launch((*command, *replica.args), dict(replica.env), says_ready=False)

    def signals(self, metrics: bytes, rank: int | None = None) -> EngineSignals:
        """Counts are summed over ranks, ``kv_usage`` is their mean; what the page does not say stays None."""
        page = b"\n" + metrics
        return EngineSignals(
            running=_total(page, _RUNNING, rank),
            waiting=_total(page, _WAITING, rank),
            kv_usage=_mean(page, _KV_USAGE, rank),
            prompt_tokens_total=_total(page, _PROMPT_TOKENS, rank),
            generation_tokens_total=_total(page, _GENERATION_TOKENS, rank),
            prefix_queries_total=_total(page, _PREFIX_QUERIES, rank),
            prefix_hits_total=_total(page, _PREFIX_HITS, rank),
            preemptions_total=_total(page, _PREEMPTIONS, rank),
            sleeping=_sleeping(page, rank),
        )


def local_source(source: str) -> str:
    """What vLLM is given as the model: a hub name or a path. Raises BadInput for a source it cannot load by itself."""
    for scheme in ("hf://", "file://"):
        if source.startswith(scheme):
            return source.removeprefix(scheme)
    hint = "use hf:// or file://, or let the engine be simulated"
    raise BadInput(
        f"a local vllm cannot load {source.partition(':')[0]}: sources", field="spec.model.source", hint=hint
    )


def _samples(page: bytes, name: bytes, rank: int | None) -> Iterator[tuple[bytes, float]]:
    """(labels, value) of every sample of one series; those of other ranks and values that are no numbers are left out."""
    wanted = None if rank is None else b'engine="%d"' % rank
    start = page.find(b"\n" + name)
    while start >= 0:
        end = page.find(b"\n", start + 1)
        if end < 0:
            return  # a line without its end was cut off, and half a number is no number
        line = page[start + 1 : end]
        start = page.find(b"\n" + name, start + 1)
        if line[len(name) : len(name) + 1] not in (b"{", b" "):
            continue  # a longer name, such as …_waiting_by_reason
        labels, _, number = line[len(name) :].rstrip().rpartition(b" ")
        if wanted is not None and wanted not in labels:
            continue
        try:
            value = float(number)
        except ValueError:
            continue
        if isfinite(value):  # neither NaN nor infinity is a reading
            yield labels, value


def _values(page: bytes, names: tuple[bytes, ...], rank: int | None) -> list[float]:
    """The values of the first of ``names`` that the page has: newer releases renamed some."""
    for name in names:
        if found := [value for _, value in _samples(page, name, rank)]:
            return found
    return []


def _total(page: bytes, names: tuple[bytes, ...], rank: int | None) -> float | None:
    values = _values(page, names, rank)
    found = sum(values)
    return found if values and isfinite(found) else None


def _mean(page: bytes, names: tuple[bytes, ...], rank: int | None) -> float | None:
    values = _values(page, names, rank)
    found = sum(values)
    return found / len(values) if values and isfinite(found) else None


def _sleeping(page: bytes, rank: int | None) -> bool | None:
    """True when no rank is awake; None for a release that does not say."""
    awake = [value for labels, value in _samples(page, _SLEEP_STATE, rank) if b'sleep_state="awake"' in labels]
    return not any(awake) if awake else None
