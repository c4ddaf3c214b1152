"""The table of all routes of the simulated engine."""

from fairlead_sim.api import admin, chat, completions, messages, responses, scores, tokenization
from fairlead_sim.api.app import Handler, Route


def _get_route(handler: Handler, switch: str | None = None) -> Route:
    return Route({"GET": handler}, switch=switch)


def _post_route(handler: Handler, switch: str | None = None) -> Route:
    return Route({"POST": handler}, switch=switch)


def _generation_route(handler: Handler, switch: str | None = None, *, anthropic: bool = False) -> Route:
    return Route({"POST": handler}, generates=True, switch=switch, anthropic=anthropic)


def build_routes() -> dict[str, Route]:
    """Returns the route of each path."""
    return {
        "/health": _get_route(admin.health),
        "/ping": Route({"GET": admin.health, "POST": admin.health}),
        "/version": _get_route(admin.version),
        "/load": _get_route(admin.load),
        "/metrics": _get_route(admin.metrics),
        "/v1/models": _get_route(admin.models),
        "/kv_event_sources": _get_route(admin.kv_event_sources),
        "/get_world_size": _get_route(admin.world_size),
        "/weight_info": _get_route(admin.weight_info),
        "/server_info": _get_route(admin.server_info, "dev_mode"),
        "/tokenizer_info": _get_route(admin.tokenizer_info, "tokenizer_info"),
        "/tokenize": _post_route(tokenization.tokenize),
        "/detokenize": _post_route(tokenization.detokenize),
        "/v1/chat/completions": _generation_route(chat.create_chat_completion),
        "/v1/completions": _generation_route(completions.create_completion),
        "/v1/embeddings": _generation_route(completions.embeddings),
        **dict.fromkeys(("/rerank", "/v1/rerank", "/v2/rerank"), _generation_route(scores.rerank)),
        **dict.fromkeys(("/score", "/v1/score"), _generation_route(scores.score)),
        "/classify": _generation_route(scores.classify),
        "/v1/messages": _generation_route(messages.create_message, anthropic=True),
        "/v1/messages/count_tokens": Route({"POST": messages.count_tokens}, anthropic=True),
        "/v1/responses": _generation_route(responses.create_response),
        "/v1/responses/{response_id}": _get_route(responses.retrieve_response),
        "/v1/responses/{response_id}/cancel": _post_route(responses.cancel_response),
        "/v1/chat/completions/render": _post_route(tokenization.render_chat, "scale_out"),
        "/v1/completions/render": _post_route(tokenization.render_completions, "scale_out"),
        "/inference/v1/generate": _generation_route(tokenization.generate_from_tokens, "scale_out"),
        "/adapters": _get_route(admin.list_adapters),
        "/v1/load_lora_adapter": _post_route(admin.load_adapter, "runtime_lora"),
        "/v1/unload_lora_adapter": _post_route(admin.unload_adapter, "runtime_lora"),
        "/abort_requests": _post_route(admin.abort_requests, "dev_mode"),
        "/sleep": _post_route(admin.sleep, "dev_mode"),
        "/wake_up": _post_route(admin.wake_up, "dev_mode"),
        "/is_sleeping": _get_route(admin.is_sleeping, "dev_mode"),
        "/pause": _post_route(admin.pause, "dev_mode"),
        "/resume": _post_route(admin.resume, "dev_mode"),
        "/is_paused": _get_route(admin.is_paused, "dev_mode"),
        "/reset_prefix_cache": _post_route(admin.reset_prefix_cache, "dev_mode"),
        "/collective_rpc": _post_route(admin.collective_rpc, "dev_mode"),
        "/query": _get_route(admin.bootstrap_info),
        "/sim/kv/read": _post_route(admin.read_blocks),
        "/sim/kv/take": _post_route(admin.take_blocks),
        "/sim/kv/held": _post_route(admin.count_cached_blocks),
        "/sim/kv/release": _post_route(admin.release_lease),
        "/sim/state": _get_route(admin.show_state),
        "/sim/faults": Route(
            {"GET": admin.show_faults, "POST": admin.arm_faults, "DELETE": admin.clear_faults},
        ),
    }
