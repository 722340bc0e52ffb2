"""REST resources of the portal as a whole, and how it says that there is nothing, or that something broke."""

import sys
from typing import Any

from asgiref.sync import async_to_sync
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.template.loader import render_to_string
from django.views.defaults import page_not_found
from drf_spectacular.utils import extend_schema
from drf_spectacular.views import SpectacularSwaggerSplitView
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from llamaproj import health, rest
from llamaproj.errors import LlamaProjError, NotFound, Unavailable


class DependencySerializer(serializers.Serializer[Any]):
    """One dependency; what else it says depends on which it is."""

    ok = serializers.BooleanField()
    error = serializers.CharField(required=False)


class HealthSerializer(serializers.Serializer[Any]):
    """The portal and what it depends on."""

    status = serializers.ChoiceField(choices=["ok", "unavailable"])
    database = DependencySerializer()
    redis = DependencySerializer()
    workers = DependencySerializer()
    models = DependencySerializer()


class HealthView(APIView):
    """Whether the portal can do its work: what /readyz says, for whoever is signed in."""

    @extend_schema(summary="Health", responses={200: HealthSerializer, 503: HealthSerializer})
    def get(self, request: Request) -> Response:
        """503 while a dependency is away."""
        found = async_to_sync(health.report)()
        return Response(found, status=200 if found["status"] == "ok" else 503)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Where there is no such address: a problem for programs, a page for people."""
    if request.path.startswith("/api/"):
        return JsonResponse(rest.problem(NotFound()), status=NotFound.status, content_type=rest.PROBLEM_TYPE)
    return page_not_found(request, exception)


def server_error(request: HttpRequest) -> HttpResponse:
    """Where a request failed on its way: 503 while the database or Valkey is away, 500 for a mistake of ours."""
    away = isinstance(sys.exc_info()[1], rest.AWAY)
    error = Unavailable() if away else LlamaProjError()
    body = rest.problem(error)
    if request.path.startswith("/api/"):
        response: HttpResponse = JsonResponse(body, status=error.status, content_type=rest.PROBLEM_TYPE)
    else:
        # Without the request: who asks can't be looked up just now.
        response = HttpResponse(render_to_string(f"{error.status}.html", body), status=error.status)
    if away:
        response["retry-after"] = str(rest.RETRY_AFTER_S)
    return response


class Explorer(SpectacularSwaggerSplitView):
    """The explorer, with its script in a file of its own: the content security policy knows no other."""

    template_name = "api_explorer.html"
    url_name = "api-schema"
