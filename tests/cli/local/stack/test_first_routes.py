"""When `fairlead up` says that it is ready: once the gateway's own fleet has all ready engines."""

from dataclasses import replace

import pytest

from fairlead.fleet.model import Fleet, Instance, InstanceState
from fairlead_cli.local.stack.stack_run import has_all_ready

KEY = "default/m"
FIRST = Instance(id="m-0", namespace="default", model="m", pool="main", url="http://127.0.0.1:1")
SECOND = replace(FIRST, id="m-1")
STARTING = replace(SECOND, state=InstanceState.STARTING)


def metrics(*instances: Instance) -> bytes:
    lines = ["fairlead_gateway_fleet_version 3", 'fairlead_gateway_instances{model="default/other",state="Ready"} 9']
    for state in InstanceState:
        count = sum(instance.state is state for instance in instances)
        lines.append(f'fairlead_gateway_instances{{model="{KEY}",state="{state.value}"}} {count}')
    return "\n".join([*lines, ""]).encode()


@pytest.mark.parametrize(
    ("known", "is_ready"),
    [((), False), ((FIRST,), False), ((FIRST, STARTING), False), ((FIRST, SECOND), True), ((SECOND, FIRST), True)],
)
def test_gateway_has_all_ready_engines_or_the_stack_is_not_ready(known: tuple[Instance, ...], is_ready: bool) -> None:
    fleet = Fleet(instances={KEY: (FIRST, SECOND)})
    assert has_all_ready(fleet, metrics(*known)) is is_ready


def test_engines_that_are_not_ready_are_not_waited_for() -> None:
    fleet = Fleet(instances={KEY: (FIRST, STARTING), "default/asleep": ()})
    assert has_all_ready(fleet, metrics(FIRST, STARTING))
    assert has_all_ready(Fleet(), b"")
