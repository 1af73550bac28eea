"""What an entity's keys are in: groups, and the ways in which keys of views stand for them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foresight.values import Column, DataType, FeatureGroup, FeatureView, Field, InvalidValue, ViewFeature, ViewSource
from services.feature_store.erasure.erasures import (
    Entity,
    covers,
    dump_names,
    entity_columns,
    load_names,
    named_in,
    salted_hashes,
    ways_in_view,
)
from services.feature_store.groups import Reference
from services.feature_store.reads.queries import Condition, GroupQuery, Operator, SpineQuery
from services.feature_store.registry.derivation import derive_view

TEXT, NUMBER, FLAG = DataType.STRING, DataType.INT64, DataType.BOOL
VALUE = Field("value", DataType.FLOAT64)
WEATHER = FeatureGroup("weather", (Field("airport", TEXT),), (VALUE,), version=1)
STANDS = FeatureGroup("stands", (Field("airport", TEXT), Field("stand", NUMBER)), (VALUE,), version=1)
CREWS = FeatureGroup("crews", (Field("stand", NUMBER),), (VALUE,), version=1)
CODES = FeatureGroup("codes", (Field("airport", NUMBER),), (VALUE,), version=1)
GROUPS = {Reference(g.name, 1): g for g in (WEATHER, STANDS, CREWS, CODES)}

scalars = st.one_of(st.text('ab1é",\\', max_size=6), st.integers(-(2**63), 2**63 - 1), st.booleans())
entities = st.dictionaries(st.sampled_from(["first", "second", "third"]), scalars, min_size=1)


def columns(**values: Any) -> dict[str, Column]:
    types = {str: TEXT, int: NUMBER, bool: FLAG}
    return {name: Column.build(name, types[type(value)], [value]) for name, value in values.items()}


def view(*sources: ViewSource) -> FeatureView:
    groups = [GROUPS[Reference(source.group, 1)] for source in sources]
    made = FeatureView("made", Field("late", FLAG), sources, version=3)
    return derive_view(made, groups)


def taking(group: str, prefix: str, **keys: str) -> ViewSource:
    return ViewSource(group, (ViewFeature("value"),), keys=keys, prefix=prefix, group_version=1)


def ways(made: FeatureView, **entity: Any) -> list[dict[str, str]]:
    names = Entity.of(columns(**entity)).names
    found = ways_in_view(made, GROUPS, names)
    assert all(way.view == Reference("made", 3) for way in found)
    return [dict(way.pairs) for way in found]


def test_a_group_has_an_entity_when_it_has_all_of_its_keys_with_their_types() -> None:
    airport, stand = Entity.of(columns(airport="EWR")), Entity.of(columns(airport="EWR", stand=3))
    assert [covers(group, airport.names) for group in GROUPS.values()] == [True, True, False, False]
    assert [covers(group, stand.names) for group in GROUPS.values()] == [False, True, False, False]


def test_a_view_key_stands_for_the_group_key_that_it_fills() -> None:
    both = view(taking("weather", "from_", airport="origin"), taking("weather", "to_", airport="target"))
    assert ways(both, airport="EWR") == [{"origin": "airport"}, {"target": "airport"}]
    assert ways(both, origin="EWR") == []
    assert ways(both, airport=7) == []


def test_keys_that_one_group_has_together_stand_for_the_entity_together() -> None:
    mixed = view(taking("stands", "at_", airport="origin", stand="gate"), taking("weather", "to_", airport="target"))
    assert ways(mixed, airport="EWR", stand=3) == [{"origin": "airport", "gate": "stand"}]
    assert ways(mixed, airport="EWR") == [{"origin": "airport"}, {"target": "airport"}]


def test_keys_of_several_groups_stand_for_an_entity_that_no_group_has_whole() -> None:
    apart = view(
        taking("weather", "from_", airport="origin"),
        taking("weather", "to_", airport="target"),
        taking("crews", "crew_", stand="gate"),
    )
    assert ways(apart, airport="EWR", stand=3) == [
        {"gate": "stand", "origin": "airport"},
        {"gate": "stand", "target": "airport"},
    ]
    assert ways(view(taking("weather", "")), airport="EWR", stand=3) == []


def test_a_prediction_id_is_a_key_of_every_view() -> None:
    made = view(taking("weather", "", airport="origin"))
    assert ways(made, prediction_id="x") == [{"prediction_id": "prediction_id"}]
    assert ways(made, prediction_id="x", airport="EWR") == [{"prediction_id": "prediction_id", "origin": "airport"}]
    assert ways(made, prediction_id=7) == []
    assert ways(FeatureView("made", Field("late", FLAG), request_features=(VALUE,), version=3), prediction_id="x") != []


@given(entities, entities, st.binary(min_size=1, max_size=8))
def test_hashes_are_equal_exactly_for_equal_entities(one: dict[str, Any], two: dict[str, Any], salt: bytes) -> None:
    first, second = Entity.of(columns(**one)), Entity.of(columns(**two))
    same = [(n, type(v), v) for n, v in sorted(one.items())] == [(n, type(v), v) for n, v in sorted(two.items())]
    assert (first.hash(salt) == second.hash(salt)) is same
    assert first.hash(salt) != first.hash(salt + b"x")


def test_values_that_look_alike_side_by_side_are_apart() -> None:
    pairs = [("1", "23"), ("12", "3"), ("123", "")]
    made = [Column.build(f"k{i}", TEXT, [pair[i] for pair in pairs]) for i in range(2)]
    assert len(set(salted_hashes(b"salt", made))) == 3


@given(entities)
def test_an_entity_is_read_back_as_it_was_written(values: dict[str, Any]) -> None:
    entity = Entity.of(columns(**values))
    loaded = Entity.load(entity.dump())
    assert loaded.hash(b"s") == entity.hash(b"s")
    assert load_names(dump_names(entity.names)) == entity.names
    assert [c.name for c in entity_columns(entity.names, reversed(loaded.keys))] == sorted(values)


def spine(*conditions: tuple[str, Operator, Any], keys: dict[str, list[Any]] | None = None) -> SpineQuery:
    types = {str: TEXT, int: NUMBER}
    listed = tuple(Column.build(name, types[type(values[0])], values) for name, values in (keys or {}).items())
    where = tuple(
        Condition(column, operator, Column.build("v", types[type(value)], [value]))
        for column, operator, value in conditions
    )
    return SpineQuery(GroupQuery(Reference("stands", 1), keys=listed, where=where))


def test_a_query_names_an_entity_by_its_keys_or_by_conditions() -> None:
    stand = Entity.of(columns(airport="EWR", stand=3))
    assert named_in(stand, spine(keys={"airport": ["JFK", "EWR"], "stand": [3, 3]}))
    assert not named_in(stand, spine(keys={"airport": ["EWR", "JFK"], "stand": [4, 3]}))
    assert named_in(stand, spine(("airport", Operator.EQUAL, "EWR"), ("stand", Operator.EQUAL, 3)))
    assert not named_in(stand, spine(("airport", Operator.EQUAL, "EWR")))
    assert not named_in(stand, spine())


@pytest.mark.parametrize("wrong", [{}, {"k": []}, {"k": ["a", "b"]}, {"k": [None]}, {"Not a name": ["a"]}])
def test_one_whole_entity_is_named(wrong: dict[str, list[Any]]) -> None:
    with pytest.raises(InvalidValue):
        Entity.of({name: Column.build(name, TEXT, values) for name, values in wrong.items()})
