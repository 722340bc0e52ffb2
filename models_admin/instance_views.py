"""Pages about what runs of a model: ways out of trouble, and logs to take away."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse, StreamingHttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404
from django.views.decorators.http import require_POST, require_safe

from models_admin import access, answers, fragments, notes, remedies
from models_admin.engine import instance_log
from models_admin.models import Instance


@require_POST
@login_required
def remedy(request: HttpRequest, slug: str, code: str) -> HttpResponse:
    """Change what a remedy changes, and start the model again."""
    user = access.manager(request)
    served = access.find_visible(user, slug)
    applied = remedies.apply(served, code, by=user)
    return answers.changed(
        request,
        lambda: fragments.diagnosis(user, access.find_visible(user, slug)),
        "model",
        f"{applied.label}: done. {served.name} is started again.",
        slug=slug,
    )


@require_safe
@login_required
def log(request: HttpRequest, slug: str, pk: str) -> HttpResponseBase:
    """A replica's whole log where it ran on this machine, otherwise what its node has told of it."""
    user = access.manager(request)
    served = access.find_visible(user, slug)
    instance = get_object_or_404(Instance, pk=pk, served=served)
    if instance_log.path_of(str(instance.pk)).exists():
        response: HttpResponseBase = StreamingHttpResponse(
            instance_log.whole(str(instance.pk)), content_type="text/plain; charset=utf-8"
        )
    else:
        lines = [
            f"--- {instance.place} has the whole log; these are its last lines",
            *notes.log_of(instance.pk),
        ]
        response = HttpResponse("\n".join(lines) + "\n", content_type="text/plain; charset=utf-8")
    name = f"{served.slug}-{str(instance.pk)[:8]}.log"
    response.headers["Content-Disposition"] = f'attachment; filename="{name}"'
    return response
