"""The paths that the gateway answers itself, without an engine: readiness, release and the list of
models. Its own errors are sent here, too.
"""

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Final

import msgspec

from fairlead import __version__
from fairlead.fleet.model import Model
from fairlead.runtime.nonblocking_log import traceback_lines
from fairlead_gateway.dialects.error_shape import ANTHROPIC_ERRORS
from fairlead_gateway.dialects.table import DIALECTS, dialect_of
from fairlead_gateway.errors import (
    BodyTooLarge,
    ExternalRefused,
    GatewayError,
    MethodNotAllowed,
    NotPermitted,
    UnknownPath,
)
from fairlead_gateway.http.listener import ResponseWriter
from fairlead_gateway.openai.model_names import (
    NOTHING_HIDDEN,
    HiddenKeys,
    adapter_names,
    public_names,
    resolve_model_entry,
)
from fairlead_gateway.openai.request import is_passthrough_path, methods_of
from fairlead_gateway.proxy.context_lengths import ContextLengths, shortest
from fairlead_gateway.tenants.worker.tenant_policy import VisibleModels

PROBE_PATHS: Final = frozenset(("/readyz", "/health", "/ping"))
"""They need no key, and say the same to all."""
_VERSION_PATH: Final = "/version"
_MODELS_PATH: Final = "/v1/models"
DRAINING = "draining"
NO_FLEET_YET = "no fleet has been read yet"
NO_KEYS_YET = "no API key is known, since the keys file cannot be used"
_PUBLIC_NOTES = frozenset({DRAINING, NO_FLEET_YET, NO_KEYS_YET, "no Redis: limits and index stay local"})
"""Notes that every client may read. Others may name addresses, variables, models and instances."""
_log = logging.getLogger("fairlead.gateway")
_DEGRADED = "degraded: the management port says how, and so does this path to a client with an API key"


class LocalRoutes:
    """The handler of probes, `/version`, `/v1/models` and `/v1/models/NAME`.

    readiness: returns whether requests are served, and warnings.
    lengths: the context lengths of models.
    started_wall: Unix seconds, shown as the time at which every model was created.
    """

    def __init__(
        self, readiness: Callable[[], tuple[bool, list[str]]], lengths: ContextLengths, started_wall: int
    ) -> None:
        self._readiness = readiness
        self._lengths = lengths
        self._started_wall = started_wall

    def answer(
        self,
        path: str,
        response: ResponseWriter,
        visible: VisibleModels,
        *,
        shows_key: bool,
        refuses_external: bool = False,
    ) -> Coroutine[None, None, None] | None:
        """Sends the response of a local path. Raises UnknownModel and ExternalRefused.

        Returns the work that sends it later, if engines have to state context lengths first.

        visible: the models that the client may use.
        shows_key: whether the client has shown a known API key; without one, no details are sent.
        refuses_external: no model outside the cluster is listed.
        """
        if path == _VERSION_PATH:
            response.send(200, local_headers("version"), msgspec.json.encode({"version": __version__}))
            return None
        if path in PROBE_PATHS:
            is_ready, warnings = self._readiness()
            notes = warnings if shows_key else _public_notes(warnings)
            body = msgspec.json.encode({"ready": is_ready, "notes": notes})
            response.send(200 if is_ready else 503, local_headers("readyz"), body)
            return None
        hidden = visible.outside_cluster() if refuses_external else NOTHING_HIDDEN
        content = self._content(path, visible, hidden)

        def send(content: dict[str, object]) -> None:
            shown = _in_anthropic_form(content) if _is_anthropic(response) else content
            response.send(200, local_headers("models"), msgspec.json.encode(shown))

        async def send_later(unknown: list[str]) -> None:
            await self._lengths.read(unknown)
            send(self._content(path, visible, hidden))

        unknown = self._lengths.unknown(visible.fleet.models)
        if unknown:
            return send_later(unknown)
        send(content)
        return None

    def _content(self, path: str, visible: VisibleModels, hidden: HiddenKeys) -> dict[str, object]:
        """Returns the list of models, or the object of one.

        Raises UnknownModel and ExternalRefused.
        """
        stated = {key: model.context_length for key, model in visible.fleet.models.items()}
        lengths = self._lengths.by_model | {key: length for key, length in stated.items() if length is not None}
        if path in (_MODELS_PATH, _MODELS_PATH + "/"):
            fleet = visible.fleet
            models = [
                self._model_object(name, namespace, _length(name, visible, lengths))
                for name, namespace in public_names(fleet, hidden).items()
            ]
            models += [
                self._adapter_object(name, model, lengths)
                for name, (model, _) in adapter_names(fleet).items()
                if model.key not in hidden.models
            ]
            return {"object": "list", "data": models}
        return self._named_object(path[len(_MODELS_PATH) + 1 :], visible, hidden, lengths)

    def _named_object(
        self, name: str, visible: VisibleModels, hidden: HiddenKeys, lengths: Mapping[str, int]
    ) -> dict[str, object]:
        """Returns the object of a model, an adapter or a route.

        Raises UnknownModel, and ExternalRefused if it is hidden.
        """
        route = visible.fleet.resolve_route(name)
        if route is not None:
            if route in hidden.routes:
                raise ExternalRefused(route)
            return self._model_object(name, visible.fleet.routes[route].namespace, _length(name, visible, lengths))
        entry = resolve_model_entry(name, visible.fleet, visible.names)
        if entry.key in hidden.models:
            raise ExternalRefused(entry.key)
        if entry.adapter is not None:
            return self._adapter_object(name, entry.model, lengths)
        return self._model_object(name, entry.model.namespace, lengths.get(entry.key))

    def _adapter_object(self, name: str, base: Model, lengths: Mapping[str, int]) -> dict[str, object]:
        found = self._model_object(name, base.namespace, lengths.get(base.key))
        if not base.adapters_only:
            found["parent"] = base.key if base.shadowed else base.name
        return found

    def _model_object(self, name: str, namespace: str, length: int | None) -> dict[str, object]:
        found: dict[str, object] = {
            "id": name,
            "object": "model",
            "created": self._started_wall,
            "owned_by": namespace,
        }
        if length is not None:
            found["max_model_len"] = length
        return found


def _in_anthropic_form(content: dict[str, Any]) -> dict[str, object]:
    """Returns the list of models, or one of them, as Anthropic's API does. All are on one page.

    Source: platform.claude.com/docs/en/api/models-list.
    """
    if "data" in content:
        models = [_in_anthropic_form(model) for model in content["data"]]
        ids = [model["id"] for model in models] or [None]
        return {"data": models, "has_more": False, "first_id": ids[0], "last_id": ids[-1]}
    created_at = datetime.fromtimestamp(content["created"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    shown = {"type": "model", "id": content["id"], "display_name": content["id"], "created_at": created_at}
    return shown if "max_model_len" not in content else shown | {"max_input_tokens": content["max_model_len"]}


def _length(name: str, visible: VisibleModels, lengths: Mapping[str, int]) -> int | None:
    """Returns the context length of a model, or that of a route: the shortest of its models."""
    route = visible.fleet.resolve_route(name)
    if route is not None:
        return shortest(lengths, visible.fleet.routes[route].models())
    entry = visible.names.get(name)
    return None if entry is None else lengths.get(entry.key)


def _public_notes(warnings: Sequence[str]) -> list[str]:
    notes = [warning for warning in warnings if warning in _PUBLIC_NOTES]
    return notes if len(notes) == len(warnings) else [*notes, _DEGRADED]


def is_local_path(path: str) -> bool:
    return path in PROBE_PATHS or path in (_VERSION_PATH, _MODELS_PATH) or path.startswith(_MODELS_PATH + "/")


def check_method(method: str, allowed: Sequence[str], response: ResponseWriter) -> bool:
    """Returns True if the method is allowed; answers OPTIONS and returns False.

    Raises MethodNotAllowed for all other methods.
    """
    if method in allowed:
        return True
    if method != "OPTIONS":
        raise _method_not_allowed(allowed)
    response.send(200, f"allow: {_allow(allowed)}\r\n{local_headers('options')}", b"")
    return False


def check_counted_path(path: str) -> None:
    """Raises NotPermitted for a path whose tokens the gateway does not count."""
    dialect = dialect_of(path)
    if dialect.is_computed and not dialect.is_counted and (path in DIALECTS or _is_passed_on(path)):
        hint = (
            "use chat completions, completions, embeddings, /v1/responses, /v1/messages, rerank, score or classify, "
            "or ask the operator of the gateway for `otherPaths: Admit`"
        )
        message = "this tenant may not use this path, since the gateway does not count its tokens"
        raise NotPermitted(message, code="path_not_permitted", hint=hint)


def _is_passed_on(path: str) -> bool:
    return not is_local_path(path) and is_passthrough_path(path)


def check_body(method: str, path: str) -> None:
    """Raises BodyTooLarge, MethodNotAllowed or UnknownPath for a body that no path reads."""
    if method == "POST" and _is_passed_on(path):
        return
    allowed: Sequence[str] | None = None
    if is_local_path(path):
        allowed = ("GET", "HEAD")
    elif path in DIALECTS:
        allowed = ("POST",)
    elif is_passthrough_path(path):
        allowed = methods_of(path)
    elif path != "*":
        raise unknown_path(path)
    if allowed is not None and method != "OPTIONS" and method not in allowed:
        raise _method_not_allowed(allowed)
    raise BodyTooLarge(
        "this path takes no body with this method", hint="send neither Content-Length nor Transfer-Encoding"
    )


def unknown_path(path: str) -> UnknownPath:
    """Returns the error of a path under which nothing is served."""
    if f"{path}/".startswith("/v1/v1/"):
        return UnknownPath("/v1 stands twice in this path", hint="leave it out of the client's base URL")
    hint = "the API lies under /v1" if "%" not in path else "write a path without percent signs"
    return UnknownPath("nothing is served under this path", hint=_hints().get(path, hint))


@cache
def _hints() -> dict[str, str]:
    table = msgspec.json.decode(Path(__file__).with_name("engine_paths.json").read_bytes(), type=dict[str, list[str]])
    return {path: hint for hint, paths in table.items() for path in paths}


def _method_not_allowed(allowed: Sequence[str]) -> MethodNotAllowed:
    allow = _allow(allowed)
    return MethodNotAllowed("this path does not support this method", hint=f"use {allow}", headers=(("allow", allow),))


def _allow(allowed: Sequence[str]) -> str:
    return ", ".join((*allowed, "OPTIONS"))


def local_headers(reason: str) -> str:
    """Returns the headers of a response that no engine made."""
    return (
        f"x-fairlead-instance: gateway\r\nx-fairlead-reason: {reason}\r\n"
        "x-fairlead-decision: none\r\nserver-timing: gateway\r\n"
    )


def send_error(error: GatewayError, response: ResponseWriter, headers: str) -> None:
    """Sends an error of the gateway as the response, in the dialect of its path.

    A stream that has its head already gets an event.
    """
    own_headers = "".join(f"{name}: {value}\r\n" for name, value in error.headers)
    path = error.path if response.head is None else response.head.path
    errors = ANTHROPIC_ERRORS if path not in DIALECTS and _is_anthropic(response) else dialect_of(path).errors
    body = error.body(response.request_id)
    if response.is_waiting:
        response.end_with_error(errors.only_event(error.status, body))
    else:
        response.send(error.status, own_headers + headers, errors.body(error.status, body))


def _is_anthropic(response: ResponseWriter) -> bool:
    return response.head is not None and response.head.get(b"anthropic-version") is not None


def log_internal_error(request_id: str, error: Exception) -> None:
    """Logs the type of an error and its lines of code, not its text.

    Why: the text may hold a part of a prompt.
    """
    _log.error("request %s: %s\n%s", request_id, type(error).__name__, traceback_lines(error))
