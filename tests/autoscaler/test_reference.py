"""docs/reference/autoscaler.md says what the program says: rules, paths, metrics."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fairlead.runtime.clock import ManualClock
from fairlead_autoscaler import scaling_policy
from fairlead_autoscaler.collector.observation import GatewaySnapshot
from fairlead_autoscaler.control_loop import LoopCounters
from fairlead_autoscaler.core import Rule
from fairlead_autoscaler.core.settings import DEFAULT_VALUES
from fairlead_autoscaler.history.recorder import RecordBuffer
from fairlead_autoscaler.http.metrics import AutoscalerMetrics
from fairlead_autoscaler.http.server import PortAccess, create_app

PAGE = (Path(__file__).parents[2] / "docs" / "reference" / "autoscaler.md").read_text()
SECTIONS = dict(re.findall(r"^## (.+?)$(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))


def first_cells(section: str) -> list[str]:
    """Returns the code spans of the first cell of each row."""
    rows = re.findall(r"^\| (`.*?) \|", SECTIONS[section], re.MULTILINE)
    return [span for row in rows for span in re.findall(r"`([^`]+)`", row)]


def loop() -> Any:
    return SimpleNamespace(
        last_records=dict,
        counters=LoopCounters(),
        gateways=GatewaySnapshot(),
        is_frozen=False,
        is_leader=True,
        unavailable_reason=None,
        wake=lambda model: True,
    )


def test_every_rule_is_documented_and_no_other_is() -> None:
    ours = set(re.findall(r'rule="([a-z-]+)"|, "(no-plan)", "', Path(scaling_policy.__file__).read_text()))
    assert {rule for pair in ours for rule in pair if rule} | {rule.value for rule in Rule} == set(first_cells("Rules"))


def test_settings_are_documented_with_the_values_that_they_have() -> None:
    rows = re.findall(r"^\| `(\w+)` \| ([\d.]+) \|", SECTIONS["Settings of the core"], re.MULTILINE)
    assert {name: float(value) for name, value in rows} | {"freeze": False} == DEFAULT_VALUES


def test_every_path_is_documented_and_no_other_is() -> None:
    app = create_app(loop(), RecordBuffer(), list, ManualClock(), PortAccess())
    served = {f"{route.method} {route.resource.canonical}" for route in app.router.routes() if route.resource}
    written = {span.partition("?")[0].partition("[")[0] for span in first_cells("Port")}
    assert {route.removeprefix("GET ") for route in served if not route.startswith("HEAD ")} == written


def test_every_metric_is_documented_as_it_is_and_no_other_is() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", SECTIONS["Metrics"], re.MULTILINE)
    real = {
        (
            family.name + ("_total" if family.type == "counter" else ""),
            family.type,
            ", ".join(f"`{label}`" for label in family._labelnames) or "–",  # type: ignore[attr-defined]  # it has no other way
            family.documentation,
        )
        for family in AutoscalerMetrics(loop(), ManualClock()).collect()
    }
    assert set(rows) == real
