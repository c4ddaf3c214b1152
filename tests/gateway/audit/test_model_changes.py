"""Audit events of changed models."""

from dataclasses import replace

from fairlead.audit import Action
from fairlead.fleet.model import Model, SloTargets, TokenPrice
from fairlead_gateway.audit.tenant_changes import model_changes, models_loaded

CHAT = Model("chat", "llama-70b")


def test_models_that_come_and_go_are_recorded() -> None:
    assert [(event.action, event.object) for event in model_changes({}, {CHAT.key: CHAT})] == [
        (Action.MODEL_ADDED, "Model/chat/llama-70b")
    ]
    assert [event.action for event in model_changes({CHAT.key: CHAT}, {})] == [Action.MODEL_REMOVED]
    assert models_loaded({CHAT.key: CHAT}).after == {"models": 1}


def test_names_paths_and_prices_are_recorded_and_latency_targets_are_not() -> None:
    other = replace(CHAT, served_names=("gpt",), price=TokenPrice(400, 100, 1_200), objectives=SloTargets(0.5))
    events = model_changes({CHAT.key: CHAT}, {CHAT.key: other})
    assert [(event.action, dict(event.before), dict(event.after)) for event in events] == [
        (Action.MODEL_CHANGED, {"servedNames": "", "price": None}, {"servedNames": "gpt", "price": "400/100/1200"})
    ]
    assert model_changes({CHAT.key: CHAT}, {CHAT.key: replace(CHAT, objectives=SloTargets(0.5))}) == []
