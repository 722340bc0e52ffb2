"""What administrators type about limits."""

from typing import TYPE_CHECKING, Any

from django import forms

from accounts.models import ApiKey, Team, User
from gateway.limits.actions import NUMBERS
from gateway.limits.subjects import FIELDS, Subject
from gateway.limits.use import WORDS
from gateway.models import Limit
from models_admin.models import ServedModel

if TYPE_CHECKING:
    _NumbersForm = forms.ModelForm[Limit]
else:
    # Django's own class takes no parameter while it runs.
    _NumbersForm = forms.ModelForm

_EVERYBODY = "everybody"


class NumbersForm(_NumbersForm):
    """A limit's numbers; empty ones are no limit."""

    class Meta:
        model = Limit
        fields = NUMBERS
        labels = {name: words.capitalize() for name, words in WORDS.items()}
        help_texts = {"context_tokens": ""}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"label_suffix": ""} | kwargs)
        for name in NUMBERS:
            self.fields[name].widget.attrs |= {"placeholder": "no limit", "min": 0, "inputmode": "numeric"}

    def numbers(self) -> dict[str, int | None]:
        """What was typed."""
        return {name: self.cleaned_data[name] for name in NUMBERS}


class LimitForm(NumbersForm):
    """Whom to limit, and to what."""

    subject = forms.ChoiceField(
        label="For whom or what", help_text="Who has a limit already isn't in this list."
    )
    field_order = ("subject", *NUMBERS)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["subject"].choices = list(_choices())  # type: ignore[attr-defined]  # a ChoiceField

    def found(self) -> Subject:
        """Who or what was chosen."""
        kind, _, pk = self.cleaned_data["subject"].partition(":")
        if kind == _EVERYBODY:
            return None
        found: Subject = _UNLIMITED[kind]().get(pk=pk)
        return found


# Without a limit: its row's related name is `limit`.
_UNLIMITED: dict[str, Any] = {
    "user": lambda: User.objects.filter(limit=None, is_active=True),
    "team": lambda: Team.objects.filter(limit=None),
    "model": lambda: ServedModel.objects.filter(limit=None),
    "key": lambda: ApiKey.objects.usable().filter(limit=None).select_related("user"),
}
_GROUPS = {"user": "A person", "team": "A team", "model": "A model", "key": "An API key"}


def _choices() -> Any:
    if not Limit.objects.filter(**dict.fromkeys(FIELDS.values())).exists():
        yield _EVERYBODY, "Everybody without a limit of their own"
    else:
        yield "", "Choose one"
    for kind, group in _GROUPS.items():
        found = [(f"{kind}:{one.pk}", _label(one)) for one in _UNLIMITED[kind]()]
        if found:
            yield group, found


def _label(subject: Any) -> str:
    match subject:
        case User():
            return f"{subject.display_name} ({subject.username})"
        case ServedModel():
            return f"{subject.name} ({subject.slug})"
        case ApiKey():
            return f"{subject} of {subject.user.username}"
        case _:
            return str(subject)
