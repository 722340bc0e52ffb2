"""The REST door to usage: single requests, their sums, prices and settings."""

from collections.abc import Mapping, Sequence
from datetime import UTC, timedelta
from decimal import Decimal
from typing import Any

from django.db.models import Case, Expression, F, QuerySet, Sum, Value, When
from django.db.models.fields import DecimalField
from django.db.models.functions import Cast, Trunc
from django.shortcuts import get_object_or_404
from django.utils import timezone
from drf_spectacular.utils import OpenApiExample, OpenApiParameter, extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.generics import GenericAPIView
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet, ReadOnlyModelViewSet

from accounts.access import person
from accounts.models import ApiKey, Team, User
from accounts.people.api import AdministratorsOnly
from gateway.models import SUMS, Price, UsageConfig, UsageHour, UsageRecord
from gateway.usage import actions, prices
from gateway.usage.filters import RecordFilter, SumFilter
from gateway.usage.periods import Step
from gateway.usage.prices import Prices
from gateway.usage.scope import sums_seen_by
from gateway.usage.serializers import (
    GROUPS,
    PriceSerializer,
    RecordSerializer,
    SumSerializer,
    UsageConfigSerializer,
)
from llamaproj.errors import InvalidInput
from llamaproj.rest import valid
from llamaproj.rest_lists import Filters, NewestPages
from models_admin.models import ServedModel

_STEPS = ("hour", "day", "month")
_COLUMNS = {"model": "model_slug", "key": "api_key_id", "user": "user_id", "team": "team_id", "door": "door"}
# The others are told as means.
_COUNTED = [name for name in SUMS if not name.endswith("_ms")]
_UNSAID_DAYS = 30
_COST = DecimalField(max_digits=30, decimal_places=6)
_EXAMPLE = {
    "at": "2026-11-01T00:00:00Z",
    "model": "smollm2-135m-instruct",
    "key": None,
    "key_name": None,
    "user": None,
    "team": None,
    "door": None,
    "requests": 1204,
    "errors": 3,
    "prompt_tokens": 402118,
    "completion_tokens": 98321,
    "cached_tokens": 120044,
    "mean_queue_ms": 4.2,
    "mean_ms": 812.7,
    "cost": "0.600000",
    "currency": "EUR",
}


@extend_schema_view(
    list=extend_schema(summary="Single requests"), retrieve=extend_schema(summary="One request")
)
class RecordViewSet(ReadOnlyModelViewSet[UsageRecord]):
    """One's own requests and those of teams one manages; administrators see everybody's."""

    queryset = UsageRecord.objects.none()
    serializer_class = RecordSerializer
    lookup_value_converter = "uuid"
    pagination_class = NewestPages
    filter_backends = (Filters,)
    filterset_class = RecordFilter

    def get_queryset(self) -> QuerySet[UsageRecord]:
        """Those the person may see."""
        if not self.request:
            return self.queryset
        seen = UsageRecord.objects.visible_to(person(self.request))
        return seen.select_related("user", "team", "api_key")


class SummaryView(GenericAPIView[UsageHour]):
    """Sums over requests, also over those that are no longer kept one by one."""

    queryset = UsageHour.objects.none()
    serializer_class = SumSerializer
    filter_backends = (Filters,)
    filterset_class = SumFilter

    @extend_schema(
        operation_id="usage_summary",
        summary="Sums of requests",
        parameters=[
            OpenApiParameter(
                "group_by",
                {"type": "array", "items": {"type": "string", "enum": list(GROUPS)}, "minItems": 1},
                style="form",
                explode=False,
                description="By what they are summed up; one of hour, day and month at most. Without it: all in one.",
            )
        ],
        responses=SumSerializer(many=True),
        examples=[OpenApiExample("By month and model", value=_EXAMPLE, response_only=True)],
    )
    def get(self, request: Request) -> Response:
        """The newest first, otherwise in the order of the groups."""
        assert self.paginator is not None
        groups = _groups(request.query_params.get("group_by", ""))
        known = prices.current()
        of_days = "hour" not in groups and _is_of_days(request.query_params)
        seen = sums_seen_by(person(request), of_days=of_days)
        sums: QuerySet[Any] = self.filter_queryset(seen)
        if "since" not in request.query_params:
            sums = sums.filter(begins__gte=timezone.now() - timedelta(days=_UNSAID_DAYS))
        page: Any = self.paginator.paginate_queryset(_summed(sums, groups, known), request, self) or []
        shown = SumSerializer(_told(list(page), known), many=True)
        return self.paginator.get_paginated_response(shown.data)


@extend_schema_view(
    list=extend_schema(summary="Prices of models"), retrieve=extend_schema(summary="The price of a model")
)
class PriceViewSet(mixins.ListModelMixin, mixins.RetrieveModelMixin, GenericViewSet[Price]):
    """What tokens are said to cost. They hold for everything used so far, too."""

    permission_classes = (AdministratorsOnly,)
    queryset = Price.objects.select_related("served").order_by("served__slug")
    serializer_class = PriceSerializer
    lookup_field = "served__slug"
    lookup_url_kwarg = "slug"
    lookup_value_converter = "slug"
    ordering_fields = ("prompt_per_million", "completion_per_million")

    @extend_schema(summary="Set the price of a model")
    def update(self, request: Request, slug: str) -> Response:
        """Asking twice is asking once."""
        served = get_object_or_404(ServedModel, slug=slug)
        said = valid(PriceSerializer(data=request.data))
        price = actions.set_price(served, by=person(request), **said)
        return Response(PriceSerializer(price).data)

    @extend_schema(summary="Say no price any more")
    def destroy(self, request: Request, slug: str) -> Response:
        """Asking twice is asking once."""
        actions.remove_price(get_object_or_404(ServedModel, slug=slug), by=person(request))
        return Response(status=status.HTTP_204_NO_CONTENT)


class UsageConfigView(APIView):
    """How long single requests are kept, and the currency."""

    permission_classes = (AdministratorsOnly,)

    @extend_schema(summary="The settings of usage", responses=UsageConfigSerializer)
    def get(self, request: Request) -> Response:
        """As they hold now."""
        return Response(UsageConfigSerializer(UsageConfig.current()).data)

    @extend_schema(
        summary="Change the settings of usage",
        request=UsageConfigSerializer(partial=True),
        responses=UsageConfigSerializer,
    )
    def patch(self, request: Request) -> Response:
        """Only those that are given."""
        said = valid(UsageConfigSerializer(UsageConfig.current(), data=request.data, partial=True))
        config = actions.change_config(by=person(request), **said)
        return Response(UsageConfigSerializer(config).data)


def _groups(text: str) -> list[str]:
    groups = text.split(",") if text else []
    if any(group not in GROUPS for group in groups) or len(set(groups)) != len(groups):
        raise InvalidInput(f"Sums can be grouped by {', '.join(GROUPS)}, each once.", param="group_by")
    if sum(group in _STEPS for group in groups) > 1:
        raise InvalidInput("Sums are grouped by hour, by day or by month, not by several.", param="group_by")
    return groups


def _is_of_days(query: Mapping[str, str]) -> bool:
    """Whether what is asked for begins and ends with days, as their sums do."""
    asked = SumFilter(query, queryset=UsageHour.objects.none())
    if not asked.is_valid():
        return False
    since, until = (asked.form.cleaned_data[name] for name in ("since", "until"))
    return since is not None and all(at is None or Step.DAY.floor(at) == at for at in (since, until))


def _summed(sums: QuerySet[Any], groups: Sequence[str], known: Prices) -> Any:
    step = next((group for group in groups if group in _STEPS), None)
    names = [_COLUMNS[group] for group in groups if group in _COLUMNS]
    if step:
        sums = sums.annotate(start=Trunc("begins", step, tzinfo=UTC))
        names = ["start", *names]
    amounts = {f"sum_{name}": Sum(name) for name in SUMS}
    if not names:
        everything = sums.order_by().aggregate(**amounts, cost=_cost(known))
        return [everything] if everything["sum_requests"] else []
    order = [f"-{name}" if name == "start" else name for name in names]
    return sums.order_by().values(*names).annotate(**amounts, cost=_cost(known)).order_by(*order)


def _cost(known: Prices) -> Expression | Sum:
    if not known.rates:
        return Sum(Cast(Value(None), _COST), output_field=_COST)
    whens = [
        When(
            model_slug=slug,
            then=(
                F("prompt_tokens") * Value(rate.prompt, _COST)
                + F("completion_tokens") * Value(rate.completion, _COST)
            )
            / Value(Decimal(1_000_000), _COST),
        )
        for slug, rate in known.rates.items()
    ]
    return Sum(Case(*whens, default=None, output_field=_COST), output_field=_COST)


def _told(rows: list[dict[str, Any]], known: Prices) -> list[dict[str, Any]]:
    """With names in the place of numbers."""
    people = User.objects.in_bulk({row["user_id"] for row in rows if row.get("user_id")})
    teams = Team.objects.in_bulk({row["team_id"] for row in rows if row.get("team_id")})
    keys = ApiKey.objects.in_bulk({row["api_key_id"] for row in rows if row.get("api_key_id")})
    return [
        {
            "at": row.get("start"),
            "model": row.get("model_slug"),
            "key": (key := row.get("api_key_id")),
            "key_name": keys[key].name if key in keys else None,
            "user": people[pk].username if (pk := row.get("user_id")) in people else None,
            "team": teams[pk].name if (pk := row.get("team_id")) in teams else None,
            "door": row.get("door"),
            "mean_queue_ms": row["sum_queue_ms"] / row["sum_requests"] if row["sum_requests"] else 0.0,
            "mean_ms": row["sum_total_ms"] / row["sum_requests"] if row["sum_requests"] else 0.0,
            "cost": row["cost"],
            "currency": known.currency,
            **{name: row[f"sum_{name}"] for name in _COUNTED},
        }
        for row in rows
    ]
