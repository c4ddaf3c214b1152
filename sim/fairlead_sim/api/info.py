"""Information endpoints: health, version, load, models, configuration, event sources and
metrics.
"""

import json
from importlib.resources import files
from typing import Any

import msgspec

from fairlead_sim.api.app import RequestContext
from fairlead_sim.runtime.settings import VERSION, EngineSettings

METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"


def send_json(call: RequestContext, body: object) -> None:
    """Sends 200 with a JSON body."""
    call.writer.send(200, msgspec.json.encode(body))


def health(call: RequestContext) -> None:
    """Sends 200 also while draining, sleeping and paused; 503 once the core is dead."""
    call.writer.send(503 if call.engine.is_core_dead else 200, b"", None)


def version(call: RequestContext) -> None:
    send_json(call, {"version": VERSION})


def load(call: RequestContext) -> None:
    """Sends the running and queued requests; 0 without load tracking."""
    tracked = call.engine.settings.surface.server_load_tracking
    send_json(call, {"server_load": len(call.engine.responses) if tracked else 0})


def models(call: RequestContext) -> None:
    engine = call.engine
    count = len(engine.models.names) + len(engine.models.adapters)
    ids = [f"{engine.random.getrandbits(62) | 1 << 63:016x}" for _ in range(count)]
    send_json(call, {"object": "list", "data": engine.models.model_cards(engine.unix_seconds(), ids)})


def world_size(call: RequestContext) -> None:
    """Sends one worker per data-parallel rank."""
    send_json(call, {"world_size": call.engine.settings.data_parallel})


def weight_info(call: RequestContext) -> None:
    send_json(call, {"weight_version": "default"})


def kv_event_sources(call: RequestContext) -> None:
    """Sends where each rank publishes its KV events."""
    sources: dict[str, Any] = {}
    for publisher in reversed(call.engine.publishers):
        sources.update(publisher.sources())
    send_json(call, sources)


def metrics(call: RequestContext) -> None:
    call.writer.send(200, call.engine.metrics.render(), METRICS_TYPE)


def server_info(call: RequestContext) -> None:
    """Sends vLLM's configuration tree with the values of this engine."""
    config = _config(call)
    if call.request.query.get("config_format") == "json":
        send_json(call, {"vllm_config": config})
    else:
        send_json(call, {"vllm_config": str(config)})


def _config(call: RequestContext) -> dict[str, Any]:
    settings, core = call.engine.settings, call.engine.drivers[0].core
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
    config["kv_events_config"] = _events(call)
    config["instance_id"] = str(id(call.engine))
    config["shutdown_timeout"] = round(settings.shutdown_timeout)
    return config


def _events(call: RequestContext) -> dict[str, Any] | None:
    publishers = call.engine.publishers
    if not publishers:
        return None
    sources: dict[str, Any] = publishers[0].sources()
    return dict(sources["0"])


def tokenizer_info(call: RequestContext) -> None:
    settings = call.engine.settings
    send_json(call, {"tokenizer_class": "SimulatedTokenizer", **_TOKENIZER, **_tokenizer_of(settings)})


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
