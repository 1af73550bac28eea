"""FeatureRegistryService: decode, one call, encode."""

from __future__ import annotations

from foresight.feature_store.v1 import registry_pb2, registry_pb2_grpc
from foresight.wire import decode_group, decode_view, encode_group, encode_view
from services.feature_store.registry import Registry
from services.feature_store.servicers.messages import Context, decode_reference


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
        view, created = await self._registry.register_view(decode_view(request.view))
        return registry_pb2.RegisterFeatureViewResponse(view=encode_view(view), created=created)

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
