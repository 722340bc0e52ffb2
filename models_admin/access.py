"""Who may see and do what with models."""

from django.http import HttpRequest

from accounts.access import person
from accounts.models import User
from llamaproj.errors import NotAllowed, NotFound
from models_admin.models import ServedModel, ServedModelQuerySet


def may_manage(user: User) -> bool:
    """True for those who start, stop, add and change models."""
    return user.is_active and user.is_staff


def manager(request: HttpRequest) -> User:
    """Who sends the request, where they manage models. Raises `NotAllowed` for everybody else."""
    user = person(request)
    if not may_manage(user):
        raise NotAllowed("Only administrators manage models.")
    return user


def visible(user: User) -> ServedModelQuerySet:
    """The models a person may use, with what a page shows of them."""
    return (
        ServedModel.objects.visible_to(user)
        .select_related("file__node", "external")
        .prefetch_related("instances__node")
    )


def find_visible(user: User, slug: str) -> ServedModel:
    """One of them. Raises `NotFound`, also where it exists for others only."""
    served = visible(user).filter(slug=slug).first()
    if served is None:
        raise NotFound("There is no such model.")
    return served
