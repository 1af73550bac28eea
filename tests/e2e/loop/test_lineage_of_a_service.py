"""Who uses what, over the whole stack: from the group that was written to what clients call."""

from __future__ import annotations

import pytest

from deploy.local import LocalStack
from examples.first_steps.definitions import kitchens, late_orders
from foresight.client import Client, FailedPrecondition, ThingKind


def test_what_a_deployment_stands_on_is_known_and_cannot_be_dropped(stack: LocalStack) -> None:
    with Client(state=stack.state) as client:
        found = client.lineage("deployment:late_orders")
        by_kind = {kind: [t for t in found.things if t.kind is kind] for kind in ThingKind}
        assert [len(by_kind[kind]) for kind in (ThingKind.MODEL, ThingKind.TRAINING_DATASET)] == [1, 1]
        [view] = by_kind[ThingKind.FEATURE_VIEW]
        groups = {source.group for source in client.view(view.name, view.version).sources}
        assert {thing.name for thing in by_kind[ThingKind.FEATURE_GROUP]} == groups
        with pytest.raises(FailedPrecondition, match="model"):
            client.drop_view(view.name, view.version)
        for group in by_kind[ThingKind.FEATURE_GROUP]:
            assert found.start in client.lineage(group).things
            with pytest.raises(FailedPrecondition, match=view.name):
                client.drop_group(group.name, group.version)
        # The same definitions again change nothing, not even an etag.
        etags = [client.group(kitchens.name).etag, client.view(late_orders.name).etag]
        again = client.register(kitchens, late_orders)
        assert [(r.created, r.thing.etag) for r in again] == [(False, etag) for etag in etags]
