"""The table of everything an engine serves, in one place."""

from fairlead_sim.server import (
    control,
    embeddings,
    generating,
    info,
    inside,
    kv_side,
    messages,
    responses,
    tokenizing,
)
from fairlead_sim.server.app import Handler, Route


def _get(handler: Handler, switch: str | None = None) -> Route:
    return Route({"GET": handler}, switch=switch)


def _post(handler: Handler, switch: str | None = None) -> Route:
    return Route({"POST": handler}, switch=switch)


def _generate(handler: Handler, switch: str | None = None, *, anthropic: bool = False) -> Route:
    return Route({"POST": handler}, generates=True, switch=switch, anthropic=anthropic)


def build() -> dict[str, Route]:
    """Path → route."""
    return {
        "/health": _get(info.health),
        "/ping": Route({"GET": info.health, "POST": info.health}),
        "/version": _get(info.version),
        "/load": _get(info.load),
        "/metrics": _get(info.metrics),
        "/v1/models": _get(info.models),
        "/kv_event_sources": _get(info.kv_event_sources),
        "/get_world_size": _get(info.world_size),
        "/weight_info": _get(info.weight_info),
        "/server_info": _get(info.server_info, "dev_mode"),
        "/tokenizer_info": _get(info.tokenizer_info, "tokenizer_info"),
        "/tokenize": _post(tokenizing.tokenize),
        "/detokenize": _post(tokenizing.detokenize),
        "/v1/chat/completions": _generate(generating.chat_completions),
        "/v1/completions": _generate(generating.plain_completions),
        "/v1/embeddings": _generate(embeddings.embeddings),
        "/v1/messages": _generate(messages.messages, anthropic=True),
        "/v1/messages/count_tokens": Route({"POST": messages.count_tokens}, anthropic=True),
        "/v1/responses": _generate(responses.responses),
        "/v1/chat/completions/render": _post(tokenizing.render_chat, "scale_out"),
        "/v1/completions/render": _post(tokenizing.render_completions, "scale_out"),
        "/inference/v1/generate": _generate(tokenizing.generate, "scale_out"),
        "/adapters": _get(control.adapters),
        "/v1/load_lora_adapter": _post(control.load_adapter, "runtime_lora"),
        "/v1/unload_lora_adapter": _post(control.unload_adapter, "runtime_lora"),
        "/abort_requests": _post(control.abort_requests, "dev_mode"),
        "/sleep": _post(control.sleep, "dev_mode"),
        "/wake_up": _post(control.wake_up, "dev_mode"),
        "/is_sleeping": _get(control.is_sleeping, "dev_mode"),
        "/pause": _post(control.pause, "dev_mode"),
        "/resume": _post(control.resume, "dev_mode"),
        "/is_paused": _get(control.is_paused, "dev_mode"),
        "/reset_prefix_cache": _post(control.reset_prefix_cache, "dev_mode"),
        "/collective_rpc": _post(control.collective_rpc, "dev_mode"),
        "/query": _get(kv_side.query),
        "/sim/kv/read": _post(kv_side.read),
        "/sim/kv/take": _post(kv_side.take),
        "/sim/kv/held": _post(kv_side.held),
        "/sim/kv/release": _post(kv_side.release),
        "/sim/state": _get(inside.state),
        "/sim/faults": Route(
            {"GET": inside.show_faults, "POST": inside.arm_faults, "DELETE": inside.clear_faults},
        ),
    }
