"""What people type about a prompt."""

from typing import Any

from django import forms

from accounts.models import User
from chat.models import Prompt


class PromptForm(forms.ModelForm):  # type: ignore[type-arg]  # Django's class takes none at run time
    """A prompt, and the team it is shared with."""

    class Meta:
        model = Prompt
        fields = ("title", "text", "team")
        labels = {"team": "Shared with", "text": "Prompt"}
        help_texts = {"team": ""}
        widgets = {"text": forms.Textarea({"rows": 10})}

    def __init__(self, *args: Any, by: User, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        team: Any = self.fields["team"]
        team.queryset = by.teams.all()
        team.empty_label = "Nobody: it is mine alone"
        if self.instance.pk and self.instance.owner_id != by.pk:
            team.disabled = True
        elif not by.teams.exists():
            del self.fields["team"]

    def values(self) -> dict[str, Any]:
        """What `chat.prompts.actions` takes."""
        return {"team": None} | self.cleaned_data
