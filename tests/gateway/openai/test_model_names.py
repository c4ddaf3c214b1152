"""The table of names that clients may write: the same models as a look at the whole fleet."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.model import Fleet, Model
from fairlead_gateway.errors import GatewayError
from fairlead_gateway.openai.model_names import ModelEntry, client_names, resolve_model_entry

NAMES = st.sampled_from(["a", "b", "x/a", "y/a", "x/b"])
MODELS = st.builds(
    Model,
    namespace=st.sampled_from(["x", "y"]),
    name=st.sampled_from(["a", "b"]),
    shadowed=st.booleans(),
    served_names=st.lists(NAMES, max_size=3).map(tuple),
)


def resolve(name: str, fleet: Fleet, names: dict[str, ModelEntry] | None) -> object:
    try:
        entry = resolve_model_entry(name, fleet, names)
        return entry.key, entry.model
    except GatewayError as error:
        return str(error)


ADAPTERS = st.lists(st.sampled_from(["a", "lora", "other"]), max_size=2, unique=True)


@given(st.lists(MODELS, max_size=4), st.lists(ADAPTERS, min_size=4, max_size=4))
def test_every_adapter_is_found_with_the_table_as_without(models: list[Model], adapters: list[list[str]]) -> None:
    by_key = {model.key: model for model in models}
    fleet = Fleet(
        models={
            key: replace(model, adapters=tuple(LoraAdapter(name, f"hf://org/{name}") for name in names))
            for (key, model), names in zip(by_key.items(), adapters, strict=False)
        }
    )
    names = client_names(fleet)
    for name in ("a", "lora", "x/lora", "y/other", "other", " lora", "x/a"):
        assert resolve(name, fleet, names) == resolve(name, fleet, None)


@given(st.lists(MODELS, max_size=4))
def test_every_name_means_the_same_model_with_the_table_as_without(models: list[Model]) -> None:
    fleet = Fleet(models={model.key: model for model in models})
    names = client_names(fleet)
    for name in ("a", "b", "x/a", "y/a", "x/b", "y/b", "c", "A", " a", ""):
        assert resolve(name, fleet, names) == resolve(name, fleet, None)
