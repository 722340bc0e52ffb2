"""What REST's lists share: pages, order and filters. What can't be understood is refused, never passed over."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from django import forms
from django.core.exceptions import ValidationError
from django_filters import rest_framework as filters
from django_filters.fields import IsoDateTimeField
from rest_framework.filters import OrderingFilter
from rest_framework.pagination import CursorPagination, PageNumberPagination
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView

from llamaproj.errors import InvalidInput

if TYPE_CHECKING:
    # It reads settings that name this module.
    from rest_framework.generics import GenericAPIView


class _Sized:
    """50 entries, or `page_size` up to 200."""

    page_size = 50
    page_size_query_param = "page_size"
    max_page_size = 200

    def get_page_size(self, request: Request) -> int:
        """Raises `InvalidInput` for what can't be one, and for two."""
        for name in ("page", "page_size", "cursor"):
            if len(request.query_params.getlist(name)) > 1:
                raise InvalidInput("Give this once.", param=name)
        said = request.query_params.get("page_size")
        if said is None:
            return self.page_size
        if not (
            said.isascii() and said.isdecimal() and len(said) < 10 and 1 <= int(said) <= self.max_page_size
        ):
            raise InvalidInput(f"A page has 1 to {self.max_page_size} entries.", param="page_size")
        return int(said)

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        """With their bounds."""
        parameters: list[dict[str, Any]] = super().get_schema_operation_parameters(view)  # type: ignore[misc]
        for parameter in parameters:
            if parameter["schema"]["type"] == "integer":
                most = {"maximum": self.max_page_size} if parameter["name"] == "page_size" else {}
                parameter["schema"] |= {"minimum": 1, **most}
        return parameters


class Pages(_Sized, PageNumberPagination):  # type: ignore[misc]  # its sizes are None by default
    """Lists come in numbered pages."""


class NewestPages(_Sized, CursorPagination):  # type: ignore[misc]  # as above
    """The newest first, in pages that stay put while new entries come; how many there are isn't counted."""

    ordering = ("-at", "-id")


class Filters(filters.DjangoFilterBackend):
    """Filters; only a text may be empty."""

    def filter_queryset(self, request: Request, queryset: Any, view: APIView) -> Any:
        """Raises `InvalidInput`."""
        filterset = self.get_filterset(request, queryset, view)
        for name, field in filterset.form.fields.items() if filterset is not None else ():
            is_text = isinstance(field, forms.CharField) and not isinstance(field, forms.UUIDField)
            if not is_text and "" in request.query_params.getlist(name):
                raise InvalidInput("Give this a value, or leave it out.", param=name)
        return super().filter_queryset(request, queryset, view)


def page_of(view: "GenericAPIView[Any]", rows: Any, serializer: type[BaseSerializer[Any]]) -> Response:
    """One page of rows that aren't the view's own."""
    assert view.paginator is not None
    page: Any = view.paginator.paginate_queryset(rows, view.request, view) or []
    return view.paginator.get_paginated_response(serializer(page, many=True).data)


class Ordering(OrderingFilter):
    """`?ordering=name,-created_at`: by the fields that the list names."""

    def get_ordering(self, request: Request, queryset: Any, view: APIView) -> Any:
        """Raises `InvalidInput` for nothing."""
        if request.query_params.get(self.ordering_param) == "":
            raise InvalidInput("Give this a value, or leave it out.", param=self.ordering_param)
        return super().get_ordering(request, queryset, view)

    def remove_invalid_fields(self, queryset: Any, fields: Any, view: APIView, request: Request) -> Any:
        """Raises `InvalidInput` for a field it doesn't know."""
        known = [name for name, _ in self.get_valid_fields(queryset, view, {"request": request})]
        if any(field.removeprefix("-") not in known for field in fields):
            raise InvalidInput(f"This list can be ordered by {', '.join(known)}.", param="ordering")
        return fields

    def get_schema_operation_parameters(self, view: APIView) -> list[dict[str, Any]]:
        """Each field and its reverse."""
        fields = getattr(view, "ordering_fields", None) or ()
        if not fields:
            return []
        names = [choice for name in fields for choice in (name, f"-{name}")]
        return [
            {
                "name": "ordering",
                "required": False,
                "in": "query",
                "description": "By which fields, the first one first; `-` turns a field round.",
                "explode": False,
                "style": "form",
                "schema": {"type": "array", "minItems": 1, "items": {"type": "string", "enum": names}},
            }
        ]


class _FlagField(forms.NullBooleanField):
    """Django's takes whatever it doesn't know for nothing said."""

    widget = forms.TextInput

    def to_python(self, value: Any) -> bool | None:  # type: ignore[override]  # as NullBooleanField has it
        """Raises `ValidationError`."""
        if value in {None, ""}:
            return None
        if value not in {"true", "false"}:
            raise ValidationError("This is true or false.")
        return bool(value == "true")


class Flag(filters.BooleanFilter):
    """`true` or `false`."""

    field_class = _FlagField

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"widget": forms.TextInput} | kwargs)


class _MomentField(IsoDateTimeField):
    """PostgreSQL takes fewer offsets from UTC than ISO 8601 has."""

    def to_python(self, value: Any) -> datetime | None:
        """In UTC. Raises `ValidationError`."""
        moment: datetime | None = super().to_python(value)
        try:
            return moment.astimezone(UTC) if moment is not None else None
        except OverflowError:
            raise ValidationError("This lies outside of all calendars.") from None


class Moment(filters.IsoDateTimeFilter):
    """A date and time of ISO 8601."""

    field_class = _MomentField
