"""The adapters that a tenant sees: those of its models, by names that do not tell of others."""

from fairlead.adapters.model import LoraAdapter
from fairlead.fleet.model import Fleet, Model
from fairlead.routes.model import Route, RouteTarget
from fairlead.tenants.model import Tenant
from fairlead_gateway.caller_key import Caller
from fairlead_gateway.openai.model_names import adapter_names
from fairlead_gateway.tenants.worker.tenant_policy import ModelVisibility, VisibleModels

HIDDEN = LoraAdapter("sql", "/sql", ())
"""Another tenant's model has its name."""


def view_of(*models: Model, only: frozenset[str] | None = None) -> VisibleModels:
    visibility = ModelVisibility()
    visibility.update_fleet(Fleet(models={model.key: model for model in models}))
    return visibility.of(None if only is None else Caller(Tenant("acme", models=only), "key"))


MINE = Model("mine", "tiny", adapters=(HIDDEN, LoraAdapter("law", "/law", ("law", "acme/law"))))


def test_adapters_of_other_models_are_unknown() -> None:
    other = Model("theirs", "big", adapters=(LoraAdapter("secret", "/s", ("secret",)),))
    view = view_of(MINE, other, only=frozenset({"mine/tiny"}))
    assert set(view.names) == {"mine/tiny", "tiny", "sql", "mine/sql", "law", "acme/law", "mine/law"}
    assert set(view_of(MINE, other).names) >= {"secret", "theirs/secret"}


def test_a_name_that_only_a_hidden_model_has_is_free_in_the_view() -> None:
    owner = Model("theirs", "sql")
    assert "sql" not in adapter_names(view_of(MINE, owner).fleet)
    view = view_of(MINE, owner, only=frozenset({"mine/tiny"}))
    assert set(adapter_names(view.fleet)) == {"sql", "law", "acme/law"}
    assert view.names["sql"].adapter == LoraAdapter("sql", "/sql", ("sql",))


def test_a_name_that_a_visible_model_has_stays_with_it() -> None:
    view = view_of(MINE, Model("theirs", "sql"), only=frozenset({"mine/tiny", "theirs/sql"}))
    assert view.names["sql"].key == "theirs/sql"
    assert view.names["mine/sql"].adapter == HIDDEN


def test_a_route_with_the_key_of_a_base_that_is_hidden_stays_visible() -> None:
    base = Model("theirs", "big", adapters=(LoraAdapter("secret", "/s", ("secret",)),))
    visibility = ModelVisibility()
    route = Route("theirs", "big", (RouteTarget("mine/tiny"),))
    visibility.update_fleet(Fleet(models={"theirs/big": base, "mine/tiny": MINE}, routes={"theirs/big": route}))
    view = visibility.of(Caller(Tenant("acme", models=frozenset({"mine/tiny", "theirs/secret"})), "key"))
    assert view.names["theirs/secret"].key == "theirs/big"
    assert view.fleet.resolve_model("theirs/big") is None
    assert view.fleet.resolve_route("theirs/big") == "theirs/big"
    assert view.routes is not None
    assert len(view.routes) == 1
