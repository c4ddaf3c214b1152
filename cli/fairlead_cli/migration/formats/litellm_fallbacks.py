"""LiteLLM's lists of fallbacks as `onFailure` of routes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fairlead.routes.fallback_graph import FallbackEdge, find_loop
from fairlead_cli.migration.field_reader import FieldReader, Outcome
from fairlead_cli.migration.routes import RouteDraft

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
        """Notes a part of the list that is not carried over."""
        self.reader.note(self.field, reason, Outcome.DROPPED)


def read_fallbacks(sections: Sequence[FieldReader]) -> list[FallbackList]:
    """Returns the lists of these sections, those of a model before those of all."""
    found: list[FallbackList] = []
    for reader in sections:
        reader.drop(_CONTENT_POLICY, _NO_POLICY)
        for field, kinds in _KINDS.items():
            if field not in reader:
                continue
            value = reader.value(field)
            lists: dict[str | None, Any] = (
                {None: value} if field == "default_fallbacks" else _merged(reader, field, value)
            )
            for name, names in lists.items():
                if not isinstance(names, list) or not all(isinstance(one, str) for one in names):
                    reader.note(field, f"{name or field}: not a list of the names of models", Outcome.DROPPED)
                    continue
                found.append(FallbackList(None if name == _EVERY else name, kinds, tuple(names), reader, field))
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
    route: RouteDraft, name: str, lists: Sequence[FallbackList], models_of: Callable[[str], list[str]]
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
