"""The REST door to conversations: the same verbs as the pages', below /api/v1/."""

from typing import Any
from uuid import UUID

from django.db import transaction
from django.db.models import OuterRef, Prefetch, QuerySet, Subquery
from django.shortcuts import get_object_or_404
from django.utils.http import content_disposition_header
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema, extend_schema_view
from rest_framework import mixins, status
from rest_framework.decorators import action
from rest_framework.renderers import BaseRenderer, JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.viewsets import GenericViewSet, ReadOnlyModelViewSet

from accounts.access import person
from accounts.authentication import inference_key_of
from accounts.models import ApiKey
from chat import actions, export, search
from chat.filters import ConversationFilter
from chat.models import Conversation, Generation, Message
from chat.serializers import (
    AskedSearchSerializer,
    BeginSerializer,
    ConversationExportSerializer,
    ConversationSerializer,
    FoundMessageSerializer,
    GenerationSerializer,
    MessageSerializer,
    QuestionSerializer,
    SharedWithSerializer,
)
from llamaproj.errors import InvalidInput
from llamaproj.rest import valid
from llamaproj.rest_lists import page_of
from models_admin.models import ServedModel


class MarkdownRenderer(BaseRenderer):
    """Text that is markdown already."""

    media_type = "text/markdown"
    format = "markdown"
    charset = "utf-8"

    def render(self, data: Any, accepted_media_type: Any = None, renderer_context: Any = None) -> bytes:
        """As it is; a problem as JSON."""
        return data.encode() if isinstance(data, str) else JSONRenderer().render(data)


@extend_schema_view(
    list=extend_schema(summary="One's conversations"),
    retrieve=extend_schema(summary="One conversation"),
)
class ConversationViewSet(ReadOnlyModelViewSet[Conversation]):
    """Conversations: one's own, and what others share."""

    queryset = Conversation.objects.none()
    serializer_class = ConversationSerializer
    lookup_value_converter = "uuid"
    filterset_class = ConversationFilter
    search_fields = ("title",)
    ordering_fields = ("updated_at", "created_at", "title")

    def get_queryset(self) -> QuerySet[Conversation]:
        """Those one may read; to change, one's own."""
        if not self.request:
            return self.queryset
        rows = Conversation.objects.all()
        reading = self.request.method in {"GET", "HEAD", "OPTIONS"}
        rows = rows.visible_to(self._by) if reading else rows.writable_by(self._by)
        unfinished = Generation.objects.filter(message__conversation=OuterRef("pk"), ended_at__isnull=True)
        return rows.select_related("served", "owner").annotate(
            unfinished=Subquery(unfinished.values("pk")[:1])
        )

    @extend_schema(
        summary="Begin a conversation", request=BeginSerializer, responses={201: ConversationSerializer}
    )
    @transaction.atomic
    def create(self, request: Request) -> Response:
        """Its first answer is begun at once: `generation` says which. 409 for an id that is taken."""
        said = valid(BeginSerializer(data=request.data))
        key, served = self._model(said["model"])
        begun = actions.begin(owner=self._by, text=said["text"], served=served, pk=said.get("id"), key=key)
        if "title" in said:
            actions.rename(begun, title=said["title"])
        shown = self.get_serializer(self.get_queryset().get(pk=begun.pk))
        return Response(shown.data, status=status.HTTP_201_CREATED)

    @extend_schema(summary="Rename")
    def partial_update(self, request: Request, pk: UUID) -> Response:
        """Nothing but the title can be changed."""
        found = self.get_object()
        said = valid(self.get_serializer(found, data=request.data, partial=True))
        if "title" in said:
            actions.rename(found, title=said["title"])
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(summary="Delete")
    def destroy(self, request: Request, pk: UUID) -> Response:
        """With everything in it; an answer still being written ends."""
        actions.delete(self.get_object())
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        summary="Search in all messages",
        parameters=[AskedSearchSerializer],
        responses=FoundMessageSerializer(many=True),
    )
    @action(detail=False, filterset_class=None, search_fields=None, ordering_fields=None)
    def search(self, request: Request) -> Response:
        """Those one may read, the newest first."""
        said = valid(AskedSearchSerializer(data=request.query_params.dict()))
        return page_of(self, search.search(said["q"], reader=self._by), FoundMessageSerializer)

    @extend_schema(summary="Its messages", responses=MessageSerializer(many=True))
    @action(detail=True, filterset_class=None, search_fields=None, ordering_fields=None)
    def messages(self, request: Request, pk: UUID) -> Response:
        """In their order."""
        rows = self.get_object().messages.select_related("generation").order_by("number")
        return page_of(self, rows, MessageSerializer)

    @extend_schema(summary="Ask", request=QuestionSerializer, responses={202: GenerationSerializer})
    @messages.mapping.post
    def ask(self, request: Request, pk: UUID) -> Response:
        """The answer is written in the background. 409 while another one is, and for an id that is taken."""
        found = self.get_object()
        said = valid(QuestionSerializer(data=request.data))
        key, served = self._model(said.get("model") or (found.served.slug if found.served else ""))
        sent = actions.send(found, text=said["text"], served=served, pk=said.get("id"), key=key)
        return Response(_shown(sent.answer), status=status.HTTP_202_ACCEPTED)

    @extend_schema(
        summary="Let a team read it", request=SharedWithSerializer, responses=ConversationSerializer
    )
    @action(detail=True, methods=["put"], filterset_class=None)
    def share(self, request: Request, pk: UUID) -> Response:
        """Its owner, with a team they are in."""
        found = self.get_object()
        said = valid(SharedWithSerializer(data=request.data, context=self.get_serializer_context()))
        actions.share(found, said["team"])
        return Response(self.get_serializer(found).data)

    @extend_schema(summary="Let nobody else read it")
    @share.mapping.delete
    def unshare(self, request: Request, pk: UUID) -> Response:
        """Asking twice is asking once."""
        actions.share(self.get_object(), None)
        return Response(status=status.HTTP_204_NO_CONTENT)

    @extend_schema(
        summary="The whole conversation as a file",
        responses={
            (200, "application/json"): ConversationExportSerializer,
            (200, "text/markdown"): OpenApiTypes.STR,
        },
    )
    @action(
        detail=True,
        url_path="export",
        filterset_class=None,
        renderer_classes=[JSONRenderer, MarkdownRenderer],
    )
    def as_file(self, request: Request, pk: UUID) -> Response:
        """JSON, or markdown to read."""
        if request.query_params.get("format") == "":
            raise InvalidInput("Say json or markdown, or leave it out.", param="format")
        whole = self.get_queryset().prefetch_related(
            Prefetch("messages", Message.objects.select_related("generation"))
        )
        found = get_object_or_404(whole, pk=pk)
        ending = "md" if request.accepted_renderer.format == "markdown" else "json"
        text = (
            export.markdown(found, found.messages.all())
            if ending == "md"
            else ConversationExportSerializer(found).data
        )
        name = content_disposition_header(True, export.file_name(found, ending))
        return Response(text, headers={"content-disposition": name})

    def _model(self, slug: str) -> tuple[ApiKey | None, ServedModel]:
        """One the person may use, and the key that asks for it. Raises `InvalidInput`, and `NotAllowed` for the key."""
        key = inference_key_of(self.request)
        served = ServedModel.objects.usable_by(self._by, key).filter(slug=slug).first()
        if served is None:
            raise InvalidInput(
                f"There is no model {slug!r} here." if slug else "Say which model.", param="model"
            )
        return key, served

    @property
    def _by(self) -> Any:
        return person(self.request)


@extend_schema_view(retrieve=extend_schema(summary="How far an answer is"))
class GenerationViewSet(mixins.RetrieveModelMixin, GenericViewSet[Generation]):
    """Answers being written, and written."""

    queryset = Generation.objects.none()
    serializer_class = GenerationSerializer
    lookup_value_converter = "uuid"

    def get_queryset(self) -> QuerySet[Generation]:
        """Of conversations one may read; to change, of one's own."""
        if not self.request:
            return self.queryset
        who, rows = person(self.request), Conversation.objects.all()
        rows = rows.visible_to(who) if self.request.method == "GET" else rows.writable_by(who)
        return Generation.objects.filter(message__conversation__in=rows).select_related("message")

    @extend_schema(summary="Stop", request=None, responses=GenerationSerializer)
    @action(detail=True, methods=["post"])
    def stop(self, request: Request, pk: UUID) -> Response:
        """Its text is kept. Stopping twice, or too late, changes nothing."""
        actions.stop(self.get_object().message)
        return Response(self.get_serializer(self.get_object()).data)

    @extend_schema(summary="Write anew", request=None, responses={202: GenerationSerializer})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, pk: UUID) -> Response:
        """A new generation takes this one's place. 409 unless it is the last answer, and has ended."""
        answer = self.get_object().message
        actions.retry(answer, key=inference_key_of(request))
        return Response(_shown(answer), status=status.HTTP_202_ACCEPTED)


def _shown(answer: Message) -> Any:
    generation = get_object_or_404(Generation.objects.select_related("message"), message=answer.pk)
    return GenerationSerializer(generation).data
