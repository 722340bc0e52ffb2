"""The audit trail's one entrance."""

from django.db.models import Model

from accounts.models import AuditEntry, Team, User


def record(
    by: User | None, verb: str, target: Model | str, *, team: Team | None = None, **detail: object
) -> None:
    """Write that `by` (None: the portal itself) did `verb`, say `model.start`, to `target`.

    Managers of `team` may read it. Call it in the deed's transaction.
    """
    AuditEntry.objects.create(
        by=by,
        by_name=by.username if by else "portal",
        verb=verb,
        target=str(target)[:200],
        detail=detail,
        team=team,
    )
