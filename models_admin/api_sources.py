"""The REST door to where models come from: downloads and external servers."""

from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet

from accounts.access import person
from llamaproj.rest import valid
from models_admin import access
from models_admin.api import ManagersOnly
from models_admin.external import actions as external_actions
from models_admin.external import tasks as external_tasks
from models_admin.filters import DownloadFilter
from models_admin.hub import actions as download_actions
from models_admin.models import Download, ExternalServer
from models_admin.serializers import ServedModelSerializer
from models_admin.serializers_sources import (
    AskedDownloadSerializer,
    DownloadSerializer,
    ExternalServerSerializer,
    ServedElsewhereSerializer,
)


class DownloadViewSet(ReadOnlyModelViewSet[Download]):
    """Models on their way from a hub to a machine."""

    permission_classes = (ManagersOnly,)
    queryset = Download.objects.select_related("node")
    serializer_class = DownloadSerializer
    lookup_value_converter = "uuid"
    filterset_class = DownloadFilter
    search_fields = ("repository", "reason")
    ordering_fields = ("created_at", "ended_at", "size_bytes")

    @extend_schema(
        summary="Fetch a model", request=AskedDownloadSerializer, responses={202: DownloadSerializer}
    )
    def create(self, request: Request) -> Response:
        """Asking twice is asking once."""
        said = valid(AskedDownloadSerializer(data=request.data))
        download = download_actions.ask(by=person(request), **said)
        return Response(self.get_serializer(download).data, status=status.HTTP_202_ACCEPTED)

    @extend_schema(summary="Cancel", request=None, responses=DownloadSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, pk: str) -> Response:
        """Throw away what has come. 409 for a complete one."""
        download_actions.cancel(self.get_object(), by=person(request))
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(summary="Go on", request=None, responses=DownloadSerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: str) -> Response:
        """With one that failed or was cancelled. 409 for a complete one."""
        download_actions.retry(self.get_object(), by=person(request))
        return Response(self.get_serializer(self.get_object()).data)


class ExternalServerViewSet(mixins.DestroyModelMixin, ReadOnlyModelViewSet[ExternalServer]):
    """Servers elsewhere that speak OpenAI's API."""

    permission_classes = (ManagersOnly,)
    queryset = ExternalServer.objects.order_by("name")
    serializer_class = ExternalServerSerializer
    lookup_value_converter = "int"
    search_fields = ("name", "base_url")
    ordering_fields = ("name", "checked_at")

    @extend_schema(summary="Make a server known")
    @transaction.atomic
    def create(self, request: Request) -> Response:
        """It is asked at once for its models."""
        fields = valid(self.get_serializer(data=request.data))
        enabled = fields.pop("enabled", True)
        server = external_actions.add(by=person(request), **fields)
        if not enabled:
            external_actions.disable(server, by=person(request))
        server.refresh_from_db()
        return Response(self.get_serializer(server).data, status=status.HTTP_201_CREATED)

    @extend_schema(summary="Change name, address, key, or whether it is asked")
    @transaction.atomic
    def partial_update(self, request: Request, pk: int) -> Response:
        """A key that isn't given stays, unless the address becomes another server's."""
        server = self.get_object()
        fields = valid(self.get_serializer(server, data=request.data, partial=True))
        enabled = fields.pop("enabled", None)
        known = {"name": server.name, "base_url": server.base_url}
        external_actions.change(server, by=person(request), **known | fields)
        if enabled is not None:
            switch = external_actions.enable if enabled else external_actions.disable
            switch(server, by=person(request))
        return Response(self.get_serializer(self.get_object()).data)

    def perform_destroy(self, instance: ExternalServer) -> None:
        """409 while models are served from it."""
        external_actions.remove(instance, by=person(self.request))

    @extend_schema(summary="Ask it now", request=None, responses={202: None})
    @action(detail=True, methods=["post"])
    def check(self, request: Request, pk: int) -> Response:
        """What it says appears in the list."""
        external_tasks.check_soon(self.get_object().pk)
        return Response(status=status.HTTP_202_ACCEPTED)

    @extend_schema(
        summary="Serve one of its models",
        request=ServedElsewhereSerializer,
        responses={201: ServedModelSerializer},
    )
    @action(detail=True, methods=["post"])
    def serve(self, request: Request, pk: int) -> Response:
        """409 where it is served already, or isn't offered."""
        fields = valid(ServedElsewhereSerializer(data=request.data))
        by = person(request)
        served = external_actions.serve(self.get_object(), fields.pop("model"), by=by, **fields)
        shown = ServedModelSerializer(access.find_visible(by, served.slug))
        return Response(shown.data, status=status.HTTP_201_CREATED)
