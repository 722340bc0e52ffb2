"""The piece of HTML that shows the nodes: on the page, in answers to its forms, and over the socket."""

from django.template.loader import render_to_string

from accounts.models import User
from models_admin import access
from models_admin.nodes import overview as node_overview


def nodes(user: User) -> str:
    """All nodes."""
    return render_to_string(
        "models_admin/_nodes.html", {"user": user, "manager": access.may_manage(user)} | nodes_context()
    )


def nodes_context() -> dict[str, object]:
    """What `_nodes.html` shows."""
    return {"nodes": node_overview.nodes()}
