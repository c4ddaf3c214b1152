"""The verdict about a pod, from what gateways report of its instances."""

from fairlead.fleet.hung_engines import EjectionReport, HungVerdict
from fairlead_operator.hung_engines.gateway_reports import GatewayReport, InstanceReport
from fairlead_operator.hung_engines.pod_verdicts import pod_verdicts

EJECTED = EjectionReport(90.0, "3 timeouts", 0, 1)
PROBED = EjectionReport(90.0, "3 timeouts", 2, 1)


def gateway(name: str, *instances: InstanceReport) -> GatewayReport:
    return GatewayReport(name, instances)


def verdicts(*reports: GatewayReport) -> dict[str, HungVerdict]:
    return pod_verdicts(reports, 60.0)


def test_two_gateways_that_ejected_the_instance_make_its_pod_hang() -> None:
    found = verdicts(gateway("a", InstanceReport("u/1/0", EJECTED)), gateway("b", InstanceReport("u/1/0", EJECTED)))
    assert found["u"].is_hung
    assert found["u"].voters == ("a", "b")


def test_missing_gateway_votes_neither_for_nor_against() -> None:
    missing = GatewayReport("b", error="no answer within 5 s")
    assert verdicts(gateway("a", InstanceReport("u/1/0", PROBED)), missing)["u"].is_hung
    assert not verdicts(gateway("a", InstanceReport("u/1/0", EJECTED)), missing)["u"].is_hung


def test_gateway_with_a_recent_answer_vetoes_and_one_without_is_left_out() -> None:
    voting = gateway("a", InstanceReport("u/1/0", PROBED))
    assert not verdicts(voting, gateway("b", InstanceReport("u/1/0", None, 59.0)))["u"].is_hung
    assert verdicts(voting, gateway("b", InstanceReport("u/1/0", None, 61.0)))["u"].is_hung
    assert verdicts(voting, gateway("b", InstanceReport("u/1/0", None, None)))["u"].is_hung


def test_pod_without_any_knowledge_has_no_verdict() -> None:
    assert verdicts(gateway("a", InstanceReport("u/1/0", None)), gateway("b", InstanceReport("u/1/0"))) == {}
    assert verdicts(GatewayReport("a", error="no answer")) == {}


def test_pod_with_ranks_hangs_only_if_each_rank_does() -> None:
    def reports(second: InstanceReport) -> list[GatewayReport]:
        return [gateway(name, InstanceReport("u/1/0", EJECTED), second) for name in ("a", "b")]

    found = verdicts(*reports(InstanceReport("u/1/1", EJECTED)))["u"]
    assert found.is_hung
    assert found.reason.startswith("all 2 ranks hang; the first one: 2 gateways get no answer")
    assert verdicts(*reports(InstanceReport("u/1/1", None, 1.0))) == {"u": HungVerdict(False, "1 of 2 ranks hang")}
    assert verdicts(*reports(InstanceReport("u/1/1", None))) == {}, "nothing is known of the second rank"
