"""The paths that the gateway answers itself, without an engine: readiness and the list of
models.
"""

from collections.abc import Callable, Sequence

import msgspec

from fairlead_gateway.errors import MethodNotAllowed
from fairlead_gateway.http.response_writer import ResponseWriter
from fairlead_gateway.worker.dispatch.router_registry import RouterRegistry
from fairlead_gateway.worker.openai.model_names import public_model_names, resolve_model

READINESS_PATH = "/readyz"
_MODELS_PATH = "/v1/models"


class LocalRoutes:
    """The handler of `/readyz`, `/v1/models` and `/v1/models/NAME`.

    readiness: returns whether requests are served, and warnings.
    started_wall: Unix seconds, shown as the time at which every model was created.
    """

    def __init__(
        self, routers: RouterRegistry, readiness: Callable[[], tuple[bool, list[str]]], started_wall: int
    ) -> None:
        self._routers = routers
        self._readiness = readiness
        self._started_wall = started_wall

    def answer(self, path: str, response: ResponseWriter) -> None:
        """Sends the response of a local path. Raises UnknownModel."""
        if path == READINESS_PATH:
            is_ready, warnings = self._readiness()
            body = msgspec.json.encode({"ready": is_ready, "notes": warnings})
            response.send(200 if is_ready else 503, local_headers("readyz"), body)
            return
        fleet = self._routers.fleet
        if path in (_MODELS_PATH, _MODELS_PATH + "/"):
            models = [self._model_object(name, model.namespace) for name, model in public_model_names(fleet).items()]
            content: dict[str, object] = {"object": "list", "data": models}
        else:
            name = path[len(_MODELS_PATH) + 1 :]
            content = self._model_object(name, resolve_model(name, fleet).namespace)
        response.send(200, local_headers("models"), msgspec.json.encode(content))

    def _model_object(self, name: str, namespace: str) -> dict[str, object]:
        return {"id": name, "object": "model", "created": self._started_wall, "owned_by": namespace}


def is_local_path(path: str) -> bool:
    """Whether `LocalRoutes` answers the path."""
    return path in (READINESS_PATH, _MODELS_PATH) or path.startswith(_MODELS_PATH + "/")


def check_method(method: str, allowed: Sequence[str], response: ResponseWriter) -> bool:
    """Returns True if the method is allowed; answers OPTIONS and returns False.

    Raises MethodNotAllowed for all other methods.
    """
    if method in allowed:
        return True
    allow = ", ".join((*allowed, "OPTIONS"))
    if method != "OPTIONS":
        raise MethodNotAllowed(
            "this path does not support this method", hint=f"use {allow}", headers=(("allow", allow),)
        )
    response.send(200, f"allow: {allow}\r\n{local_headers('options')}", b"")
    return False


def local_headers(reason: str) -> str:
    """Returns the headers of a response that no engine made."""
    return (
        f"x-fairlead-instance: gateway\r\nx-fairlead-reason: {reason}\r\n"
        "x-fairlead-decision: none\r\nserver-timing: gateway\r\n"
    )
