"""What people do with external servers. Each verb is one transaction with its audit row; then the server is asked."""

from collections.abc import Iterable
from functools import partial

from django.db import IntegrityError, transaction

from accounts import audit, version
from accounts.models import Team, User
from llamaproj.errors import Conflict, InvalidInput
from models_admin import events, secret_box
from models_admin.engine import launch_rules
from models_admin.external import address as external_address
from models_admin.external import external
from models_admin.external import tasks as external_tasks
from models_admin.models import ExternalServer, ServedModel


@transaction.atomic
def add(*, by: User | None, name: str, base_url: str, api_key: str = "") -> ExternalServer:
    """Make a server known. Its key is kept encrypted and never shown. Raises `InvalidInput` or `Conflict`."""
    external_address.check_key(api_key)
    server = ExternalServer(
        name=name.strip(),
        base_url=external_address.cleaned(base_url),
        api_key_encrypted=secret_box.seal(api_key) if api_key else b"",
    )
    _save(server)
    audit.record(by, "external.add", server, base_url=server.base_url, key=bool(api_key))
    _ask(server)
    return server


@transaction.atomic
def change(
    server: ExternalServer, *, by: User | None, name: str, base_url: str, api_key: str | None = None
) -> ExternalServer:
    """Set name, address and key; None keeps the key, an empty one forgets it. Raises `InvalidInput`.

    A key is for the host it was given for: whoever can't read it mustn't be able to have it sent elsewhere.
    """
    server = _locked(server)
    base_url = external_address.cleaned(base_url)
    if api_key is None:
        moved = external_address.origin(base_url) != external_address.origin(server.base_url)
        if server.has_key and moved:
            raise InvalidInput(
                "This is another server than the key was given for: type its key, or forget the old one.",
                param="api_key",
            )
    else:
        external_address.check_key(api_key)
    new: dict[str, object] = {"name": name.strip(), "base_url": base_url}
    if api_key is not None and (api_key, bool(api_key)) != (server.api_key, server.has_key):
        new["api_key_encrypted"] = secret_box.seal(api_key) if api_key else b""
    changed = [field for field, value in new.items() if getattr(server, field) != value]
    if not changed:
        return server
    for field in changed:
        setattr(server, field, new[field])
    if changed != ["name"]:
        # What is known was said by another.
        server.healthy, server.problem, server.checked_at = None, "", None
    _save(server)
    audit.record(by, "external.change", server, fields=sorted(changed))
    _ask(server)
    return server


@transaction.atomic
def enable(server: ExternalServer, *, by: User | None) -> None:
    """Ask it again, and route to it."""
    _switch(server, by=by, enabled=True)


@transaction.atomic
def disable(server: ExternalServer, *, by: User | None) -> None:
    """Ask it no more, and route nothing to it. Its models stay in the catalog, stopped."""
    _switch(server, by=by, enabled=False)


@transaction.atomic
def remove(server: ExternalServer, *, by: User | None) -> None:
    """Forget the server. Raises `Conflict` while models are served from it."""
    server = _locked(server)
    if slugs := list(server.served.values_list("slug", flat=True)):
        raise Conflict(f"{server.name} serves {', '.join(slugs)}; remove what is served from it first.")
    audit.record(by, "external.remove", server, base_url=server.base_url)
    server.delete()


@transaction.atomic
def serve(
    server: ExternalServer,
    external_name: str,
    *,
    by: User | None,
    slug: str = "",
    name: str = "",
    teams: Iterable[Team] = (),
) -> ServedModel:
    """Serve one of the server's models under a name of the portal's. Raises `Conflict` or `InvalidInput`."""
    server = _locked(server)
    if external_name not in server.models_offered:
        raise Conflict(f"{server.name} doesn't offer {external_name}.")
    if already := server.served.filter(external_name=external_name).first():
        raise Conflict(f"{external_name} of {server.name} is served already, as {already.slug}.")
    slug = slug or external.suggest_slug(server, external_name)
    if ServedModel.objects.filter(slug=slug).exists():
        raise Conflict(f"There is a model with the short name {slug} already.", param="slug")
    served = ServedModel(
        external=server,
        external_name=external_name,
        slug=slug,
        name=name or external.suggest_name(external_name),
        enabled=True,
    )
    launch_rules.check(served)
    served.save(force_insert=True)
    served.teams.set(teams)
    external.settle(served.pk)
    audit.record(by, "model.add", served, server=server.name, model=external_name)
    transaction.on_commit(partial(events.served_changed, served.pk))
    return served


def _switch(server: ExternalServer, *, by: User | None, enabled: bool) -> None:
    server = _locked(server)
    if server.enabled == enabled:
        return
    server.enabled = enabled
    # What it said before is old by the time it is asked again.
    server.healthy, server.problem, server.checked_at = None, "", None
    server.save(update_fields=["enabled", "healthy", "problem", "checked_at"])
    audit.record(by, "external.enable" if enabled else "external.disable", server)
    external.settle_all(server.pk)
    if enabled:
        _ask(server)


def _save(server: ExternalServer) -> None:
    if not server.name:
        raise InvalidInput("Give the server a name.", param="name")
    others = ExternalServer.objects.exclude(pk=server.pk)
    if others.filter(name=server.name).exists():
        raise Conflict(f"There is a server named {server.name} already.", param="name")
    possible = external_address.candidates(server.base_url)
    if twin := others.filter(base_url__in=possible).first():
        raise Conflict(f"This address is {twin.name}'s already.", param="base_url")
    try:
        with transaction.atomic():
            server.save()
    except IntegrityError:
        # Somebody was faster.
        raise Conflict(f"There is a server named {server.name} already.", param="name") from None


def _ask(server: ExternalServer) -> None:
    version.renew(version.CATALOG)
    transaction.on_commit(partial(external_tasks.check_soon, server.pk))


def _locked(server: ExternalServer) -> ExternalServer:
    return ExternalServer.objects.select_for_update().get(pk=server.pk)
