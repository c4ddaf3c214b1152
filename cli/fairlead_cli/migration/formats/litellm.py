"""LiteLLM: `config.yaml` of its proxy. Its models become external ones."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from typing import Any, Final
from urllib.parse import urlsplit

from fairlead import units
from fairlead.errors import BadInput
from fairlead.fleet.engine_url import normalize_endpoint_url
from fairlead.names import shorten_name
from fairlead.routes.fallback_graph import FallbackEdge, find_loop
from fairlead_cli.migration import assembly
from fairlead_cli.migration.drafts import MigrationOptions, ModelDraft, PoolDraft
from fairlead_cli.migration.field_reader import FieldReader, Outcome

_KINDS: Final = {
    "fallbacks": ("Unavailable", "NoCapacity"),
    "default_fallbacks": ("Unavailable", "NoCapacity"),
    "context_window_fallbacks": ("ContextTooLong",),
}
_CONTENT_POLICY: Final = "content_policy_fallbacks"
_NO_POLICY: Final = (
    "a gateway of Fairlead does not know why an engine refuses: an entry of onFailure with `when: [Refused]` follows "
    "every refusal"
)
_EVERY: Final = "*"

_ENGINES: Final = ("hosted_vllm", "openai", "openai_like", "custom_openai", "text-completion-openai")
_APIS: Final = (
    *("cerebras", "deepinfra", "deepseek", "fireworks_ai", "groq", "mistral", "nebius", "novita", "nvidia_nim"),
    *("openrouter", "perplexity", "sambanova", "together_ai", "xai"),
)
"""Providers whose APIs are OpenAI-compatible."""
_API_HOST: Final = "api.openai.com"
_ENVIRONMENT: Final = "os.environ/"
_PRESETS: Final = {"least-busy": "least-request"}
_SHARES: Final = ("weight", "rpm", "tpm")
_PRICES: Final = {
    "input": "input_cost_per_token",
    "cachedInput": "cache_read_input_token_cost",
    "output": "output_cost_per_token",
}
_NANO: Final = 1_000_000_000
_NO_LIMITS: Final = "a server has no limit of its own: set spec.limits of a ModelTenant"
_NO_DEADLINES: Final = "Fairlead's gateway has its own deadlines, and leaves engines that fail by itself"
_RETRIES: Final = "set spec.routing.maxAttempts, which counts the first try and every other engine"
_NO_BUDGETS: Final = "budgets belong to tenants: set spec.budget of a ModelTenant"
_NO_KEYS: Final = ("none", "empty", "no-key", "not-needed", "dummy", "fake", "anything")
"""Usual values of `api_key` for servers that ask for none."""
_NEEDS_KEY: Final = (
    "make the Secret {} with the key as its entry `token`, in the namespace of the installation, and give it to the "
    "namespace of the models by the chart value externalEngines.secrets"
)
REASONS: Final = {
    "litellm_settings": "they are settings of LiteLLM's library; keep LiteLLM in front for callbacks and caching",
    "general_settings": "API keys and limits are objects of Fairlead's gateway; keep LiteLLM in front for its user database",
    "environment_variables": "keys of endpoints are in Secrets",
    "router_settings.num_retries": _RETRIES,
    **{f"router_settings.{name}": _NO_DEADLINES for name in ("timeout", "allowed_fails", "cooldown_time")},
    **{
        f"router_settings.redis_{name}": "gateways share state in the Redis of the chart's values"
        for name in ("host", "port", "password")
    },
}
_LIBRARY: Final = {
    **dict.fromkeys(("max_budget", "budget_duration", "max_user_budget", "max_internal_user_budget"), _NO_BUDGETS),
    **dict.fromkeys(
        ("max_end_user_budget", "max_end_user_budget_id"), "give each user a key, whose limits count alone"
    ),
    "num_retries": _RETRIES,
    "request_timeout": _NO_DEADLINES,
}
_PARAMETERS: Final = {
    **dict.fromkeys(("max_budget", "budget_duration"), _NO_BUDGETS),
    **dict.fromkeys(("rpm", "tpm", "max_parallel_requests"), _NO_LIMITS),
    **dict.fromkeys(("timeout", "stream_timeout"), _NO_DEADLINES),
    "max_retries": _RETRIES,
    **dict.fromkeys(("weight", "order"), "routing follows load and cached prefixes"),
}


@dataclass(frozen=True, slots=True)
class FallbackList:
    """The fallbacks of one `model_name`, in order.

    name: None for each model without a list of its own.
    reader, field: where the list stands.
    """

    name: str | None
    kinds: tuple[str, ...]
    to: tuple[str, ...]
    reader: FieldReader
    field: str

    def drop(self, reason: str) -> None:
        self.reader.note(self.field, reason, Outcome.DROPPED)


def read_fallbacks(sections: Sequence[FieldReader]) -> list[FallbackList]:
    """Returns the lists of these sections, those of a model before those of all."""
    found: list[FallbackList] = []
    for reader in sections:
        reader.drop(_CONTENT_POLICY, _NO_POLICY)
        for setting, kinds in _KINDS.items():
            if setting not in reader:
                continue
            value = reader.value(setting)
            lists: dict[str | None, Any] = (
                {None: value} if setting == "default_fallbacks" else _merged(reader, setting, value)
            )
            for name, names in lists.items():
                if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
                    reader.note(setting, f"{name or setting}: not a list of the names of models", Outcome.DROPPED)
                    continue
                found.append(FallbackList(None if name == _EVERY else name, kinds, tuple(names), reader, setting))
    # A stable sort: lists of one model keep the order of their sections.
    return sorted(found, key=lambda one: one.name is None)


def lists_of(name: str, lists: Sequence[FallbackList], served: Mapping[str, Any]) -> list[FallbackList]:
    """Returns the lists that apply to a model and name another one that is served.

    served: by the names that are.
    """
    found: list[FallbackList] = []
    for one in lists:
        is_known = any(other.kinds == one.kinds for other in found)
        applies = one.name == name or (one.name is None and not is_known)
        if applies and any(to in served and to != name for to in one.to):
            found.append(one)
    return found


def note_unserved(lists: Sequence[FallbackList], served: Mapping[str, Any]) -> None:
    """Notes models of lists that are not carried over."""
    for one in lists:
        if one.name is not None and one.name not in served:
            one.drop(f"{one.name} is not carried over, and its fallbacks neither")
            continue
        for to in one.to:
            if to not in served:
                one.drop(f"{to} is no fallback: it is not carried over itself")


def add_fallbacks(
    route: assembly.RouteDraft, name: str, lists: Sequence[FallbackList], models_of: Callable[[str], list[str]]
) -> None:
    """Adds lists to the route of a model, in their order.

    models_of: returns the models behind a name; none for one that is not served.
    """
    edges: list[FallbackEdge] = []
    for one in lists:
        previous = list(route.targets)
        for to in one.to:
            for model in models_of(to) if to != name else ():
                added = [FallbackEdge(source, model, frozenset(one.kinds)) for source in previous]
                if find_loop([*edges, *added]):
                    one.drop(f"{to} after {previous[0]} forms a loop with the other lists of {name}")
                    continue
                edges += added
                route.fallbacks += [{"when": list(one.kinds), "after": edge.source, "to": model} for edge in added]
                previous = [model]


def _merged(reader: FieldReader, field: str, value: Any) -> dict[str | None, Any]:
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise reader.error(field, "is not a list of mappings")
    return {name: names for one in value for name, names in one.items()}


def convert_models(documents: Sequence[FieldReader], options: MigrationOptions) -> list[dict[str, Any]]:
    """Returns an external ModelDeployment for each model of `model_list` that engines serve, or an
    OpenAI-compatible API.

    A name that stands for several models, or has fallbacks, becomes a ModelRoute. Raises BadInput
    where only some back ends of a name can be carried over.
    """
    return [manifest for document in documents for manifest in _convert(document, options)]


@dataclass(slots=True)
class _ModelGroup:
    """The entries of one `model_name`: the drafts of their models by the engines' names.

    fallbacks: its lists.
    """

    name: str
    drafts: dict[str, ModelDraft] = field(default_factory=dict)
    entries: list[tuple[str, FieldReader]] = field(default_factory=list)
    fallbacks: list[FallbackList] = field(default_factory=list)

    @property
    def is_split(self) -> bool:
        """True if the name stands for several models."""
        return len(self.drafts) > 1

    @property
    def has_route(self) -> bool:
        """True if the name becomes one of a route."""
        return self.is_split or bool(self.fallbacks)

    @property
    def named_alike(self) -> bool:
        """True if the engines of a model call it by the name of the group."""
        draft = self.drafts.get(self.name)
        return draft is not None and not draft.is_api


def _convert(config: FieldReader, options: MigrationOptions) -> list[dict[str, Any]]:
    groups: dict[str, _ModelGroup] = {}
    left_out = [entry for entry in config.entries("model_list") if not _read_entry(config, entry, groups)]
    for group in groups.values():
        _drop_parameters(group)
    for entry in left_out:
        name, reason = entry.text("model_name"), _why_left_out(entry)
        if name in groups:
            raise entry.error(
                "litellm_params",
                f"{reason}: the model would lose this back end",
                hint="correct the entry, or remove it from the file to convert the model without it",
            )
        entry.skip("litellm_params", "model_info")
        entry.note("", reason, Outcome.LEFT_OUT)
    library = config.section("litellm_settings")
    for name, reason in _LIBRARY.items():
        library.drop(name, reason)
    router = config.section("router_settings")
    _read_lists([router, library], groups)
    strategy = router.text("routing_strategy")
    preset = _PRESETS.get(strategy)
    if strategy and preset is None:
        router.note(
            "routing_strategy",
            f"{strategy}: the default preset, dual-hash, routes by prefixes and load",
            Outcome.CHANGED,
        )
    routes = {group.name: _plan_split(group, groups, options) for group in groups.values() if group.has_route}
    for name in routes:
        if groups[name].is_split:
            config.note("model_list", f"{name}: {assembly.BY_CONVERSATION}")

    def models_of(name: str) -> list[str]:
        group = groups.get(name)
        return [] if group is None else [assembly.manifest_name(draft.name, options) for draft in group.drafts.values()]

    for name, route in routes.items():
        add_fallbacks(route, name, groups[name].fallbacks, models_of)
    _read_aliases(router, groups, routes)
    manifests = []
    for group in groups.values():
        for draft in group.drafts.values():
            if preset:
                draft.spec["routing"] = {"preset": preset}
            manifests.append(assembly.assemble(draft, options))
    taken = {manifest["metadata"]["name"] for manifest in manifests}
    return manifests + [assembly.assemble_route(route, taken=taken) for route in routes.values()]


def _read_lists(sections: Sequence[FieldReader], groups: Mapping[str, _ModelGroup]) -> None:
    """Gives each group its fallbacks."""
    lists = read_fallbacks(sections)
    note_unserved(lists, groups)
    for group in groups.values():
        found = lists_of(group.name, lists, groups)
        if found and group.named_alike and not group.is_split:
            for fallbacks in found:
                fallbacks.drop(
                    f"the engines call the model {group.name} too, so no route has that name: start them with another "
                    "--served-model-name, and name that in litellm_params.model"
                )
        else:
            group.fallbacks = found


def _drop_parameters(group: _ModelGroup) -> None:
    for _, entry in group.entries:
        parameters = entry.section("litellm_params")
        if group.is_split:
            parameters.skip("weight")
        for parameter, reason in _PARAMETERS.items():
            if parameter != "weight" or not group.is_split:
                parameters.drop(parameter, reason)


def _read_aliases(
    router: FieldReader, groups: Mapping[str, _ModelGroup], routes: Mapping[str, assembly.RouteDraft]
) -> None:
    """Adds each alias to the names of its model or its route."""
    aliases = router.section("model_group_alias")
    for alias in aliases.names():
        is_mapping = isinstance(aliases.peek(alias), dict)
        name = aliases.section(alias).text("model") if is_mapping else aliases.text(alias)
        if is_mapping and aliases.section(alias).flag("hidden"):
            router.note("model_group_alias", f"{alias}: /v1/models lists it, although it is hidden")
        if name in routes:
            routes[name].served_names.append(alias)
        elif name in groups:
            next(iter(groups[name].drafts.values())).served_names.append(alias)
        else:
            router.note("model_group_alias", f"{alias}: {name} is not served by engines", Outcome.DROPPED)


def _plan_split(
    group: _ModelGroup, groups: Mapping[str, _ModelGroup], options: MigrationOptions
) -> assembly.RouteDraft:
    """Returns the route of a name that stands for several models. Names the models after it.

    Raises BadInput if the engines of one of them have the name for it.
    """
    if group.named_alike:
        entry = next(entry for engine_name, entry in group.entries if engine_name == group.name)
        raise entry.error(
            "model_name",
            f"{group.name} stands for several models, and is what the engines of one of them call it",
            hint="start these engines with another --served-model-name, and name that in litellm_params.model",
        )
    shares = dict.fromkeys(group.drafts, Fraction(0))
    for (engine_name, _), share in zip(group.entries, _traffic_shares(group.entries), strict=True):
        shares[engine_name] += share
    taken = {assembly.dns_label(name) for name in groups}
    for engine_name, draft in group.drafts.items():
        draft.name = shorten_name(assembly.dns_label(f"{group.name}-{engine_name.rpartition('/')[2]}"), taken=taken)
        draft.served_names = [] if draft.is_api else [engine_name]
        taken.add(draft.name)
    names = [assembly.manifest_name(draft.name, options) for draft in group.drafts.values()]
    weights = dict(zip(names, assembly.whole_weights(list(shares.values())), strict=True))
    return assembly.RouteDraft(weights, name=group.name, served_names=[group.name])


def _traffic_shares(entries: Sequence[tuple[str, FieldReader]]) -> list[Fraction]:
    """Returns the share of each entry, as LiteLLM's `simple-shuffle` counts it.

    It is the first of `weight`, `rpm` and `tpm` that the first entry has, unless its sum is 0.
    Without them, all entries are alike.

    Source: `simple_shuffle.py` of LiteLLM.
    """
    for name in _SHARES:
        parameters = [entry.section("litellm_params") for _, entry in entries]
        if name not in parameters[0]:
            continue
        shares = [_share(section, name) for section in parameters]
        if sum(shares) > 0:
            return shares
    return [Fraction(1)] * len(entries)


def _share(parameters: FieldReader, name: str) -> Fraction:
    text = parameters.text(name) or "0"
    try:
        share = Fraction(text)
    except ValueError as error:
        raise parameters.error(name, f"{text!r} is not a number") from error
    if share < 0:
        raise parameters.error(name, "is below 0")
    return share


def _why_left_out(entry: FieldReader) -> str:
    """Returns the reason that an entry is no back end of an external model."""
    group, parameters = entry.text("model_name"), entry.section("litellm_params")
    provider, _, _ = parameters.text("model").partition("/")
    base = parameters.text("api_base")
    if provider in _APIS:
        return f"{group}: without an https:// address in api_base, {provider} is a provider: keep LiteLLM for it"
    if provider not in _ENGINES:
        return f"{group}: {provider} is a provider: keep LiteLLM for it"
    if not base:
        return f"{group}: without api_base, {provider} is a provider: keep LiteLLM for it"
    return f"{group}: its api_base {base} is not the address of an engine"


def _read_entry(config: FieldReader, entry: FieldReader, groups: dict[str, _ModelGroup]) -> bool:
    """Adds the back end of an entry to the draft of its model. Returns whether it is an engine."""
    name, parameters = entry.text("model_name"), entry.section("litellm_params")
    provider, _, engine_name = parameters.text("model").partition("/")
    base = parameters.text("api_base")
    is_api = _is_api(provider, base)
    url = _api_url(base) if is_api else _endpoint(base)
    if provider in (*_ENGINES, *_APIS) and base.startswith(_ENVIRONMENT):
        raise parameters.error(
            "api_base",
            f"{name}: the address is in the variable {base.removeprefix(_ENVIRONMENT)}, which LiteLLM reads",
            hint="write the address, such as http://engine.example:8000/v1; of a provider, remove the entry",
        )
    if (provider not in _ENGINES and not is_api) or not url:
        return False
    secret = _secret_of(parameters, name)
    price = _read_price(entry, parameters)
    group = groups.setdefault(name, _ModelGroup(name))
    group.entries.append((engine_name, entry))
    draft = group.drafts.get(engine_name)
    if draft is not None and draft.is_api != is_api:
        raise parameters.error("model", f"{name} has engines and an API that others run, which call it {engine_name}")
    if draft is None:
        uri = f"openai://{engine_name}" if is_api else f"hf://{engine_name}"
        names = [name] if is_api else list(dict.fromkeys([engine_name, name]))
        draft = ModelDraft(config, uri, name=name, served_names=names, is_api=is_api, pools=[PoolDraft(entry)])
        draft.spec |= {"price": price} if price else {}
        group.drafts[engine_name] = draft
    if price and price != draft.spec.get("price"):
        entry.note("", "its price differs from that of an earlier server of the model, which is kept", Outcome.DROPPED)
    if url not in draft.pools[0].endpoints:
        draft.pools[0].endpoints.append(url)
    if secret:
        draft.pools[0].secrets[url] = secret
    return True


def _read_price(entry: FieldReader, parameters: FieldReader) -> dict[str, str]:
    """Returns the price of an entry, in US dollars per million tokens; empty without one."""
    info = entry.section("model_info")
    found: dict[str, str] = {}
    for kind, name in _PRICES.items():
        holder = parameters if name in parameters else info
        if text := holder.text(name):
            try:
                found[kind] = units.format_token_price(round(Decimal(text) * _NANO))
                units.parse_token_price(found[kind])
            except (ArithmeticError, ValueError, BadInput):
                raise holder.error(name, f"{text!r} is no price", "write US dollars per token") from None
    if others := [name for name in info.names() if name not in _PRICES.values()]:
        info.skip(*others)
        entry.note("model_info", f"{', '.join(others)}: gateways learn them from engines", Outcome.DROPPED)
    if not found or {"input", "output"} <= found.keys():
        return found
    entry.note("", "its price is not carried over: spec.price has one of input and one of output", Outcome.DROPPED)
    return {}


def _secret_of(parameters: FieldReader, name: str) -> str:
    """Returns the name of the Secret for the key of an entry; empty without a key."""
    key = parameters.text("api_key")
    if key.lower() in _NO_KEYS:
        parameters.drop("api_key", "it is no key: the server asks for none")
        return ""
    if not key:
        return ""
    variable = key.removeprefix(_ENVIRONMENT) if key.startswith(_ENVIRONMENT) else f"{name}-key"
    secret = shorten_name(assembly.dns_label(variable))
    parameters.note("api_key", _NEEDS_KEY.format(secret), Outcome.REQUIRED)
    return secret


def _is_api(provider: str, base: str) -> bool:
    """Returns whether others run what an entry names: an OpenAI-compatible API of a provider."""
    if not base.startswith("https://"):
        return False
    return provider in _APIS or (provider in _ENGINES and urlsplit(base).hostname == _API_HOST)


def _api_url(base: str) -> str:
    """Returns `api_base` if it can be the URL of an endpoint; else an empty text."""
    try:
        normalize_endpoint_url(base)
    except BadInput:
        return ""
    return base


def _endpoint(base: str) -> str:
    """Returns scheme, host and port of `api_base`; empty for an address with another path."""
    parts = urlsplit(base)
    if parts.scheme not in ("http", "https") or not parts.netloc or "@" in parts.netloc:
        return ""
    if parts.path.rstrip("/") not in ("", "/v1"):
        return ""
    return f"{parts.scheme}://{parts.netloc}"
