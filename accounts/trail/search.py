"""Which entries of the audit trail somebody asks for, a page at a time, however long the trail is."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from django.db.models import Q, TextField
from django.db.models.functions import Cast

from accounts.models import AuditEntry, AuditEntryQuerySet

_LOOKED_AT_FOR_VERBS = 2000


@dataclass(frozen=True)
class Cursor:
    """The place of an entry in the trail: what is older comes after it."""

    at: datetime
    pk: int

    @classmethod
    def of(cls, entry: AuditEntry) -> "Cursor":
        """The entry's place."""
        return cls(entry.at, entry.pk)

    @classmethod
    def parse(cls, text: str) -> "Cursor | None":
        """What `str` wrote; None where it can't be read."""
        micros, _, pk = text.partition("-")
        if not (micros.isdecimal() and pk.isdecimal() and len(micros) < 18 and len(pk) < 19):
            return None
        return cls(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=int(micros)), int(pk))

    def __str__(self) -> str:
        return f"{(self.at - datetime.fromtimestamp(0, UTC)) // timedelta(microseconds=1)}-{self.pk}"


@dataclass(frozen=True)
class Asked:
    """What an entry must be like; what is empty asks for nothing."""

    who: str = ""
    verb: str = ""
    target: str = ""
    text: str = ""
    since: date | None = None
    until: date | None = None

    def among(self, entries: AuditEntryQuerySet) -> AuditEntryQuerySet:
        """Those entries. `verb` is a whole one or a beginning that ends with a dot; both days are inclusive, in UTC."""
        if self.who:
            entries = entries.filter(by_name=self.who)
        if self.verb:
            field = "verb__startswith" if self.verb.endswith(".") else "verb"
            entries = entries.filter(**{field: self.verb})
        if self.target:
            entries = entries.filter(target__icontains=self.target)
        if self.text:
            entries = entries.alias(said=Cast("detail", TextField())).filter(
                Q(target__icontains=self.text)
                | Q(said__icontains=self.text)
                | Q(by_name__icontains=self.text)
                | Q(verb__icontains=self.text)
            )
        if self.since:
            entries = entries.filter(at__gte=datetime.combine(self.since, time.min, UTC))
        if self.until:
            entries = entries.filter(at__lt=datetime.combine(self.until + timedelta(days=1), time.min, UTC))
        return entries


def page(
    entries: AuditEntryQuerySet, *, after: Cursor | None, size: int
) -> tuple[list[AuditEntry], Cursor | None]:
    """At most `size` entries that are older than `after`, and the place after which the next page begins."""
    if after is not None:
        older = Q(at__lt=after.at) | Q(at=after.at, pk__lt=after.pk)
        # The first condition alone is what the index is entered by.
        entries = entries.filter(Q(at__lte=after.at) & older)
    found = list(entries.order_by("-at", "-pk")[: size + 1])
    return found[:size], Cursor.of(found[size - 1]) if len(found) > size else None


def recent_verbs() -> list[str]:
    """The verbs that were used lately, to choose from."""
    latest = AuditEntry.objects.order_by("-at", "-pk").values_list("verb", flat=True)
    return sorted(set(latest[:_LOOKED_AT_FOR_VERBS]))
