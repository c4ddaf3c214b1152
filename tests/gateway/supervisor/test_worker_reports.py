"""Reports of several workers, merged: ejections and times of the last answers."""

from fairlead.fleet.hung_engines import EjectionReport, hung_verdict
from fairlead_gateway.messages import EncodedEjection, WorkerState
from fairlead_gateway.supervisor.worker_handle import merge_adapters, merge_answer_times, merge_ejections


def worker(ejected_at: float | None = None, *, failed_probes: int = 0, answered_at: float | None = None) -> WorkerState:
    return WorkerState(
        ready=True,
        warnings=[],
        loads={},
        health_states={},
        loop_lag=[],
        non_model_counters={},
        in_flight=0,
        queued={},
        ejections={} if ejected_at is None else {"a": EncodedEjection(ejected_at, "3 timeouts", failed_probes)},
        answer_times={} if answered_at is None else {"a": answered_at},
    )


def merged(*workers: WorkerState) -> EjectionReport | None:
    return merge_ejections(workers, 200.0).get("a")


def test_ejection_of_the_only_worker_is_reported() -> None:
    assert merged(worker(125.0, failed_probes=2, answered_at=90.0)) == EjectionReport(75.0, "3 timeouts", 2, 1)


def test_ejections_of_several_workers_count_from_the_latest() -> None:
    assert merged(worker(125.0, failed_probes=2), worker(150.0, failed_probes=1)) == EjectionReport(
        50.0, "3 timeouts", 3, 2
    )


def test_worker_that_has_sent_the_instance_nothing_does_not_count() -> None:
    assert merged(worker(125.0), worker()) == EjectionReport(75.0, "3 timeouts", 0, 1)


def test_worker_that_had_an_answer_before_the_ejection_does_not_count() -> None:
    assert merged(worker(125.0), worker(answered_at=124.0)) == EjectionReport(75.0, "3 timeouts", 0, 1)


def test_engine_that_computes_tokens_while_probes_fail_does_not_hang() -> None:
    reports = merge_ejections((worker(50.0, failed_probes=5),), 200.0, {"a": 198.0})
    assert reports["a"] == EjectionReport(2.0, "3 timeouts", 5, 1)
    assert not hung_verdict({"one": reports["a"], "two": reports["a"]}, grace_seconds=60.0).is_hung


def test_tokens_computed_before_the_ejection_do_not_count() -> None:
    assert merge_ejections((worker(125.0),), 200.0, {"a": 90.0})["a"].seconds == 75.0


def test_answer_to_any_worker_since_the_ejection_ends_the_report() -> None:
    assert merged(worker(125.0), worker(140.0), worker(answered_at=150.0)) is None


def test_no_worker_and_no_ejection_give_no_report() -> None:
    assert merge_ejections((), 200.0) == {}
    assert merged(worker(answered_at=100.0)) is None


def test_last_answer_is_the_latest_of_all_workers() -> None:
    assert merge_answer_times([worker(answered_at=5.0), worker(), worker(answered_at=7.0)]) == {"a": 7.0}


def test_adapters_of_an_instance_are_those_that_any_worker_knows() -> None:
    merged = merge_adapters([{"a": ["sql"], "b": ["sql"]}, {}, {"a": ["legal", "sql"]}])
    assert merged == {"a": {"sql", "legal"}, "b": {"sql"}}
