"""`shadow` of a ModelRoute: a model that gets copies of requests, and whose answers are dropped."""

from typing import Annotated

from pydantic import Field

from fairlead.api.strict_model import StrictModel, field_error
from fairlead.api.value_types import ServedName
from fairlead.routes.model import Route


class ModelRouteShadow(StrictModel):
    """A model that gets copies of requests, at the lowest priority. Its answers are dropped."""

    model: Annotated[
        ServedName,
        Field(
            description="`namespace/name` of a model, or the name of one in the route's namespace",
            examples=["llama-8b-next"],
        ),
    ]
    percent: Annotated[
        int,
        Field(
            ge=0,
            le=100,
            description="share of the conversations whose requests are copied; 0: none",
            examples=["10"],
            json_schema_extra={"format": "int32"},
        ),
    ] = 100


def check_shadow(route: Route, at: tuple[str, ...] = ()) -> None:
    """Raises the error of a field if no request of the route could be copied.

    at: path of the route's spec below the validated value.
    """
    shadow = route.shadow
    if shadow is not None and all(model == shadow.model for _, model in route.target_paths()):
        message = "the model is the only target of the route, so nothing can be compared"
        raise field_error(message, "name another model", at=(*at, "shadow", "model"))
