"""What people type in their settings."""

from datetime import date, datetime, time, timedelta
from typing import TYPE_CHECKING, Any

from django import forms
from django.utils import timezone

from accounts import keys
from accounts.key_rights import KeyRights
from accounts.models import ApiKey, Team, User

if TYPE_CHECKING:
    _ProfileForm = forms.ModelForm[User]
else:
    # Django's own class takes no parameter while it runs.
    _ProfileForm = forms.ModelForm

_ON_A_DATE = "date"
_ENDS = {"7": "In 7 days", "30": "In 30 days", "90": "In 90 days", "365": "In a year", "": "Never"}
# What a program should start with; nobody remembers a key that never ends.
_FIRST = "90"


class ProfileForm(_ProfileForm):
    """How a person is called."""

    class Meta:
        model = User
        fields = ("first_name", "last_name")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"label_suffix": ""} | kwargs)


class KeyForm(forms.Form):
    """What a new key is called, and what it may do."""

    name = forms.CharField(max_length=80, help_text="Which program it is for, and where that runs.")
    scopes = forms.MultipleChoiceField(
        choices=ApiKey.Scope.choices,
        initial=[ApiKey.Scope.INFERENCE],
        widget=forms.CheckboxSelectMultiple,
        label="What it may do",
    )
    models = forms.MultipleChoiceField(
        required=False,
        widget=forms.CheckboxSelectMultiple,
        help_text="None chosen: every model that its owner may use.",
    )
    ends = forms.ChoiceField(
        choices=[*_ENDS.items(), (_ON_A_DATE, "On a date")], required=False, initial=_FIRST
    )
    date = forms.DateField(
        required=False,
        widget=forms.DateInput(attrs={"type": "date"}),
        label="Its last day",
    )
    priority = forms.ChoiceField(
        choices=ApiKey.Priority.choices,
        initial=ApiKey.Priority.INTERACTIVE,
        help_text="Where it stands in the queue of a busy model.",
    )

    def __init__(self, user: User, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"label_suffix": ""} | kwargs)
        offered = keys.models_for(user)
        self.fields["models"].choices = [(slug, f"{name} ({slug})") for slug, name in offered]  # type: ignore[attr-defined]  # a ChoiceField
        if not offered:
            del self.fields["models"]
        managed = Team.objects.manageable_by(user).filter(pk__in=user.memberships.values("team"))
        if managed.exists():
            self.fields["team"] = forms.ModelChoiceField(
                managed,
                required=False,
                empty_label="Yours alone",
                label="Whose key it is",
                help_text="A team's key uses what the team may use, and ends with your membership.",
            )
            self.order_fields(["name", "team"])

    def clean(self) -> dict[str, Any]:
        """A date where one was promised."""
        found: dict[str, Any] = super().clean() or self.cleaned_data
        if found.get("ends") == _ON_A_DATE and not found.get("date") and "date" not in self.errors:
            self.add_error("date", "Say its last day, or choose when it ends.")
        if found.get("date") == date.max:
            self.add_error("date", "Nothing comes after this day; choose “Never”.")
        return found

    def rights(self) -> KeyRights:
        """What was asked for."""
        asked = self.cleaned_data
        return KeyRights(
            scopes=tuple(asked["scopes"]),
            model_slugs=tuple(asked.get("models", ())),
            team=asked.get("team"),
            priority=asked["priority"],
            expires_at=self._end(),
        )

    def _end(self) -> datetime | None:
        match self.cleaned_data["ends"]:
            case "date":
                # The whole of its last day, by the portal's clock.
                day = datetime.combine(
                    self.cleaned_data["date"], time(), tzinfo=timezone.get_default_timezone()
                )
                return day + timedelta(days=1)
            case "":
                return None
            case days:
                return timezone.now() + timedelta(days=int(days))
