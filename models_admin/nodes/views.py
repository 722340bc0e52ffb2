"""The pages of nodes: administrators only."""

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.views.decorators.http import require_http_methods, require_POST, require_safe

from models_admin import access, answers
from models_admin.models import Node
from models_admin.nodes import actions as node_actions
from models_admin.nodes import fragments as node_fragments
from models_admin.nodes.forms import NodeForm


@require_safe
@login_required
def index(request: HttpRequest) -> HttpResponse:
    """All nodes: what they have, and what sits where."""
    access.manager(request)
    return render(request, "models_admin/nodes.html", node_fragments.nodes_context() | {"manager": True})


@require_POST
@login_required
def accept(request: HttpRequest, pk: int) -> HttpResponse:
    """Place replicas there (`accepts=1`), or nothing new any more."""
    user = access.manager(request)
    node, accepts = get_object_or_404(Node, pk=pk), request.POST.get("accepts") == "1"
    node_actions.accept(node, accepts, by=user)
    words = f"Replicas are placed on {node.name} again." if accepts else f"{node.name} gets nothing new."
    return answers.changed(request, lambda: node_fragments.nodes(user), "nodes", words)


@require_http_methods(["GET", "POST"])
@login_required
def edit(request: HttpRequest, pk: int) -> HttpResponse:
    """Change labels, the memory limit, and whether it takes replicas."""
    user = access.manager(request)
    node = get_object_or_404(Node, pk=pk)
    form = NodeForm(node, request.POST or None)
    if form.is_valid():
        node_actions.change(node, by=user, **form.values())
        return redirect("nodes")
    context = {"form": form, "node": node}
    return render(request, "models_admin/node_edit.html", context, status=422 if form.errors else 200)


@require_POST
@login_required
def remove(request: HttpRequest, pk: int) -> HttpResponse:
    """Forget a silent node."""
    user = access.manager(request)
    node = get_object_or_404(Node, pk=pk)
    node_actions.remove(node, by=user)
    words = f"{node.name} is forgotten. It is back as soon as its worker runs again."
    return answers.changed(request, lambda: node_fragments.nodes(user), "nodes", words)
