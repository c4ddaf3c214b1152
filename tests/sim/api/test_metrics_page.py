"""The metrics page of a running simulated engine after real requests."""

from prometheus_client.parser import text_string_to_metric_families

from fairlead_testing.engines.disaggregated import EngineProcess, engine_process
from fairlead_testing.transcripts.replay import get_request, post_request, read_metric, send_request, wait_for_value

SWITCHES = ("--model", "tiny", "--block-size", "32", "--max-model-len", "4096")


async def complete(engine: EngineProcess, **more: object) -> int:
    """Returns the status of one completion of 100 tokens."""
    body = {"model": "tiny", "prompt": list(range(100)), "max_tokens": 5, **more}
    return (await send_request(engine.authority, post_request("/v1/completions", body))).status


async def test_requests_are_counted_by_tokens_source_and_route() -> None:
    async with engine_process(*SWITCHES) as engine:
        assert [await complete(engine), await complete(engine), await complete(engine, temperature=-1)] == [
            200,
            200,
            400,
        ]
        wanted = {
            "vllm:prompt_tokens_total": 200,
            "vllm:generation_tokens_total": 10,
            "vllm:prefix_cache_queries_total": 200,
            "vllm:prefix_cache_hits_total": 96,
            "vllm:time_to_first_token_seconds_count": 2,
            "vllm:inter_token_latency_seconds_count": 8,
            "vllm:request_success_total": 2,
            "vllm:num_requests_running": 0,
            "vllm:kv_cache_usage_perc": 0,
            "http_requests_total": 3,
        }
        assert {name: await read_metric(engine.authority, name) for name in wanted} == wanted
        assert await read_metric(engine.authority, "fairlead_sim_loop_lag_seconds") >= 0


async def test_a_stop_string_ends_a_request_with_reason_stop() -> None:
    async with engine_process(*SWITCHES) as engine:
        assert await complete(engine, max_tokens=200, stop=["a", "e", "i", "o", "u"]) == 200
        page = (await send_request(engine.authority, get_request("/metrics"))).body.decode()
        samples = [sample for family in text_string_to_metric_families(page) for sample in family.samples]
        ended = {
            sample.labels["finished_reason"]: sample.value
            for sample in samples
            if sample.name == "vllm:request_success_total"
        }
        assert ended == {"stop": 1, "length": 0, "abort": 0, "error": 0, "repetition": 0}


async def test_the_page_says_its_format_and_is_a_page_of_prometheus() -> None:
    async with engine_process(*SWITCHES, "--data-parallel-size", "2") as engine:
        answer = await send_request(engine.authority, get_request("/metrics"))
        assert answer.fields["content-type"].startswith("text/plain; version=")
        families = {family.name: family for family in text_string_to_metric_families(answer.body.decode())}
        ranks = {sample.labels["engine"] for sample in families["vllm:num_requests_running"].samples}
        assert ranks == {"0", "1"}


async def test_every_dialect_is_counted_like_a_chat() -> None:
    turns = [{"role": "user", "content": "x"}]
    chat: dict[str, object] = {"model": "tiny", "max_tokens": 5, "messages": turns}
    requests = [("/v1/chat/completions", chat), ("/v1/messages", chat)]
    requests.append(("/v1/responses", {"model": "tiny", "max_output_tokens": 5, "input": "x"}))
    async with engine_process(*SWITCHES, "--response-store") as engine:
        for path, body in requests:
            for more in ({}, {"stream": True}):
                assert (await send_request(engine.authority, post_request(path, body | more))).status == 200
        begun = (await send_request(engine.authority, post_request(path, body | {"background": True}))).json()

        async def ended() -> float:
            return await read_metric(engine.authority, "vllm:request_success_total")

        await wait_for_value(ended, lambda count: count == 7, "ended requests")
        wanted = {"vllm:time_to_first_token_seconds_count": 7, "vllm:generation_tokens_total": 35}
        assert {name: await read_metric(engine.authority, name) for name in wanted} == wanted
        await send_request(engine.authority, get_request(f"/v1/responses/{begun['id']}"))
        page = (await send_request(engine.authority, get_request("/metrics"))).body.decode()
        assert 'http_requests_total{handler="/v1/responses/{response_id}",method="GET",status="2xx"} 1.0' in page
