"""The operator's audit records: every write to a workload or a pod, and no state."""

from fairlead.audit import Action
from fairlead.kube.events.event import EventDraft, EventType
from fairlead_operator.action_audit import audit_event

MODEL = {"metadata": {"namespace": "chat", "name": "llama-70b", "uid": "u", "generation": 7}}


def _draft(reason: str) -> EventDraft:
    return EventDraft(EventType.NORMAL, reason, "Apply", "Applied a change to llama-70b-main; its instances follow")


def test_rollout_and_restart_are_recorded_with_the_generation_that_caused_them() -> None:
    event = audit_event(MODEL, _draft("RolloutStarted"))
    assert event is not None
    assert (event.action, event.object, event.actor) == (
        Action.WORKLOAD_CHANGED,
        "ModelDeployment/chat/llama-70b",
        "fairlead-operator",
    )
    assert event.after == {"event": "RolloutStarted", "generation": 7}
    assert event.reason.startswith("Applied a change")
    restart = audit_event(MODEL, _draft("EngineRestarted"))
    assert restart is not None
    assert restart.action is Action.ENGINE_RESTARTED


def test_events_about_states_are_no_actions() -> None:
    for reason in ("Serving", "RolloutDone", "InsufficientCapacity", "Paused", "OtherInstallation"):
        assert audit_event(MODEL, _draft(reason)) is None


def test_a_write_that_follows_the_model_says_who_changed_the_model() -> None:
    author = {"annotations": {"fairlead.io/changed-by": "ann@laptop (fairlead-cli)"}}
    model = {"metadata": {**MODEL["metadata"], **author}}
    events = {reason: audit_event(model, _draft(reason)) for reason in ("RolloutStarted", "Corrected")}
    assert {reason: event.after.get("changedBy") for reason, event in events.items() if event is not None} == {
        "RolloutStarted": "ann@laptop (fairlead-cli)",
        "Corrected": None,
    }
