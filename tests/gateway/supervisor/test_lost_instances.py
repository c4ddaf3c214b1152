"""Instances that are gone without a drain stay visible for a while."""

from dataclasses import replace

from fairlead.fleet.model import Fleet, Instance, InstanceState, Model
from fairlead_gateway.supervisor.lost_instances import REMEMBERED_SECONDS, LostInstances

KEY = "default/tiny"


def fleet(*ids: str, state: InstanceState = InstanceState.READY, pool: str = "main") -> Fleet:
    instances = tuple(Instance(name, "default", "tiny", pool, "http://127.0.0.1:1", state=state) for name in ids)
    return replace(Fleet(), models={KEY: Model("default", "tiny")}, instances={KEY: instances})


def lost(log: LostInstances, now: float) -> list[str]:
    return [one.id for one in log.present(now).get(KEY, ())]


def test_a_killed_instance_is_remembered_until_another_takes_its_place() -> None:
    log = LostInstances()
    log.update(fleet("a/1/0", "a/2/0"), fleet("a/1/0"), 10.0)
    assert lost(log, 11.0) == ["a/2/0"]
    log.update(fleet("a/1/0"), fleet("a/1/0", "a/3/0"), 12.0)
    assert lost(log, 13.0) == []


def test_it_is_forgotten_when_it_comes_back_or_after_five_minutes() -> None:
    log = LostInstances()
    log.update(fleet("a/1/0", "a/2/0"), fleet("a/1/0"), 10.0)
    assert lost(log, 9.0 + REMEMBERED_SECONDS) == ["a/2/0"]
    assert lost(log, 10.0 + REMEMBERED_SECONDS) == []
    log.update(fleet("a/1/0"), fleet("a/1/0", "a/2/0"), 20.0)
    assert lost(log, 21.0) == []


def test_a_drained_instance_is_not_lost_and_a_new_one_of_another_pool_replaces_none() -> None:
    log = LostInstances()
    log.update(fleet("a/1/0", state=InstanceState.DRAINING), fleet(), 10.0)
    assert lost(log, 11.0) == []
    log.update(fleet("a/1/0"), fleet("b/1/0", pool="other"), 12.0)
    assert lost(log, 13.0) == ["a/1/0"]


def test_a_model_that_is_gone_has_lost_nothing() -> None:
    log = LostInstances()
    log.update(fleet("a/1/0"), Fleet(), 10.0)
    assert log.present(11.0) == {}
