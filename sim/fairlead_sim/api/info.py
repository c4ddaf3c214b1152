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


def send_json(context: RequestContext, body: object) -> None:
    """Sends 200 with a JSON body."""
    context.writer.send(200, msgspec.json.encode(body))


def health(context: RequestContext) -> None:
    """Sends 200, also while draining, sleeping or paused; 503 once the core has crashed."""
    context.writer.send(503 if context.engine.is_core_dead else 200, b"", None)


def version(context: RequestContext) -> None:
    send_json(context, {"version": VERSION})


def load(context: RequestContext) -> None:
    """Sends the number of running and queued requests; 0 without load tracking."""
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
