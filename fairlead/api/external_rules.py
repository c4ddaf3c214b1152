"""The rules of a ModelDeployment whose engine is an OpenAI-compatible API that others run."""

from typing import Any, Final

from fairlead.api.spec.engine import EngineType
from fairlead.api.spec.model_source import API_SCHEME
from fairlead.api.spec.pools import PoolRole
from fairlead.api.strict_model import FieldPath, Rule


def _is_api(spec: Any) -> bool:
    return spec.engine.type is EngineType.OPENAI


def _selecting_pool(spec: Any) -> FieldPath | bool:
    if not _is_api(spec):
        return False
    for index, pool in enumerate(spec.pools):
        if pool.selector is not None:
            return ("pools", index, "selector")
        if pool.role is not PoolRole.SERVE:
            return ("pools", index, "role")
    return False


def _unsafe_token(spec: Any) -> FieldPath | bool:
    if not _is_api(spec):
        return False
    for number, pool in enumerate(spec.pools):
        for index, endpoint in enumerate(pool.endpoints):
            if endpoint.token_secret_key_ref is not None and not endpoint.url.startswith("https://"):
                return ("pools", number, "endpoints", index, "url")
    return False


EXTERNAL_API_RULES: Final = (
    Rule(
        # Objects of the first release may have no uri: the API server checks them, too.
        cel="(self.engine.type == 'OpenAI') == (has(self.model.uri) && self.model.uri.startsWith('openai://'))",
        message="an openai:// uri and an engine of type OpenAI need each other",
        fix="write both, for example `uri: openai://gpt-4o-mini`, or neither",
        at=("model", "uri"),
        violation=lambda spec: _is_api(spec) != (spec.model.scheme == API_SCHEME),
    ),
    Rule(
        cel="self.engine.type != 'OpenAI' || self.pools.all(pool, !has(pool.selector) && pool.role == 'Serve')",
        message="an API that others run has addresses, and the role Serve",
        fix="give the pool `endpoints: [{url: ...}]`, and remove selector and role",
        at=("pools",),
        violation=_selecting_pool,
    ),
    Rule(
        cel="self.engine.type != 'OpenAI' || self.pools.all(pool, !has(pool.endpoints) || pool.endpoints.all(endpoint, "
        "!has(endpoint.tokenSecretKeyRef) || endpoint.url.startsWith('https://')))",
        message="a token leaves the cluster over TLS only",
        fix="write an https:// url, or remove tokenSecretKeyRef",
        at=("pools",),
        violation=_unsafe_token,
    ),
)
