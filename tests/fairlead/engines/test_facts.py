"""The facts of each kind of engine."""

from dataclasses import MISSING, fields

from fairlead.api.spec.engine import EngineType
from fairlead.engines.containers import container_builders
from fairlead.engines.facts import ENGINE_FACTS, EngineFacts
from fairlead.engines.registry import engine_kinds
from fairlead_gateway.openai.field_policy import FIELDS


def test_each_kind_that_has_an_adapter_states_its_facts() -> None:
    assert ENGINE_FACTS.keys() == set(engine_kinds())
    started = {kind.label for kind in container_builders()} - {EngineType.CUSTOM.label}
    assert ENGINE_FACTS.keys() == started


def test_no_fact_has_a_default() -> None:
    assert all(field.default is MISSING and field.default_factory is MISSING for field in fields(EngineFacts))


def test_tables_of_fields_exist() -> None:
    assert all(name in FIELDS for facts in ENGINE_FACTS.values() for name in facts.request_tables)
