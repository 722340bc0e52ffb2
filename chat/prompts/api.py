"""The REST door to the prompt library."""

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import status
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import ReadOnlyModelViewSet

from accounts.access import person
from chat.models import Prompt
from chat.prompts import actions
from chat.prompts.serializers import PromptSerializer
from llamaproj.rest import valid


@extend_schema_view(
    list=extend_schema(summary="One's prompts, and those of one's teams"),
    retrieve=extend_schema(summary="One prompt"),
)
class PromptViewSet(ReadOnlyModelViewSet[Prompt]):
    """The prompt library."""

    queryset = Prompt.objects.none()
    serializer_class = PromptSerializer
    lookup_value_converter = "int"
    search_fields = ("title", "text")
    ordering_fields = ("title", "created_at", "updated_at")

    def get_queryset(self) -> QuerySet[Prompt]:
        """What the person sees."""
        if not self.request:
            return self.queryset
        return Prompt.objects.visible_to(person(self.request)).select_related("owner", "team")

    @extend_schema(summary="Keep a prompt", responses={201: PromptSerializer})
    def create(self, request: Request) -> Response:
        """For oneself, or for a team one is in."""
        said = valid(self.get_serializer(data=request.data))
        kept = actions.save(by=person(request), **said)
        return Response(self.get_serializer(kept).data, status=status.HTTP_201_CREATED)

    @extend_schema(summary="Change a prompt")
    def partial_update(self, request: Request, pk: int) -> Response:
        """One's own, or one of a team one manages."""
        found = self.get_object()
        said = valid(self.get_serializer(found, data=request.data, partial=True))
        known = {"title": found.title, "text": found.text, "team": found.team}
        actions.change(found, by=person(request), **known | said)
        return Response(self.get_serializer(found).data)

    @extend_schema(summary="Delete a prompt")
    def destroy(self, request: Request, pk: int) -> Response:
        """One's own, or one of a team one manages."""
        actions.delete(self.get_object(), by=person(request))
        return Response(status=status.HTTP_204_NO_CONTENT)
