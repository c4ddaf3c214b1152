"""The five traffic families: equal for equal seeds, with the shape that their names promise."""

from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from statistics import fmean, median

import pytest

from fairlead.errors import BadInput
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import MAX_PROMPT_TOKENS, TRACE_BLOCK_TOKENS, TraceRequest, ideal_cached_share

REQUESTS = 12_000


@cache
def requests_of(name: str) -> tuple[TraceRequest, ...]:
    """Returns an hour of a family's traffic, which no test changes."""
    return tuple(FAMILIES[name](REQUESTS, seed=3))


@pytest.mark.parametrize("name", FAMILIES)
def test_equal_seeds_give_equal_traffic_and_others_do_not(name: str) -> None:
    family = FAMILIES[name]
    assert family(200, seed=1) == family(200, seed=1)
    assert family(200, seed=1) != family(200, seed=2)
    with pytest.raises(BadInput, match="at least 1 request"):
        family(0, seed=1)


@pytest.mark.parametrize("name", FAMILIES)
def test_requests_are_whole_in_order_and_about_an_hours(name: str) -> None:
    requests = requests_of(name)
    assert len(requests) == REQUESTS
    assert len({request.id for request in requests}) == REQUESTS
    assert all(earlier.arrival <= later.arrival for earlier, later in pairwise(requests))
    assert 2_900 < requests[-1].arrival < 4_400
    for request in requests:
        assert 0 < request.prompt_tokens <= MAX_PROMPT_TOKENS
        assert request.output_tokens > 0
        assert len(request.blocks) == -(-request.prompt_tokens // TRACE_BLOCK_TOKENS)


@pytest.mark.parametrize("name", FAMILIES)
def test_much_of_every_family_is_shared(name: str) -> None:
    assert 0.5 < ideal_cached_share(requests_of(name)) < 0.95


@pytest.mark.parametrize("name", ["agents", "flash-crowd", "bursty"])
def test_a_sessions_prompt_grows_behind_what_it_was(name: str) -> None:
    for turns in by_session(requests_of(name)).values():
        for before, after in pairwise(turns):
            whole = before.prompt_tokens // TRACE_BLOCK_TOKENS
            assert after.blocks[:whole] == before.blocks[:whole]
            assert after.prompt_tokens > before.prompt_tokens


def test_agents_call_often_and_answer_shortly() -> None:
    sessions = by_session(requests_of("agents"))
    assert 4 < fmean([len(turns) for turns in sessions.values()]) < 9
    assert 65 < median([request.output_tokens for request in requests_of("agents")]) < 95
    apps = Counter(request.blocks[0] for request in requests_of("agents"))
    assert 25 <= len(apps) <= 30
    assert apps.most_common(1)[0][1] > 0.15 * REQUESTS


def test_documents_are_asked_once_each_and_by_popularity() -> None:
    assert max(Counter(request.session for request in requests_of("rag")).values()) == 1
    assert len({request.blocks[0] for request in requests_of("rag")}) == 1
    seconds = Counter(request.blocks[1] for request in requests_of("rag"))
    assert seconds.most_common(1)[0][1] > 20 * median(seconds.values())


def test_tenants_share_nothing_between_them() -> None:
    owner: dict[int, str | None] = {}
    for request in requests_of("tenants"):
        for block in request.blocks:
            assert owner.setdefault(block, request.tenant) == request.tenant
    assert len(set(owner.values())) == 50


def test_a_crowd_brings_a_long_new_prefix_at_once() -> None:
    requests = requests_of("flash-crowd")
    long = [request for request in requests if len(request.blocks) > 19]
    crowds = [block for block, uses in Counter(request.blocks[19] for request in long).items() if uses > 100]
    assert len(crowds) == 3
    for crowd in crowds:
        begins = min(request.arrival for request in long if request.blocks[19] == crowd)
        assert begins - requests[0].arrival > 600
        news = {request.session: request for request in reversed(requests) if begins <= request.arrival < begins + 150}
        first = [request for request in news.values() if request.prompt_tokens > 10_000 or len(request.blocks) < 12]
        assert 0.3 < sum(request.blocks[19:20] == (crowd,) for request in first) / len(first) < 0.7


@pytest.mark.parametrize(("name", "least"), [("bursty", 2.0), ("rag", 0.0)])
def test_bursts_are_where_they_should_be(name: str, least: float) -> None:
    """Variance ÷ mean of arrivals in 10 s is 1 for a Poisson process."""
    counts = Counter(int(request.arrival // 10) for request in requests_of(name))
    values = [counts[index] for index in range(300)]
    mean = fmean(values)
    spread = fmean([(value - mean) ** 2 for value in values]) / mean
    assert spread > least
    assert least or spread < 1.5


def by_session(requests: Sequence[TraceRequest]) -> dict[str, list[TraceRequest]]:
    found: dict[str, list[TraceRequest]] = {}
    for request in requests:
        assert request.session is not None
        found.setdefault(request.session, []).append(request)
    return found
