"""The ideal bound: one cache for all engines, and a router that sees every queue."""

from dataclasses import replace

from fairlead.engine_profile import builtin_profile
from fairlead_sim.experiments.trial import Trial
from fairlead_sim.fleet.results import without_warmup
from fairlead_sim.workload.generators import FAMILIES
from fairlead_sim.workload.traces import TraceRequest

H100 = builtin_profile("h100-llama8b")


def test_a_prompt_of_one_engine_is_a_hit_for_all_and_stored_once() -> None:
    prompt = tuple(range(16))
    requests = [TraceRequest(f"r{n}", n * 2.0, 16 * 512, 4, prompt) for n in range(8)]
    served = Trial(is_pooled_bound=True, engines=4).run(requests)
    assert [request.error for request in served] == [None] * 8
    assert served[0].cached_tokens == 0
    assert all(request.cached_tokens >= 15 * 512 for request in served[1:])
    apart = Trial("round-robin", engines=4).run(requests)
    assert sum(request.cached_tokens == 0 for request in apart) == 4


def test_a_prompt_goes_where_the_least_prefill_waits() -> None:
    requests = [TraceRequest(f"r{n}", 0.001 * n, 8_192, 4, tuple(range(100 * n, 100 * n + 16))) for n in range(8)]
    served = Trial(is_pooled_bound=True, engines=4).run(requests)
    assert sorted(request.instance for request in served[:4]) == [f"sim-{n}/0/0" for n in range(4)]
    assert sorted(request.instance for request in served[4:]) == [f"sim-{n}/0/0" for n in range(4)]


def test_no_fleet_finds_more_in_its_caches_than_one_cache_of_the_same_size() -> None:
    small = replace(H100, kv_tokens=60_000)
    requests = FAMILIES["tenants"](600, seed=3)
    prompts = sum(request.prompt_tokens for request in requests)

    def found(trial: Trial) -> float:
        return sum(request.cached_tokens for request in without_warmup(trial.run(requests))) / prompts

    pooled = found(Trial(is_pooled_bound=True, profile=small, engines=4))
    assert pooled >= found(Trial("dual-hash", small, 4)) > found(Trial("round-robin", small, 4))
