"""By what REST's lists are filtered."""

from typing import Any

from django.db.models import QuerySet
from django_filters import rest_framework as filters

from llamaproj.rest_lists import Flag
from models_admin.models import Download, Instance, ModelFile, ServedModel
from models_admin.states import DownloadState, InstanceState


class ServedModelFilter(filters.FilterSet):
    """Served models."""

    enabled = Flag()
    on_demand = Flag(method="by_demand", label="Loaded when somebody asks for it.")
    state = filters.ChoiceFilter(
        field_name="instances__state", choices=InstanceState.choices, distinct=True, label="Of any replica."
    )
    team = filters.CharFilter(field_name="teams__name", distinct=True)

    class Meta:
        model = ServedModel
        fields = ()

    def by_demand(self, queryset: QuerySet[ServedModel], name: str, value: bool) -> QuerySet[ServedModel]:
        """Where no replica always runs."""
        return queryset.filter(min_replicas=0) if value else queryset.exclude(min_replicas=0)


class ModelFileFilter(filters.FilterSet):
    """Files."""

    node = filters.CharFilter(field_name="node__name")
    kind = filters.ChoiceFilter(choices=ModelFile.Kind.choices)
    architecture = filters.CharFilter()
    missing = Flag()
    broken = Flag(method="by_error", label="It can't be served.")
    served = Flag(field_name="served", lookup_expr="isnull", exclude=True, distinct=True)

    class Meta:
        model = ModelFile
        fields = ()

    def by_error(self, queryset: QuerySet[ModelFile], name: str, value: Any) -> QuerySet[ModelFile]:
        """Those that can't be served, or can."""
        return queryset.exclude(error="") if value else queryset.filter(error="")


class InstanceFilter(filters.FilterSet):
    """Replicas."""

    model = filters.CharFilter(field_name="served__slug")
    node = filters.CharFilter(field_name="node__name")
    state = filters.MultipleChoiceFilter(choices=InstanceState.choices)

    class Meta:
        model = Instance
        fields = ()


class DownloadFilter(filters.FilterSet):
    """Downloads."""

    node = filters.CharFilter(field_name="node__name")
    state = filters.MultipleChoiceFilter(choices=DownloadState.choices)

    class Meta:
        model = Download
        fields = ()
