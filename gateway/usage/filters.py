"""By what REST's lists of use are filtered."""

from django_filters import rest_framework as filters

from gateway.models import UsageRecord
from llamaproj.rest_lists import Moment


class _Use(filters.FilterSet):
    model = filters.CharFilter(field_name="model_slug", label="The model's short name.")
    key = filters.UUIDFilter(field_name="api_key", label="The API key's id.")
    door = filters.ChoiceFilter(choices=UsageRecord.Door.choices, label="Through the chat or the API.")
    user = filters.CharFilter(field_name="user__username", label="The person's name to sign in with.")
    team = filters.CharFilter(field_name="team__name", label="The name of the key's team.")


class RecordFilter(_Use):
    """Single requests."""

    since = Moment(field_name="at", lookup_expr="gte", label="Ended then or later.")
    until = Moment(field_name="at", lookup_expr="lt", label="Ended before.")
    finish = filters.ChoiceFilter(choices=UsageRecord.Finish.choices, label="How it ended.")
    error = filters.CharFilter(field_name="error_code", label="The error's code.")
    endpoint = filters.CharFilter(label="The path below /v1/, such as chat/completions.")
    request_id = filters.CharFilter(label="As in the answer's x-request-id.")

    class Meta:
        model = UsageRecord
        fields = ()


class SumFilter(_Use):
    """Sums that are annotated with when each `begins`."""

    since = Moment(
        field_name="begins", lookup_expr="gte", label="Hours that begin then or later; 30 days without it."
    )
    until = Moment(field_name="begins", lookup_expr="lt", label="Hours that begin before.")
