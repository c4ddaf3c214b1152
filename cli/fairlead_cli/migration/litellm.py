"""LiteLLM: `config.yaml` of its proxy. Its models become external ones."""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from fairlead_cli.migration.draft import MigrationOptions, ModelDraft, PoolDraft, assemble
from fairlead_cli.migration.field_reader import FieldReader, Outcome

_ENGINES: Final = ("hosted_vllm", "openai", "openai_like", "custom_openai", "text-completion-openai")
_PRESETS: Final = {"simple-shuffle": None, "least-busy": "least-request"}
_NO_LIMITS: Final = "Fairlead limits callers, not backends: see the limits of API keys"
_NO_RETRIES: Final = "Fairlead's gateway has its own retries and deadlines"
_NO_KEYS: Final = ("none", "empty", "no-key", "not-needed", "dummy", "fake", "anything")
"""Usual values of `api_key` for servers that ask for none."""
_NEEDS_KEY: Final = (
    "a ModelDeployment holds no key for engines: remove it from the servers if they ask for it, or write a fleet file"
)
REASONS: Final = {
    "litellm_settings": "they are settings of LiteLLM's library; keep LiteLLM in front for callbacks and caching",
    "general_settings": "API keys and limits are objects of Fairlead's gateway; keep LiteLLM in front for its user database",
    "environment_variables": "the gateway needs no keys of providers",
    "router_settings.fallbacks": "Fairlead has no fallback from one model to another",
    "router_settings.context_window_fallbacks": "Fairlead has no fallback from one model to another",
    "router_settings.num_retries": _NO_RETRIES,
    "router_settings.timeout": _NO_RETRIES,
    "router_settings.allowed_fails": _NO_RETRIES,
    "router_settings.cooldown_time": _NO_RETRIES,
    "router_settings.redis_host": "gateways share state in the Redis of the chart's values",
    "router_settings.redis_port": "gateways share state in the Redis of the chart's values",
    "router_settings.redis_password": "gateways share state in the Redis of the chart's values",
}
_PARAMETERS: Final = {
    "rpm": _NO_LIMITS,
    "tpm": _NO_LIMITS,
    "max_parallel_requests": _NO_LIMITS,
    "timeout": _NO_RETRIES,
    "stream_timeout": _NO_RETRIES,
    "max_retries": _NO_RETRIES,
    "weight": "routing follows load and cached prefixes",
    "order": "routing follows load and cached prefixes",
}


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    """Returns an external ModelDeployment for each name of `model_list` that engines serve."""
    return [manifest for document in documents for manifest in _convert(document, options)]


def _convert(config: FieldReader, options: MigrationOptions) -> list[dict[str, Any]]:
    drafts: dict[str, ModelDraft] = {}
    for entry in config.entries("model_list"):
        _read_entry(config, entry, drafts)
    router = config.section("router_settings")
    for alias, name in router.mapping("model_group_alias").items():
        if name in drafts:
            drafts[name].served_names.append(alias)
        else:
            router.note("model_group_alias", f"{alias}: {name} is not served by engines", Outcome.DROPPED)
    strategy = router.text("routing_strategy")
    preset = _PRESETS.get(strategy)
    if strategy and strategy not in _PRESETS:
        router.note("routing_strategy", f"{strategy}: the default preset, dual-hash, routes", Outcome.CHANGED)
    manifests = []
    for draft in drafts.values():
        if preset:
            draft.spec["routing"] = {"preset": preset}
        manifests.append(assemble(draft, options))
    return manifests


def _read_entry(config: FieldReader, entry: FieldReader, drafts: dict[str, ModelDraft]) -> None:
    group, parameters = entry.text("model_name"), entry.section("litellm_params")
    provider, _, engine_name = parameters.text("model").partition("/")
    base = parameters.text("api_base")
    url = _endpoint(base)
    if provider not in _ENGINES or not url:
        reason = (
            f"{group}: {provider} is a provider: keep LiteLLM for it"
            if provider not in _ENGINES
            else f"{group}: without api_base, {provider} is a provider: keep LiteLLM for it"
            if not base
            else f"{group}: its api_base {base} is not the address of an engine"
        )
        parameters.skip(*parameters.names())
        entry.skip("model_info")
        entry.note("", reason, Outcome.DROPPED)
        return
    key = parameters.text("api_key")
    if key.lower() in _NO_KEYS:
        parameters.drop("api_key", "it is no key: the server asks for none")
    elif key:
        parameters.note("api_key", _NEEDS_KEY, Outcome.REQUIRED)
    for name, reason in _PARAMETERS.items():
        parameters.drop(name, reason)
    entry.drop("model_info", "the gateway learns lengths and prices from engines and AcceleratorClasses")
    draft = drafts.get(group)
    if draft is None:
        draft = ModelDraft(config, group, uri=f"hf://{engine_name}", served_names=[engine_name])
        if group != engine_name:
            draft.served_names.append(group)
        draft.pools = [PoolDraft(entry)]
        drafts[group] = draft
    elif draft.served_names[0] != engine_name:
        entry.note(
            "", f"{group}: another model than {draft.served_names[0]}: it needs a name of its own", Outcome.DROPPED
        )
        return
    if url not in draft.pools[0].endpoints:
        draft.pools[0].endpoints.append(url)


def _endpoint(base: str) -> str:
    """Returns scheme, host and port of `api_base`; empty for an address with another path."""
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        return ""
    if parts.path.rstrip("/") not in ("", "/v1"):
        return ""
    return f"{parts.scheme}://{parts.netloc}"
