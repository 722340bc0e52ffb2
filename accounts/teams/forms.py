"""What people type about teams and invitations, and to come in."""

from typing import Any

from allauth.account.adapter import get_adapter
from django import forms

from accounts.models import Invitation, Membership, Team, User
from accounts.teams import access, invitations

_FOR_DAYS = ((1, "1 day"), (7, "7 days"), (30, "30 days"), (90, "90 days"))


class TeamForm(forms.ModelForm):  # type: ignore[type-arg]  # Django's class takes none at run time
    """A team's name and weight; the weight is for staff."""

    class Meta:
        model = Team
        fields = ("name", "weight")

    def __init__(self, *args: Any, by: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not by.is_staff:
            del self.fields["weight"]

    def validate_unique(self) -> None:
        """The actions say it, for every door."""


class InvitationForm(forms.Form):
    """Whom a link lets in, and for how long."""

    role = forms.ChoiceField(choices=Membership.Role.choices, initial=Membership.Role.MEMBER, label="As")
    days = forms.TypedChoiceField(choices=_FOR_DAYS, coerce=int, initial=7, label="Valid for")
    most_uses = forms.IntegerField(
        min_value=1, max_value=invitations.MOST_USES, initial=1, label="For how many people"
    )
    email = forms.EmailField(
        required=False,
        label="Only for this address",
        help_text="Optional. A new account gets it; an existing one must have it.",
    )

    def __init__(self, *args: Any, by: User, team: Team | None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if team is None:
            del self.fields["role"]
        elif not access.may_own(by, team):
            self.fields["role"].choices = [  # type: ignore[attr-defined]  # a ChoiceField
                choice for choice in Membership.Role.choices if choice[0] != Membership.Role.OWNER
            ]


class SignUpForm(forms.Form):
    """A new account, behind an invitation."""

    username = forms.CharField(
        max_length=150,
        label="Username",
        widget=forms.TextInput({"autocomplete": "username", "autocapitalize": "none", "spellcheck": "false"}),
    )
    password1 = forms.CharField(
        max_length=4096, label="Password", widget=forms.PasswordInput({"autocomplete": "new-password"})
    )
    password2 = forms.CharField(
        max_length=4096, label="Password again", widget=forms.PasswordInput({"autocomplete": "new-password"})
    )

    def __init__(self, *args: Any, invitation: Invitation, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._email = invitation.email

    def clean_username(self) -> str:
        """By allauth's rules: free, whatever the case of its letters. Raises `ValidationError`."""
        name: str = get_adapter().clean_username(self.cleaned_data["username"])
        return name

    def clean(self) -> dict[str, Any]:
        """Both passwords alike, and good enough for this person. Raises `ValidationError`."""
        data = super().clean() or {}
        first, second = data.get("password1"), data.get("password2")
        if first and second and first != second:
            self.add_error("password2", "These are two different passwords.")
        elif first:
            user = User(username=data.get("username", ""), email=self._email)
            try:
                get_adapter().clean_password(first, user=user)
            except forms.ValidationError as error:
                self.add_error("password1", error)
        return data
