"""LiteLLM: `config.yaml` of its proxy. Its models become external ones."""

from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from fairlead_cli.migration.draft import MigrationOptions, ModelDraft, PoolDraft, assemble
from fairlead_cli.migration.field_reader import FieldReader, Outcome

_ENGINES: Final = ("hosted_vllm", "openai", "openai_like", "custom_openai", "text-completion-openai")
_ENVIRONMENT: Final = "os.environ/"
_PRESETS: Final = {"least-busy": "least-request"}
_NO_LIMITS: Final = "Fairlead has no rate limits: callers share engines fairly"
_NO_RETRIES: Final = "Fairlead's gateway has its own retries and deadlines"
_NO_FALLBACKS: Final = "Fairlead has no fallback from one model to another; LiteLLM in front of Fairlead keeps its own"
_NO_BUDGETS: Final = "Fairlead has no budgets: keep LiteLLM in front for them"
_NO_KEYS: Final = ("none", "empty", "no-key", "not-needed", "dummy", "fake", "anything")
"""Usual values of `api_key` for servers that ask for none."""
_NEEDS_KEY: Final = (
    "a ModelDeployment holds no key for engines: remove it from the servers if they ask for it, or write a fleet file"
)
REASONS: Final = {
    "litellm_settings": "they are settings of LiteLLM's library; keep LiteLLM in front for callbacks and caching",
    "general_settings": "API keys and limits are objects of Fairlead's gateway; keep LiteLLM in front for its user database",
    "environment_variables": "the gateway needs no keys of providers",
    "router_settings.fallbacks": _NO_FALLBACKS,
    "router_settings.context_window_fallbacks": _NO_FALLBACKS,
    "router_settings.num_retries": _NO_RETRIES,
    "router_settings.timeout": _NO_RETRIES,
    "router_settings.allowed_fails": _NO_RETRIES,
    "router_settings.cooldown_time": _NO_RETRIES,
    "router_settings.redis_host": "gateways share state in the Redis of the chart's values",
    "router_settings.redis_port": "gateways share state in the Redis of the chart's values",
    "router_settings.redis_password": "gateways share state in the Redis of the chart's values",
}
_LIBRARY: Final = {
    "fallbacks": _NO_FALLBACKS,
    "default_fallbacks": _NO_FALLBACKS,
    "context_window_fallbacks": _NO_FALLBACKS,
    "content_policy_fallbacks": _NO_FALLBACKS,
    "max_budget": _NO_BUDGETS,
    "budget_duration": _NO_BUDGETS,
    "max_user_budget": _NO_BUDGETS,
    "max_internal_user_budget": _NO_BUDGETS,
    "num_retries": _NO_RETRIES,
    "request_timeout": _NO_RETRIES,
}
_PARAMETERS: Final = {
    "max_budget": _NO_BUDGETS,
    "budget_duration": _NO_BUDGETS,
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
    """Returns an external ModelDeployment for each name of `model_list` that engines serve.

    Raises BadInput where only some back ends of a model can be carried over.
    """
    return [manifest for document in documents for manifest in _convert(document, options)]


def _convert(config: FieldReader, options: MigrationOptions) -> list[dict[str, Any]]:
    drafts: dict[str, ModelDraft] = {}
    left_out = [entry for entry in config.entries("model_list") if not _read_entry(config, entry, drafts)]
    for entry in left_out:
        group, reason = entry.text("model_name"), _why_left_out(entry)
        if group in drafts:
            raise entry.error(
                "litellm_params",
                f"{reason}: the model would lose this back end",
                hint="correct the entry, or remove it from the file to convert the model without it",
            )
        entry.skip("litellm_params", "model_info")
        entry.note("", reason, Outcome.DROPPED)
    library = config.section("litellm_settings")
    for name, reason in _LIBRARY.items():
        library.drop(name, reason)
    router = config.section("router_settings")
    for alias, name in router.mapping("model_group_alias").items():
        if name in drafts:
            drafts[name].served_names.append(alias)
        else:
            router.note("model_group_alias", f"{alias}: {name} is not served by engines", Outcome.DROPPED)
    strategy = router.text("routing_strategy")
    preset = _PRESETS.get(strategy)
    if strategy and preset is None:
        router.note(
            "routing_strategy",
            f"{strategy}: the default preset, dual-hash, routes by prefixes and load",
            Outcome.CHANGED,
        )
    manifests = []
    for draft in drafts.values():
        if preset:
            draft.spec["routing"] = {"preset": preset}
        manifests.append(assemble(draft, options))
    return manifests


def _why_left_out(entry: FieldReader) -> str:
    """Returns the reason that an entry is no back end of an external model."""
    group, parameters = entry.text("model_name"), entry.section("litellm_params")
    provider, _, _ = parameters.text("model").partition("/")
    base = parameters.text("api_base")
    if provider not in _ENGINES:
        return f"{group}: {provider} is a provider: keep LiteLLM for it"
    if not base:
        return f"{group}: without api_base, {provider} is a provider: keep LiteLLM for it"
    if not _endpoint(base):
        return f"{group}: its api_base {base} is not the address of an engine"
    return f"{group}: {parameters.text('model')} is another model than that of an earlier entry: it needs a name of its own"


def _read_entry(config: FieldReader, entry: FieldReader, drafts: dict[str, ModelDraft]) -> bool:
    """Adds the back end of an entry to the draft of its model.

    Returns whether it is an engine of that model.
    """
    group, parameters = entry.text("model_name"), entry.section("litellm_params")
    provider, _, engine_name = parameters.text("model").partition("/")
    base = parameters.text("api_base")
    url = _endpoint(base)
    if provider in _ENGINES and base.startswith(_ENVIRONMENT):
        raise parameters.error(
            "api_base",
            f"{group}: the address is in the variable {base.removeprefix(_ENVIRONMENT)}, which LiteLLM reads",
            hint="write the address, such as http://engine.example:8000/v1; of a provider, remove the entry",
        )
    draft = drafts.get(group)
    if provider not in _ENGINES or not url or (draft and draft.served_names[0] != engine_name):
        return False
    key = parameters.text("api_key")
    if key.lower() in _NO_KEYS:
        parameters.drop("api_key", "it is no key: the server asks for none")
    elif key:
        parameters.note("api_key", _NEEDS_KEY, Outcome.REQUIRED)
    for name, reason in _PARAMETERS.items():
        parameters.drop(name, reason)
    entry.drop("model_info", "the gateway learns lengths and prices from engines and AcceleratorClasses")
    if draft is None:
        draft = ModelDraft(config, group, uri=f"hf://{engine_name}", served_names=[engine_name])
        if group != engine_name:
            draft.served_names.append(group)
        draft.pools = [PoolDraft(entry)]
        drafts[group] = draft
    if url not in draft.pools[0].endpoints:
        draft.pools[0].endpoints.append(url)
    return True


def _endpoint(base: str) -> str:
    """Returns scheme, host and port of `api_base`; empty for an address with another path."""
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        return ""
    if parts.path.rstrip("/") not in ("", "/v1"):
        return ""
    return f"{parts.scheme}://{parts.netloc}"
