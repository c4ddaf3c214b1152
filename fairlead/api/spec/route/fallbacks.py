"""`onFailure` of a ModelRoute: models that answer where a target has not."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from fairlead.api.strict_model import FieldPath, StrictModel, field_error
from fairlead.api.value_types import ServedName, check_unique
from fairlead.routes.fallback_graph import fallback_edges, find_loop
from fairlead.routes.model import FailureKind, Route


class ModelRouteFallback(StrictModel):
    """A model that gets requests which another one has not answered, before their first byte."""

    when: Annotated[
        list[Annotated[FailureKind, Field(strict=False)]],
        Field(
            min_length=1,
            max_length=len(FailureKind),
            description="failures after which the model may answer: NoCapacity (engines or queues are full), "
            "Unavailable (no instance has answered), ContextTooLong (the engine says so), DeadlineUnattainable (a "
            "sheddable request would miss its TTFT target), Refused (another 4xx of the engine)",
            examples=["[Unavailable, NoCapacity]"],
            json_schema_extra={"x-kubernetes-list-type": "set"},
        ),
    ]
    to: Annotated[
        ServedName,
        Field(
            description="`namespace/name` of a model, or the name of one in the route's namespace",
            examples=["llama-8b"],
        ),
    ]
    after: Annotated[
        ServedName | None,
        Field(
            description="the model that must have failed; by default, any target of the route, or the `to` of an "
            "earlier entry",
            examples=["llama-70b"],
        ),
    ] = None

    @model_validator(mode="after")
    def _check_unique_kinds(self) -> Self:
        check_unique("when", [kind.value for kind in self.when])
        return self


def check_fallbacks(route: Route, at: tuple[str, ...] = ()) -> None:
    """Raises the error of a field if fallbacks form a loop, or can never be used.

    at: path of the route's spec below the validated value.
    """
    targets = list(dict.fromkeys(model for _, model in route.target_paths()))
    reached = set(targets).union(fallback.to for fallback in route.fallbacks)
    edges = fallback_edges(route)
    for number, fallback in enumerate(route.fallbacks):
        place: FieldPath = (*at, "onFailure", number)
        if fallback.after is None and targets == [fallback.to]:
            message = "the model is the only target of the route, so it cannot answer in its own place"
            raise field_error(message, "name another model", at=(*place, "to"))
        if fallback.after is not None and fallback.after not in reached:
            message = f"no request of the route goes to {fallback.after}"
            raise field_error(message, "name a target, or the `to` of an entry", at=(*place, "after"))
    loop = find_loop(edges)
    if loop:
        closing = {(loop[index], loop[index + 1]) for index in range(len(loop) - 1)}
        numbers = [
            number
            for number, fallback in enumerate(route.fallbacks)
            if any(fallback.to == target and fallback.after in (None, source) for source, target in closing)
        ]
        message = f"the fallbacks form a loop: {' → '.join(loop)}"
        fix = "remove this entry, or name with `after` the model that it follows"
        raise field_error(message, fix, at=(*at, "onFailure", numbers[-1], "to"))
