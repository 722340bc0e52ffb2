"""The REST door to a hub: what there is to download."""

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from llamaproj.rest import valid
from models_admin.api import ManagersOnly
from models_admin.hub import fragments, hub
from models_admin.hub.serializers import (
    AskedRepositorySerializer,
    AskedSearchSerializer,
    FoundSerializer,
    RepositorySerializer,
)
from models_admin.models import Node, PortalConfig


class SearchView(APIView):
    """Repositories on the hub."""

    permission_classes = (ManagersOnly,)

    @extend_schema(
        summary="Search the hub", parameters=[AskedSearchSerializer], responses=FoundSerializer(many=True)
    )
    def get(self, request: Request) -> Response:
        """Those most often downloaded first. 503 where the hub can't be reached."""
        said = valid(AskedSearchSerializer(data=request.query_params.dict()))
        return Response(FoundSerializer(hub.search(said["q"]), many=True).data)


class RepositoryView(APIView):
    """One repository on the hub."""

    permission_classes = (ManagersOnly,)

    @extend_schema(
        summary="What a repository has",
        parameters=[AskedRepositorySerializer],
        responses=RepositorySerializer,
    )
    def get(self, request: Request) -> Response:
        """Its models, and whether they would fit on each machine. 404 where the hub doesn't know it."""
        said = valid(AskedRepositorySerializer(data=request.query_params.dict()))
        found = hub.look(said["name"], said["revision"])
        models = fragments.offers_of(found, list(Node.objects.alive()), PortalConfig.current())
        shown = {
            "name": found.name,
            "commit": found.commit,
            "gated": found.gated,
            "models": models,
            "projectors": found.projectors,
        }
        return Response(RepositorySerializer(shown).data)
