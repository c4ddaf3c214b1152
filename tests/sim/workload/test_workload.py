"""Traces, their sources, and generated workloads."""

import hashlib
import itertools
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.errors import BadInput
from fairlead_sim.workload.generators import FAMILIES, conversation_traffic
from fairlead_sim.workload.sources import GENERATED_SOURCES, load_source
from fairlead_sim.workload.traces import (
    BUNDLED_TRACE,
    MAX_PROMPT_TOKENS,
    TRACE_BLOCK_TOKENS,
    TraceError,
    TraceRequest,
    at_rate,
    ideal_cached_share,
    read_azure,
    read_mooncake,
    spread_ties,
)

NOTICE = BUNDLED_TRACE.with_name("NOTICE")


def line(timestamp: float = 0, tokens: int = 600, output: int = 5, ids: tuple[int, ...] = (0, 1)) -> str:
    return json.dumps({"timestamp": timestamp, "input_length": tokens, "output_length": output, "hash_ids": ids})


def request(arrival: float, number: int = 0) -> TraceRequest:
    return TraceRequest(f"r{number}", arrival, 10, 1, (0,))


def test_a_line_becomes_a_request_with_seconds_and_blocks(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(line(timestamp=2_500, tokens=600, output=7, ids=(0, 9)) + "\n\n")
    assert read_mooncake(file) == [TraceRequest("r1", 2.5, 600, 7, (0, 9))]


def test_longer_prompts_are_left_out_before_the_limit_counts(tmp_path: Path) -> None:
    file = tmp_path / "trace.jsonl"
    long = line(tokens=20_481, ids=tuple(range(41)))
    file.write_text("\n".join([long, line(timestamp=1), long, line(timestamp=2), line(timestamp=3)]))
    assert [item.id for item in read_mooncake(file, limit=2)] == ["r2", "r4"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"timestamp": 1', ":2: "),
        ('{"timestamp": 1, "input_length": 5}', "output_length"),
        (line(tokens=513, ids=(0,)), "513 tokens are 2 blocks"),
        (line(tokens=0, ids=()), "at least 1"),
        (line(timestamp=-1), "negative"),
        ('{"timestamp": "x", "input_length": 5, "output_length": 5, "hash_ids": [0]}', "timestamp"),
    ],
)
def test_a_bad_line_is_named_by_file_and_number(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "trace.jsonl"
    file.write_text(line() + "\n" + text + "\n")
    with pytest.raises(TraceError) as caught:
        read_mooncake(file)
    assert f"{file}:2: " in str(caught.value)
    assert says in str(caught.value)


def test_missing_and_empty_files_have_different_errors(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="cannot be read"):
        read_mooncake(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(TraceError, match="no request"):
        read_mooncake(tmp_path / "empty.jsonl")


def test_ties_are_spread_evenly_up_to_the_next_timestamp() -> None:
    spread = spread_ties([request(0), request(0), request(3), request(6), request(6), request(6)])
    assert [item.arrival for item in spread] == [0, 1.5, 3, 6, 7, 8]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60))
def test_spreading_keeps_every_request_and_its_order(seconds: list[int]) -> None:
    before = [request(float(second), number) for number, second in enumerate(sorted(seconds))]
    after = spread_ties(before)
    assert [item.id for item in after] == [item.id for item in before]
    assert all(a.arrival <= b.arrival for a, b in itertools.pairwise(after))
    assert all(new.arrival >= old.arrival for new, old in zip(after, before, strict=True))


@given(st.lists(st.floats(0, 1e4), min_size=2, max_size=60), st.floats(0.1, 100))
def test_scaling_starts_at_zero_and_meets_the_rate(seconds: list[float], rate: float) -> None:
    scaled = at_rate([request(second, number) for number, second in enumerate(sorted(seconds))], rate)
    assert scaled[0].arrival == 0
    assert scaled[-1].arrival == pytest.approx((len(scaled) - 1) / rate)


def test_a_rate_must_be_positive() -> None:
    with pytest.raises(BadInput):
        at_rate([request(0)], 0)


def test_reuse_counts_only_an_unbroken_prefix() -> None:
    first = TraceRequest("a", 0, 1_024, 1, (0, 1))
    second = TraceRequest("b", 1, 1_536, 1, (0, 2, 1))
    assert ideal_cached_share([first, second]) == pytest.approx(512 / 2_560)


def test_the_bundled_trace_is_the_first_thousand_requests_of_at_most_20480_tokens() -> None:
    requests = read_mooncake(BUNDLED_TRACE)
    assert len(requests) == 1_000
    assert {item.blocks[0] for item in requests} == {0}
    assert max(item.prompt_tokens for item in requests) <= 20_480
    assert (requests[0].id, requests[-1].id) == ("r1", "r1241"), "241 longer prompts are left out"
    assert ideal_cached_share(requests) == pytest.approx(0.236, abs=0.001)


def test_the_notice_names_the_bundled_trace_by_its_checksum() -> None:
    assert hashlib.sha256(BUNDLED_TRACE.read_bytes()).hexdigest() in NOTICE.read_text()


def test_a_damaged_archive_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(BUNDLED_TRACE.read_bytes()[:1_000])
    with pytest.raises(TraceError, match=r"trace\.jsonl\.gz: the trace cannot be read"):
        read_mooncake(path)


HEAD = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
LINES = "2023-11-16 18:15:50.9951690,600,109\n2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:51,30000,5\n"


def trace(folder: Path, text: str) -> Path:
    file = folder / "trace.csv"
    file.write_text(text, encoding="utf-8")
    return file


def test_azures_requests_come_by_arrival_and_share_nothing(tmp_path: Path) -> None:
    first, second = read_azure(trace(tmp_path, HEAD + LINES))
    assert (first.arrival, first.prompt_tokens, first.output_tokens) == (0.0, 374, 44)
    assert second.arrival == pytest.approx(4.314579)
    assert [len(first.blocks), len(second.blocks)] == [1, 2]
    assert not {*first.blocks} & {*second.blocks}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("TIMESTAMP,ContextTokens\n", ":1: there is no column GeneratedTokens"),
        (HEAD, "no request of at most 20480 prompt tokens"),
        (HEAD + "yesterday,1,1\n", ":2: "),
        (HEAD + "2023-11-16 18:15:46,many,1\n", ":2: "),
        (HEAD + "2023-11-16 18:15:46,5,0\n", ":2: ContextTokens and GeneratedTokens must be at least 1"),
        (HEAD + "2023-11-16 18:15:46,5\n", ":2: "),
    ],
)
def test_a_file_that_is_none_is_refused_by_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(TraceError, match=r"trace\.csv") as caught:
        read_azure(trace(tmp_path, text))
    assert words in caught.value.message


def test_a_file_is_read_in_the_format_that_its_first_line_has(tmp_path: Path) -> None:
    assert len(load_source(str(trace(tmp_path, HEAD + LINES))).requests) == 2
    mooncake = '{"timestamp": 5, "input_length": 600, "output_length": 3, "hash_ids": [7, 8]}\n'
    (only,) = load_source(str(trace(tmp_path, mooncake))).requests
    assert only.blocks == (7, 8)


@pytest.mark.parametrize("name", GENERATED_SOURCES)
def test_generated_traffic_is_found_by_its_name_and_equal_from_equal_seeds(name: str) -> None:
    source, two, other = (load_source(name, limit=50, seed=seed) for seed in (1, 1, 2))
    assert len(source.requests) == 50
    assert source.requests == two.requests
    assert source.requests != other.requests
    assert source.rate > 0.0


def test_what_is_neither_is_refused_with_what_there_is() -> None:
    with pytest.raises(BadInput) as caught:
        load_source("agent")
    assert "agents" in (caught.value.hint or "")


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
    sessions: dict[str, list[TraceRequest]] = {}
    for request in requests:
        assert request.session is not None
        sessions.setdefault(request.session, []).append(request)
    return sessions


def test_equal_seeds_give_equal_conversations_and_others_do_not() -> None:
    assert conversation_traffic(50, seed=3) == conversation_traffic(50, seed=3)
    assert conversation_traffic(50, seed=3) != conversation_traffic(50, seed=4)


def test_every_prompt_starts_with_block_0_and_has_a_block_for_each_512_tokens() -> None:
    for request in conversation_traffic(2_000, seed=1):
        assert request.blocks[0] == 0
        assert len(request.blocks) == -(-request.prompt_tokens // TRACE_BLOCK_TOKENS)
        assert 1 <= request.prompt_tokens <= 20_480
        assert 1 <= request.output_tokens <= 2_000


def test_arrivals_never_go_back() -> None:
    arrivals = [request.arrival for request in conversation_traffic(2_000, seed=1)]
    assert arrivals == sorted(arrivals)


def test_a_session_grows_and_keeps_its_full_blocks_in_front() -> None:
    last: dict[str, tuple[int, ...]] = {}
    kept = turns = 0
    for request in conversation_traffic(3_000, seed=2):
        assert request.session is not None
        if request.session in last:
            turns += 1
            before = last[request.session]
            kept += request.blocks[: len(before) - 1] == before[:-1]
        last[request.session] = request.blocks
    assert turns > 600
    assert kept / turns > 0.7  # the others edit an earlier turn


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_shape_is_the_recorded_trace_s(seed: int) -> None:
    requests = conversation_traffic(10_091, seed=seed)
    count = len(requests)
    assert sum(item.prompt_tokens for item in requests) / count == pytest.approx(7_100, rel=0.08)
    assert sum(item.output_tokens for item in requests) / count == pytest.approx(336, rel=0.05)
    assert ideal_cached_share(requests) == pytest.approx(0.38, abs=0.03)
    assert count / requests[-1].arrival == pytest.approx(2.85, rel=0.08)


def test_no_request_at_all_is_refused() -> None:
    with pytest.raises(BadInput):
        conversation_traffic(0)
