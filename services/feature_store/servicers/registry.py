"""FeatureRegistryService: decode, one call, encode."""

from __future__ import annotations

from foresight.feature_store.v1 import registry_pb2, registry_pb2_grpc
from foresight.types.v1 import types_pb2
from foresight.values import InvalidValue
from foresight.wire import (
    decode_defaults,
    decode_etag,
    decode_expectations,
    decode_failure_policy,
    decode_field,
    decode_group,
    decode_tags,
    decode_view,
    encode_group,
    encode_view,
)
from services.feature_store.groups import Reference
from services.feature_store.registry.about import GroupAbout, ViewAbout
from services.feature_store.registry.registry import Registry
from services.feature_store.registry.search import RESULTS_DEFAULT, Found, Query
from services.feature_store.servicers.messages import Context, decode_reference, encode_reference


class RegistryServicer(registry_pb2_grpc.FeatureRegistryServiceServicer):
    """FeatureRegistryService."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    async def RegisterFeatureGroup(
        self, request: registry_pb2.RegisterFeatureGroupRequest, context: Context
    ) -> registry_pb2.RegisterFeatureGroupResponse:
        group, created = await self._registry.register_group(decode_group(request.group))
        return registry_pb2.RegisterFeatureGroupResponse(group=encode_group(group), created=created)

    async def GetFeatureGroup(
        self, request: registry_pb2.GetFeatureGroupRequest, context: Context
    ) -> registry_pb2.GetFeatureGroupResponse:
        group, rows = await self._registry.described_group(decode_reference(request.group, "group"))
        return registry_pb2.GetFeatureGroupResponse(group=encode_group(group), rows=rows)

    async def ListFeatureGroups(
        self, request: registry_pb2.ListFeatureGroupsRequest, context: Context
    ) -> registry_pb2.ListFeatureGroupsResponse:
        groups = await self._registry.groups()
        return registry_pb2.ListFeatureGroupsResponse(groups=[encode_group(group) for group in groups])

    async def RegisterFeatureView(
        self, request: registry_pb2.RegisterFeatureViewRequest, context: Context
    ) -> registry_pb2.RegisterFeatureViewResponse:
        done = await self._registry.register_view(decode_view(request.view))
        return registry_pb2.RegisterFeatureViewResponse(
            view=encode_view(done.view), created=done.created, warnings=done.warnings
        )

    async def GetFeatureView(
        self, request: registry_pb2.GetFeatureViewRequest, context: Context
    ) -> registry_pb2.GetFeatureViewResponse:
        view = await self._registry.view(decode_reference(request.view, "view"))
        return registry_pb2.GetFeatureViewResponse(view=encode_view(view))

    async def ListFeatureViews(
        self, request: registry_pb2.ListFeatureViewsRequest, context: Context
    ) -> registry_pb2.ListFeatureViewsResponse:
        views = await self._registry.views()
        return registry_pb2.ListFeatureViewsResponse(views=[encode_view(view) for view in views])

    async def AddFeatures(
        self, request: registry_pb2.AddFeaturesRequest, context: Context
    ) -> registry_pb2.AddFeaturesResponse:
        fields = [decode_field(f, f"features[{i}]") for i, f in enumerate(request.features)]
        group = await self._registry.add_features(
            decode_reference(request.group, "group"),
            fields,
            decode_defaults(request.defaults),
            decode_etag(request.etag),
        )
        return registry_pb2.AddFeaturesResponse(group=encode_group(group))

    async def UpdateFeatureGroup(
        self, request: registry_pb2.UpdateFeatureGroupRequest, context: Context
    ) -> registry_pb2.UpdateFeatureGroupResponse:
        asked = request.group
        group = await self._registry.update_group(
            _reference(asked.name, asked.version, "group"),
            GroupAbout(
                description=asked.description,
                owner=asked.owner,
                tags=decode_tags(asked.tags),
                source=asked.source,
                deprecation=asked.deprecation,
                expectations=decode_expectations(asked.expectations),
                failure_policy=decode_failure_policy(asked.failure_policy),
            ),
            decode_etag(asked.etag),
        )
        return registry_pb2.UpdateFeatureGroupResponse(group=encode_group(group))

    async def UpdateFeatureView(
        self, request: registry_pb2.UpdateFeatureViewRequest, context: Context
    ) -> registry_pb2.UpdateFeatureViewResponse:
        asked = request.view
        view = await self._registry.update_view(
            _reference(asked.name, asked.version, "view"),
            ViewAbout(
                description=asked.description,
                owner=asked.owner,
                tags=decode_tags(asked.tags),
                deprecation=asked.deprecation,
            ),
            decode_etag(asked.etag),
        )
        return registry_pb2.UpdateFeatureViewResponse(view=encode_view(view))

    async def DropFeatureGroup(
        self, request: registry_pb2.DropFeatureGroupRequest, context: Context
    ) -> registry_pb2.DropFeatureGroupResponse:
        rows = await self._registry.drop_group(_exact(request.group, "group"), decode_etag(request.etag))
        return registry_pb2.DropFeatureGroupResponse(rows=rows)

    async def DropFeatureView(
        self, request: registry_pb2.DropFeatureViewRequest, context: Context
    ) -> registry_pb2.DropFeatureViewResponse:
        await self._registry.drop_view(_exact(request.view, "view"), decode_etag(request.etag))
        return registry_pb2.DropFeatureViewResponse()

    async def Search(self, request: registry_pb2.SearchRequest, context: Context) -> registry_pb2.SearchResponse:
        query = Query(
            text=request.query,
            tags=decode_tags(request.tags),
            owner=request.owner,
            include_deprecated=request.include_deprecated,
            limit=request.limit or RESULTS_DEFAULT,
        )
        found = await self._registry.search(query)
        return registry_pb2.SearchResponse(results=[_encode_found(one) for one in found])


def _reference(name: str, version: int, field: str) -> Reference:
    return decode_reference(types_pb2.VersionRef(name=name, version=version), field)


def _exact(message: types_pb2.VersionRef, field: str) -> Reference:
    """A version that is named. Raises InvalidValue: what is the latest may be another one a moment later."""
    if not message.version:
        raise InvalidValue(f"{field}.version", "is required: only one version can be dropped at a time")
    return decode_reference(message, field)


def _encode_found(found: Found) -> registry_pb2.SearchResult:
    return registry_pb2.SearchResult(
        kind=registry_pb2.SearchResult.Kind.ValueType(found.kind.value),
        thing=encode_reference(found.thing),
        feature=found.feature,
        description=found.description,
        owner=found.owner,
        deprecation=found.deprecation,
    )
