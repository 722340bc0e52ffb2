"""The REST door: the same verbs as the pages', below /api/v1/."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet
from drf_spectacular.utils import (
    OpenApiParameter,
    PolymorphicProxySerializer,
    extend_schema,
    extend_schema_view,
)
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet, ReadOnlyModelViewSet

from accounts.access import person
from accounts.models import User
from llamaproj.errors import InvalidInput, NotFound
from llamaproj.rest import valid
from llamaproj.rest_lists import page_of
from models_admin import access, actions, configuration, demand, notes, remedies
from models_admin.filters import InstanceFilter, ModelFileFilter, ServedModelFilter
from models_admin.models import Instance, InstanceChange, ModelFile, Node, PortalConfig, ServedModel
from models_admin.nodes import actions as node_actions
from models_admin.serializers import (
    ChangeSerializer,
    ConfigSerializer,
    InstanceSerializer,
    LoadSerializer,
    LogSerializer,
    ModelFileSerializer,
    NodeSerializer,
    PublicModelSerializer,
    RemedyChoiceSerializer,
    ScaleSerializer,
    ServedModelSerializer,
    TroubleSerializer,
)
from models_admin.states import InstanceState

_MODEL = PolymorphicProxySerializer(
    component_name="Model",
    serializers=[ServedModelSerializer, PublicModelSerializer],
    resource_type_field_name=None,
)
_MODELS = PolymorphicProxySerializer(
    component_name="Model",
    serializers=[ServedModelSerializer, PublicModelSerializer],
    resource_type_field_name=None,
    many=True,
)
_DRY_RUN = OpenApiParameter(
    "dry_run",
    bool,
    description="Answer what would be, with the replicas it would replace, and change nothing.",
)


class ManagersOnly(BasePermission):
    """Those who manage models."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """Staff."""
        return isinstance(request.user, User) and access.may_manage(request.user)


class ManagersChange(ManagersOnly):
    """Everybody who is signed in reads; those who manage models change."""

    def has_permission(self, request: Request, view: APIView) -> bool:
        """By the method."""
        if request.method in SAFE_METHODS:
            return isinstance(request.user, User)
        return super().has_permission(request, view)


@extend_schema_view(
    list=extend_schema(responses=_MODELS, summary="The models one may use"),
    retrieve=extend_schema(responses=_MODEL, summary="One model"),
)
class ServedModelViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[ServedModel]):
    """Served models. Members see less of them than those who manage them."""

    permission_classes = (ManagersChange,)
    queryset = ServedModel.objects.none()
    serializer_class = ServedModelSerializer
    lookup_field = "slug"
    lookup_value_converter = "slug"
    filterset_class = ServedModelFilter
    search_fields = ("slug", "name", "description")
    ordering_fields = ("name", "slug", "created_at", "last_used_at", "min_replicas")

    def get_queryset(self) -> QuerySet[ServedModel]:
        """Those the person may use."""
        return access.visible(self._by()).prefetch_related("teams") if self.request else self.queryset

    def get_serializer_class(self) -> type[BaseSerializer[ServedModel]]:
        """By who asks."""
        user = getattr(self.request, "user", None)
        managing = not isinstance(user, User) or access.may_manage(user)
        return ServedModelSerializer if managing else PublicModelSerializer

    @extend_schema(summary="Serve a file", responses={201: ServedModelSerializer})
    def create(self, request: Request) -> Response:
        """It is added stopped; `start` starts it. 409 where the short name is taken."""
        fields = valid(self.get_serializer(data=request.data))
        served = actions.add(fields.pop("file"), by=self._by(), **fields)
        return self._shown(served.slug, status.HTTP_201_CREATED)

    @extend_schema(summary="Set every parameter", parameters=[_DRY_RUN], responses=ServedModelSerializer)
    def update(self, request: Request, slug: str) -> Response:
        """Those that aren't given go back to saying nothing."""
        return self._change(request, partial=False)

    @extend_schema(summary="Set parameters", parameters=[_DRY_RUN], responses=ServedModelSerializer)
    def partial_update(self, request: Request, slug: str) -> Response:
        """Only those that are given."""
        return self._change(request, partial=True)

    @extend_schema(summary="Serve it no more")
    def destroy(self, request: Request, slug: str) -> Response:
        """Its file stays. 409 while it runs."""
        actions.remove(self.get_object(), by=self._by())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(summary="Start", request=None, responses=ServedModelSerializer)
    @action(detail=True, methods=["post"])
    def start(self, request: Request, slug: str) -> Response:
        """Asking twice is asking once."""
        return self._do(actions.start)

    @extend_schema(summary="Stop", request=None, responses=ServedModelSerializer)
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, slug: str) -> Response:
        """Answers being written may end first. Asking twice is asking once."""
        return self._do(actions.stop)

    @extend_schema(summary="Restart", request=None, responses=ServedModelSerializer)
    @action(detail=True, methods=["post"])
    def restart(self, request: Request, slug: str) -> Response:
        """Every replica is replaced by a new one."""
        return self._do(actions.restart)

    @extend_schema(
        summary="Set the number of replicas", request=ScaleSerializer, responses=ServedModelSerializer
    )
    @action(detail=True, methods=["post"])
    def scale(self, request: Request, slug: str) -> Response:
        """A fixed number, or from … to …; starts what is stopped."""
        said = valid(ScaleSerializer(data=request.data))
        least = said["replicas"] if "replicas" in said else said["min_replicas"]
        most = said.get("max_replicas")
        actions.scale(self.get_object(), by=self._by(), replicas=least, most=most)
        return self._shown(slug)

    @extend_schema(summary="What may help it", responses=TroubleSerializer(many=True))
    @action(
        detail=True,
        permission_classes=[ManagersOnly],
        pagination_class=None,
        filterset_class=None,
        search_fields=None,
        ordering_fields=None,
    )
    def remedies(self, request: Request, slug: str) -> Response:
        """Why replicas don't come up, and what would change that. Empty where nothing is wrong."""
        return Response(TroubleSerializer(remedies.troubles(self.get_object()), many=True).data)

    @extend_schema(summary="Apply a remedy", request=RemedyChoiceSerializer, responses=ServedModelSerializer)
    @remedies.mapping.post
    def remedy(self, request: Request, slug: str) -> Response:
        """Changes the model and starts it again. 409 where this isn't offered any more."""
        said = valid(RemedyChoiceSerializer(data=request.data))
        remedies.apply(self.get_object(), said["code"], by=self._by())
        return self._shown(slug)

    def _change(self, request: Request, *, partial: bool) -> Response:
        with _perhaps_dry(request):
            served = self.get_object()
            serializer = self.get_serializer(served, data=request.data, partial=partial)
            assert isinstance(serializer, ServedModelSerializer), "members don't get this far"
            serializer.is_valid(raise_exception=True)
            fields = serializer.validated_data if partial else serializer.replacing()
            changed = actions.change(served, by=self._by(), **fields)
            return self._shown(changed.slug)

    def _do(self, verb: Callable[..., None]) -> Response:
        served = self.get_object()
        verb(served, by=self._by())
        return self._shown(served.slug)

    def _shown(self, slug: str, code: int = status.HTTP_200_OK) -> Response:
        fresh = access.find_visible(self._by(), slug)
        return Response(self.get_serializer(fresh).data, status=code)

    def _by(self) -> User:
        return person(self.request)


class ModelFileViewSet(ReadOnlyModelViewSet[ModelFile]):
    """Files in the machines' model folders."""

    permission_classes = (ManagersOnly,)
    queryset = (
        ModelFile.objects.select_related("node").prefetch_related("served").defer("metadata", "chat_template")
    )
    serializer_class = ModelFileSerializer
    lookup_value_converter = "int"
    filterset_class = ModelFileFilter
    search_fields = ("path", "name", "architecture", "quantization")
    ordering_fields = ("path", "name", "size_bytes", "modified_at", "parameters")

    @extend_schema(summary="Read all machines' folders again", request=None, responses={202: None})
    @action(detail=False, methods=["post"], filterset_class=None, pagination_class=None)
    def scan(self, request: Request) -> Response:
        """The machines are asked; what they find appears in the list."""
        actions.scan(by=person(request))
        return Response(status=status.HTTP_202_ACCEPTED)


class InstanceViewSet(ReadOnlyModelViewSet[Instance]):
    """Replicas, those that are history, too."""

    permission_classes = (ManagersOnly,)
    queryset = Instance.objects.select_related("served", "node")
    serializer_class = InstanceSerializer
    lookup_value_converter = "uuid"
    filterset_class = InstanceFilter
    search_fields = ("served__slug", "reason")
    ordering_fields = ("created_at", "state_since", "memory_bytes", "crashes")

    @extend_schema(summary="The end of its log", responses=LogSerializer)
    @action(detail=True, filterset_class=None)
    def logs(self, request: Request, pk: str) -> Response:
        """Empty where its machine has said nothing for an hour."""
        return Response(LogSerializer({"lines": notes.log_of(self.get_object().pk)}).data)

    @extend_schema(summary="What its slots do", responses=LoadSerializer)
    @action(detail=True, filterset_class=None)
    def slots(self, request: Request, pk: str) -> Response:
        """404 where it isn't ready, or its machine has said nothing lately."""
        instance = self.get_object()
        report = demand.report_of(instance.pk) if instance.state == InstanceState.READY else None
        if report is None:
            raise NotFound("Nobody knows what it does: it isn't ready, or its machine is silent.")
        load = {"busy": report.busy, "queued": report.queued, "slots": notes.slots_of(instance.pk)}
        return Response(LoadSerializer(load).data)

    @extend_schema(summary="Every change of its state", responses=ChangeSerializer(many=True))
    @action(detail=True, filterset_class=None, serializer_class=ChangeSerializer)
    def timeline(self, request: Request, pk: str) -> Response:
        """The newest first."""
        changes = InstanceChange.objects.filter(instance=self.get_object())
        return page_of(self, changes, ChangeSerializer)


class NodeViewSet(ReadOnlyModelViewSet[Node]):
    """Machines on which a node worker runs."""

    permission_classes = (ManagersOnly,)
    queryset = Node.objects.annotate(
        replica_count=Count("instances", filter=~Q(instances__state=InstanceState.STOPPED)),
        alive=Exists(Node.objects.alive().filter(pk=OuterRef("pk"))),
    ).order_by("name")
    serializer_class = NodeSerializer
    lookup_field = "name"
    lookup_value_converter = "str"
    search_fields = ("name",)
    ordering_fields = ("name", "memory_bytes", "last_seen")

    @extend_schema(summary="Set labels, memory limit, and whether it takes replicas")
    def partial_update(self, request: Request, name: str) -> Response:
        """Only those that are given."""
        node = self.get_object()
        said = valid(self.get_serializer(node, data=request.data, partial=True))
        node_actions.change(node, by=person(request), **said)
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(summary="Forget a silent machine")
    def destroy(self, request: Request, name: str) -> Response:
        """With its replicas and files. 409 while it is alive, or where only it has a model's file."""
        node_actions.remove(self.get_object(), by=person(request))
        return Response(status=status.HTTP_204_NO_CONTENT)


class ConfigView(APIView):
    """The portal's configuration: how models are launched that don't say otherwise."""

    permission_classes = (ManagersOnly,)

    @extend_schema(summary="The configuration", responses=ConfigSerializer)
    def get(self, request: Request) -> Response:
        """As it holds now."""
        return Response(ConfigSerializer(PortalConfig.current()).data)

    @extend_schema(
        summary="Set every parameter",
        request=ConfigSerializer,
        responses=ConfigSerializer,
        parameters=[_DRY_RUN],
    )
    def put(self, request: Request) -> Response:
        """Those that aren't given go back to saying nothing."""
        return self._change(request, whole=True)

    @extend_schema(
        summary="Set parameters",
        request=ConfigSerializer(partial=True),
        responses=ConfigSerializer,
        parameters=[_DRY_RUN],
    )
    def patch(self, request: Request) -> Response:
        """Only those that are given."""
        return self._change(request, whole=False)

    @extend_schema(
        summary="Set parameters",
        request=ConfigSerializer(partial=True),
        responses=ConfigSerializer,
        parameters=[_DRY_RUN],
    )
    def post(self, request: Request) -> Response:
        """The same as PATCH."""
        return self._change(request, whole=False)

    def _change(self, request: Request, *, whole: bool) -> Response:
        with _perhaps_dry(request):
            serializer = ConfigSerializer(PortalConfig.current(), data=request.data, partial=True)
            serializer.is_valid(raise_exception=True)
            fields = serializer.replacing() if whole else serializer.validated_data
            portal = configuration.change(by=person(request), **fields)
            return Response(ConfigSerializer(portal).data)


@contextmanager
def _perhaps_dry(request: Request) -> Iterator[None]:
    """With `?dry_run=true` everything is done and undone: nothing is written, announced or started."""
    said = request.query_params.get("dry_run", "false")
    if said not in {"true", "false"}:
        raise InvalidInput("This is true or false.", param="dry_run")
    with transaction.atomic():
        yield
        if said == "true":
            transaction.set_rollback(True)
