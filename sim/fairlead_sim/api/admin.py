"""Management endpoints: sleep, pause, reset, abort and LoRA adapters.

``/sim/…``: the engine's state for tests, and faults on demand.

Information endpoints: health, version, load, models, configuration, event sources and
metrics.

The side channel of KV transfer: what a prefill engine answers to other engines.

Why: real engines use other ports and protocols. Here the same server answers, so an engine that
hangs or has crashed does so for its peers, too.
"""

import asyncio
import json
from dataclasses import asdict
from importlib.resources import files
from typing import Any

import msgspec

from fairlead.errors import BadInput
from fairlead_sim.api.app import RequestContext
from fairlead_sim.http.errors import (
    InternalError,
    InvalidRequest,
    MalformedRequest,
    ResourceNotFound,
    RouteNotFound,
    ValidationFinding,
)
from fairlead_sim.http.fields import RequestFields, json_body
from fairlead_sim.kv_transfer.connector import KvConnector
from fairlead_sim.runtime import fault_injection
from fairlead_sim.runtime.settings import VERSION, EngineSettings
from fairlead_sim.runtime.simulated_engine import MEMORY_PARTS

METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"

_TOKENIZER = {
    "backend": "tokenizers",
    "bos_token": "<|begin|>",
    "clean_up_tokenization_spaces": False,
    "eos_token": "<|end|>",
    "extra_special_tokens": ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"],
}
_TEMPLATE = (
    "<|begin|>{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

PAUSE_MODES = ("abort", "wait", "keep")


def send_json(context: RequestContext, body: object) -> None:
    context.writer.send(200, msgspec.json.encode(body))


def health(context: RequestContext) -> None:
    context.writer.send(503 if context.engine.is_core_dead else 200, b"", None)


def version(context: RequestContext) -> None:
    send_json(context, {"version": VERSION})


def load(context: RequestContext) -> None:
    tracked = context.engine.settings.surface.server_load_tracking
    send_json(context, {"server_load": len(context.engine.responses) if tracked else 0})


def models(context: RequestContext) -> None:
    engine = context.engine
    count = len(engine.models.names) + len(engine.models.adapters)
    ids = [f"{engine.random.getrandbits(62) | 1 << 63:016x}" for _ in range(count)]
    send_json(context, {"object": "list", "data": engine.models.model_cards(engine.unix_seconds(), ids)})


def world_size(context: RequestContext) -> None:
    """Sends the number of workers: one per data-parallel rank."""
    send_json(context, {"world_size": context.engine.settings.data_parallel})


def weight_info(context: RequestContext) -> None:
    send_json(context, {"weight_version": "default"})


def kv_event_sources(context: RequestContext) -> None:
    """Sends the addresses at which each rank publishes its KV events."""
    sources: dict[str, Any] = {}
    for publisher in reversed(context.engine.publishers):
        sources.update(publisher.sources())
    send_json(context, sources)


def metrics(context: RequestContext) -> None:
    context.writer.send(200, context.engine.metrics.render(), METRICS_TYPE)


def server_info(context: RequestContext) -> None:
    """Sends vLLM's configuration tree with the values of this engine."""
    config = _config(context)
    if context.request.query.get("config_format") == "json":
        send_json(context, {"vllm_config": config})
    else:
        send_json(context, {"vllm_config": str(config)})


def _config(context: RequestContext) -> dict[str, Any]:
    settings, core = context.engine.settings, context.engine.drivers[0].core
    text = files("fairlead_sim.api").joinpath("vllm_config.json").read_text("utf-8")
    config: dict[str, Any] = json.loads(text)
    config["model_config"] |= {
        "model": settings.model,
        "tokenizer": settings.model,
        "max_model_len": settings.max_model_len,
        "served_model_name": settings.served_names[0],
        "seed": settings.seed,
    }
    config["cache_config"] |= {
        "block_size": settings.block_tokens,
        "effective_attention_block_size": settings.block_tokens,
        "num_gpu_blocks": core.pool.blocks,
        "kv_cache_size_tokens": core.max_sequence_tokens,
        "kv_cache_max_concurrency": core.max_sequence_tokens / settings.max_model_len,
    }
    config["parallel_config"] |= {
        "data_parallel_size": settings.data_parallel,
        "data_parallel_size_local": settings.data_parallel,
        "world_size": 1,
    }
    config["scheduler_config"] |= {
        "max_num_batched_tokens": core.profile.step_tokens,
        "max_num_seqs": core.profile.max_sequences,
        "max_num_queued_reqs": settings.max_queued_requests,
        "max_num_queued_tokens": settings.max_queued_tokens,
        "policy": settings.scheduling,
    }
    config["lora_config"] |= {"max_loras": settings.max_adapters, "max_cpu_loras": settings.max_adapters}
    config["kv_events_config"] = _events(context)
    config["instance_id"] = str(id(context.engine))
    config["shutdown_timeout"] = round(settings.shutdown_timeout)
    return config


def _events(context: RequestContext) -> dict[str, Any] | None:
    publishers = context.engine.publishers
    if not publishers:
        return None
    sources: dict[str, Any] = publishers[0].sources()
    return dict(sources["0"])


def tokenizer_info(context: RequestContext) -> None:
    settings = context.engine.settings
    send_json(context, {"tokenizer_class": "SimulatedTokenizer", **_TOKENIZER, **_tokenizer_of(settings)})


def _tokenizer_of(settings: EngineSettings) -> dict[str, Any]:
    return {
        "model_max_length": settings.max_model_len,
        "pad_token": "<|pad|>",
        "chat_template": _TEMPLATE,
        "truncation_side": "left",
        "name_or_path": settings.model,
        "is_local": True,
        "local_files_only": True,
        "added_tokens_decoder": {
            str(number): f"<|{name}|>"
            for number, name in enumerate(("pad", "begin", "end", "system", "user", "assistant", "tool"))
        },
    }


def is_sleeping(context: RequestContext) -> None:
    send_json(context, {"is_sleeping": context.engine.sleep_mode.level is not None})


def sleep(context: RequestContext) -> None:
    """Serves ``?level=0|1|2&mode=abort|wait``; new requests wait until ``/wake_up``."""
    level = _query_integer(context, "level", 1, 2)
    mode = _query_mode(context, "abort")
    context.engine.sleep(level, mode, lambda: send_json(context, {"status": "sleeping", "level": level}))


def wake_up(context: RequestContext) -> None:
    """Serves ``?tags=weights|kv_cache``: restores that part, or all without a tag."""
    tags = context.request.query.get("tags")
    parts = MEMORY_PARTS if tags is None else frozenset({tags})
    body = {"status": "awake", "tags": None if tags is None else [tags]}
    context.engine.sleep_mode.wake_up(parts, lambda: send_json(context, body))


def is_paused(context: RequestContext) -> None:
    send_json(context, {"is_paused": context.engine.is_paused})


def pause(context: RequestContext) -> None:
    """Serves ``?mode=abort|wait|keep&clear_cache=…``; new requests wait until ``/resume``.

    The prefix cache is emptied by default, unless a sequence still runs.
    """
    engine = context.engine
    mode = _query_mode(context, "abort")
    clear = _query_flag(context, "clear_cache", default=True)

    def paused() -> None:
        if clear:
            engine.reset_prefix_cache()
        send_json(context, {"status": "paused"})

    engine.pause(mode, paused)


def resume(context: RequestContext) -> None:
    context.engine.resume()
    send_json(context, {"status": "resumed"})


def reset_prefix_cache(context: RequestContext) -> None:
    preempt = _query_flag(context, "reset_running_requests", default=False)
    send_json(context, {"success": context.engine.reset_prefix_cache(preempt_running=preempt)})


def abort_requests(context: RequestContext) -> None:
    """Ends requests by id. Unknown ids count as aborted, as in the real engine."""
    fields = RequestFields(json_body(context.request))
    names = fields.strings("request_ids")
    fields.check()
    context.engine.abort_responses(set(names))
    send_json(context, {"status": "aborted", "aborted": len(names)})


def collective_rpc(context: RequestContext) -> None:
    """Serves ``reload_weights``, the only method of this worker."""
    fields = RequestFields(json_body(context.request))
    fields.require("method")
    method = fields.text("method")
    fields.check()
    if method == "reload_weights":
        context.engine.sleep_mode.reload_weights(lambda: send_json(context, {"results": [None]}))
        return
    raise InternalError(
        f"Call to collective_rpc method failed: Worker failed with error ''CPUWorker' object has no attribute '{method}'', "
        "please check the stack trace above for the root cause",
        bare=True,
    )


def load_adapter(context: RequestContext) -> None:
    """Loads an adapter; answers when that has taken its time, and requests may name it then."""
    engine = context.engine
    name = engine.models.begin_load(RequestFields(json_body(context.request)))

    def loaded() -> None:
        context.writer.send(200, engine.models.end_load(name).encode(), None)

    engine.call_after(engine.settings.adapter_load_seconds, loaded)


def unload_adapter(context: RequestContext) -> None:
    context.writer.send(200, context.engine.models.unload(RequestFields(json_body(context.request))).encode(), None)


def list_adapters(context: RequestContext) -> None:
    loaded = context.engine.models.adapters
    context.writer.send(200, msgspec.json.encode([{"name": adapter.name, "path": adapter.path} for adapter in loaded]))


def _query_integer(context: RequestContext, name: str, default: int, maximum: int) -> int:
    text = context.request.query.get(name)
    if text is None:
        return default
    where = f"query.{name}"
    try:
        value = int(text)
    except ValueError:
        message = "Input should be a valid integer, unable to parse string as an integer"
        raise MalformedRequest([ValidationFinding("int_parsing", where, message, text)]) from None
    if value < 0:
        raise MalformedRequest(
            [ValidationFinding("greater_than_equal", where, "Input should be greater than or equal to 0", text)]
        )
    if value > maximum:
        raise MalformedRequest(
            [ValidationFinding("less_than_equal", where, f"Input should be less than or equal to {maximum}", text)]
        )
    return value


def _query_mode(context: RequestContext, default: str) -> str:
    mode = context.request.query.get("mode", default)
    if mode not in PAUSE_MODES:
        expected = "'abort', 'wait' or 'keep'"
        raise MalformedRequest([ValidationFinding("literal_error", "query.mode", f"Input should be {expected}", mode)])
    return mode


def _query_flag(context: RequestContext, name: str, *, default: bool) -> bool:
    text = context.request.query.get(name)
    if text is None:
        return default
    word = text.lower()
    if word in ("true", "1", "yes", "on", "t", "y"):
        return True
    if word in ("false", "0", "no", "off", "f", "n"):
        return False
    message = "Input should be a valid boolean, unable to interpret input"
    raise MalformedRequest([ValidationFinding("bool_parsing", f"query.{name}", message, text)])


def show_state(context: RequestContext) -> None:
    engine, app = context.engine, context.app
    ranks = [driver.core.stats for driver in engine.drivers]
    body: dict[str, Any] = {
        "running": sum(rank.running for rank in ranks),
        "waiting": sum(rank.waiting for rank in ranks),
        "held": engine.unfinished - sum(driver.unfinished for driver in engine.drivers),
        "inside": len(engine.responses),
        "connections": len(app.connections),
        "requests_seen": app.requests_seen,
        "draining": engine.is_draining,
        "requests_while_draining": app.requests_while_draining,
        "paused": engine.is_paused,
        "sleep_level": engine.sleep_mode.level,
        "given_up_seconds": sum(driver.skipped_seconds for driver in engine.drivers),
        "ranks": [asdict(rank) for rank in ranks],
        "faults": engine.fault_injector.armed_faults(),
        "kv_transfer": None if engine.kv_connector is None else engine.kv_connector.state(),
    }
    send_json(context, body)


def show_faults(context: RequestContext) -> None:
    send_json(context, {"armed": context.engine.fault_injector.armed_faults(), "kinds": fault_injection.FAULT_KINDS})


def arm_faults(context: RequestContext) -> None:
    """Arms one fault or a list of them, and sends what ``show_faults`` sends."""
    body = json_body(context.request)
    try:
        armed = [fault_injection.fault_from_mapping(item) for item in (body if isinstance(body, list) else [body])]
    except BadInput as error:
        raise InvalidRequest(str(error), param=error.field) from error
    for fault in armed:
        context.engine.fault_injector.arm(fault)
    show_faults(context)


def clear_faults(context: RequestContext) -> None:
    context.engine.fault_injector.clear()
    show_faults(context)


def bootstrap_info(context: RequestContext) -> None:
    """Serves Mooncake's bootstrap server: rank → engine id and worker addresses."""
    transfer = _connector(context)
    if transfer.settings.connector != "mooncake":
        raise RouteNotFound
    ranks = range(context.engine.settings.data_parallel)
    address = {"0": {"0": f"tcp://{transfer.settings.host}:{transfer.port}"}}
    send_json(context, {str(rank): {"engine_id": transfer.engine_id, "worker_addr": address} for rank in ranks})


def read_blocks(context: RequestContext) -> None:
    """Sends the contents of blocks to any reader with the right engine id.

    Renews the lease that the reader names.
    """
    transfer, body = _connector_and_body(context)
    if body.get("engine_id") != transfer.engine_id:
        raise ResourceNotFound("no engine of this id")
    lender, name = transfer.leases, str(body.get("request_id"))
    lender.renew(name)
    lent = lender.get(name)
    try:
        contents = lender.contents(0 if lent is None else lent.rank, body["blocks"])
    except IndexError:
        raise ResourceNotFound("no such block") from None
    send_json(context, {"contents": contents})


def take_blocks(context: RequestContext) -> None:
    """Sends the blocks of one transfer as soon as it is prefilled; 404 after ``abort_seconds``."""
    transfer, body = _connector_and_body(context)
    if transfer.settings.connector == "mooncake" and body.get("engine_id") != transfer.engine_id:
        raise ResourceNotFound("no engine of this id")
    name = str(body.get("transfer_id"))
    reply, lender = context.writer, transfer.leases

    def send_contents() -> None:
        late.cancel()
        lent = lender.get(name)
        assert lent is not None
        reply.send(200, msgspec.json.encode({"contents": lender.contents(lent.rank, lent.blocks)}))

    def give_up() -> None:
        lender.remove_waiter(name, send_contents)
        reply.fail(ResourceNotFound("no such transfer"))

    late = asyncio.get_running_loop().call_later(transfer.settings.abort_seconds, give_up)
    if lender.get(name) is not None:
        send_contents()
    else:
        lender.call_when_granted(name, send_contents)

        def gone() -> None:
            late.cancel()
            lender.remove_waiter(name, send_contents)

        reply.on_gone = gone


def count_cached_blocks(context: RequestContext) -> None:
    transfer, body = _connector_and_body(context)
    send_json(context, {"blocks": transfer.cached_blocks([int(key) for key in body.get("keys") or ()])})


def release_lease(context: RequestContext) -> None:
    transfer, body = _connector_and_body(context)
    send_json(context, {"released": transfer.leases.release(str(body.get("name")))})


def _connector(context: RequestContext) -> KvConnector:
    if context.engine.kv_connector is None:
        raise RouteNotFound
    return context.engine.kv_connector


def _connector_and_body(context: RequestContext) -> tuple[KvConnector, dict[str, Any]]:
    return _connector(context), RequestFields(json_body(context.request)).body
