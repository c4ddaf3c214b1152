"""Small parsers: metrics pages, times, certificates, quantities, waiting reasons of pods."""

import subprocess
from pathlib import Path
from typing import Any

import pytest

from fairlead.kube.conditions import parse_time
from fairlead.units import parse_resource
from fairlead_cli.cluster.facts_collector import certificate_expiry
from fairlead_cli.cluster.object_fields import format_age, parse_http_date, waiting_reason
from fairlead_cli.cluster.pod_http import parse_metrics


def test_metrics_page_is_parsed() -> None:
    page = parse_metrics(
        '# TYPE a gauge\na 1\na{x="1",y="q\\"z\\\\"} 2.5 1700000000\nb{} NaN\nnonsense\nc{x="} 1\nd_bucket{le="1"} 3\n'
    )
    assert page.value("a") == 1.0
    assert page.value("a", y='q"z\\') == 2.5
    assert page.total("a") == 3.5
    assert (page.value("d_bucket"), page.value("none"), page.total("none")) == (None, None, None)


def test_timestamps_are_parsed() -> None:
    assert parse_time("2027-01-15T08:00:00Z") == 1_800_000_000.0
    assert parse_time("2027-01-15T08:00:00.500000Z") == 1_800_000_000.5
    assert (parse_time(""), parse_time(None), parse_http_date(""), parse_http_date("soon")) == (None, None, None, None)
    assert parse_http_date("Fri, 15 Jan 2027 08:00:00 GMT") == 1_800_000_000.0


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59, "59s"), (90, "90s"), (121, "2m"), (7_100, "118m"), (7_300, "2h"), (90_000, "1d"), (-5, "0s")],
)
def test_ages_have_one_unit(seconds: float, text: str) -> None:
    assert format_age(1_000_000.0, 1_000_000.0 + seconds) == text
    assert format_age(None, 0.0) == "–"


@pytest.mark.parametrize("days", [1, 400, 20_000])
def test_certificate_expiry_is_read(tmp_path: Path, days: int) -> None:
    """Certificates of openssl, with both forms of time: years from 2050 on have four digits."""
    target = tmp_path / "cert.pem"
    request = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=x -days {days} -keyout /dev/null"
    openssl(*request.split(), "-out", str(target))
    end = openssl("x509", "-enddate", "-noout", "-in", str(target)).strip().removeprefix("notAfter=")
    expected = parse_http_date(f"x, {_http(end)}")
    assert certificate_expiry(target.read_bytes()) == expected


def openssl(*arguments: str) -> str:
    return subprocess.run(["openssl", *arguments], check=True, capture_output=True, text=True).stdout


def _http(text: str) -> str:
    """``Nov 20 19:00:00 2026 GMT`` in the order of HTTP."""
    month, day, clock, year, zone = text.split()
    return f"{day} {month} {year} {clock} {zone}"


@pytest.mark.parametrize("text", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", b"\xff" * 40])
def test_invalid_certificate_has_no_expiry(text: bytes) -> None:
    assert certificate_expiry(text) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [("500m", 0.5), ("4Gi", 4 * 2**30), ("2", 2.0), ("1e3", 1000.0), ("x", None), ("1Zi", None), ("", None)],
)
def test_quantities_are_parsed(text: str, value: float | None) -> None:
    assert parse_resource(text) == value


def test_waiting_reason_of_a_pod() -> None:
    def pod(**status: Any) -> dict[str, Any]:
        return {"metadata": {}, "status": status}

    unready = [{"type": "Ready", "status": "False", "message": "containers not ready"}]
    no_node = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]
    crash = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}
    last = {"terminated": {"exitCode": 1}}
    assert waiting_reason(pod(conditions=[{"type": "Ready", "status": "True"}])) == ""
    assert waiting_reason(pod(conditions=no_node)) == "Unschedulable: 0/3 nodes"
    assert waiting_reason(pod(conditions=unready)) == "containers not ready"
    crashed = pod(conditions=unready, containerStatuses=[{"name": "e", "state": crash, "lastState": last}])
    assert waiting_reason(crashed) == "CrashLoopBackOff (exit code 1): back-off"
    killed = {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}
    for state, before, expected in (
        (crash, killed, "CrashLoopBackOff (exit code 137, OOMKilled): back-off"),
        (killed, {}, "e ended with exit code 137, OOMKilled"),
        ({"terminated": {"exitCode": 137, "reason": "Error"}}, {}, "e ended with exit code 137"),
        (crash, {}, "CrashLoopBackOff: back-off"),
    ):
        status = {"name": "e", "state": state, "lastState": before}
        assert waiting_reason(pod(conditions=unready, containerStatuses=[status])) == expected
    creating = {"waiting": {"reason": "ContainerCreating"}}
    assert waiting_reason(pod(conditions=unready, containerStatuses=[{"state": creating}])) == "containers not ready"
    assert waiting_reason(pod(phase="Pending")) == "Pending"
    assert waiting_reason({"metadata": {"deletionTimestamp": "x"}}) == "it is being deleted"
