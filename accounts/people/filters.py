"""By what people are filtered."""

from django_filters import rest_framework as filters

from accounts.models import User
from llamaproj.rest_lists import Flag


class PersonFilter(filters.FilterSet):
    """People."""

    is_active = Flag()
    is_staff = Flag()
    team = filters.CharFilter(field_name="teams__name", distinct=True)

    class Meta:
        model = User
        fields = ()
