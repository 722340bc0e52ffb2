"""The REST door to what was measured."""

from dataclasses import replace
from uuid import UUID

from django.db.models import F
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.access import person
from llamaproj.errors import NotFound
from llamaproj.rest import valid
from models_admin.api import ManagersOnly
from models_admin.models import Instance, Node, ServedModel
from monitoring import history
from monitoring.models import Sample
from monitoring.serializers import (
    AskedMetricsSerializer,
    AskedStatisticsSerializer,
    InstanceMetricsSerializer,
    MetricsSerializer,
    StatisticsSerializer,
)
from monitoring.statistics import WINDOWS, only, statistics


class MetricsView(APIView):
    """What machines did, as their charts show it."""

    @extend_schema(
        summary="A machine's figures over time",
        parameters=[AskedMetricsSerializer],
        responses=MetricsSerializer,
    )
    def get(self, request: Request) -> Response:
        """Kept for a day. 404 while there is no machine."""
        wanted = valid(AskedMetricsSerializer(data=request.query_params.dict()))
        node = wanted.get("node") or Node.objects.order_by(F("last_seen").desc(nulls_last=True)).first()
        if node is None:
            raise NotFound("There is no machine yet.")
        past = history.between(node, wanted["start"], wanted["end"], wanted["step_seconds"])
        found = {**wanted, "node": node.name, "at": past.at, "columns": past.columns}
        return Response(MetricsSerializer(found).data)


class StatisticsView(APIView):
    """What requests did lately, as the dashboard shows it."""

    @extend_schema(
        summary="How many requests, how fast, how many failed",
        parameters=[AskedStatisticsSerializer],
        responses=StatisticsSerializer,
    )
    def get(self, request: Request) -> Response:
        """Some seconds old. Of each model that one may use, and of all together."""
        asked = valid(AskedStatisticsSerializer(data=request.query_params.dict()))
        known = statistics(WINDOWS[asked["window"]])
        slugs = ServedModel.objects.visible_to(person(request)).values_list("slug", flat=True)
        return Response(StatisticsSerializer(replace(known, models=only(known.models, slugs))).data)


class InstanceMetricsView(APIView):
    """What a replica does."""

    permission_classes = (ManagersOnly,)

    @extend_schema(summary="What it was last seen doing", responses=InstanceMetricsSerializer)
    def get(self, request: Request, pk: UUID) -> Response:
        """404 where its machine has said nothing for some seconds, or it doesn't run."""
        instance = Instance.objects.select_related("node").filter(pk=pk).first()
        samples = Sample.objects.newest(instance.node.name) if instance and instance.node else []
        for sample in samples:
            for row in sample.data["instances"]:
                if row["id"] == str(pk):
                    return Response(InstanceMetricsSerializer({**row, "at": sample.at}).data)
        raise NotFound("Nobody knows what it does: it doesn't run, or its machine is silent.")
