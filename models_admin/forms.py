"""What administrators type about a model."""

import shlex
from typing import TYPE_CHECKING, Any

from django import forms

from llamaproj.errors import InvalidInput
from models_admin import launch
from models_admin.models import ServedModel

RESERVED = frozenset({"add", "scan"})


if TYPE_CHECKING:
    _Form = forms.ModelForm[ServedModel]
else:
    # Django's own class takes no parameter while it runs.
    _Form = forms.ModelForm


class ServedModelForm(_Form):
    """A served model's settings. Flags are one line, as one types them."""

    flags = forms.CharField(
        required=False,
        max_length=2000,
        label="Further flags",
        help_text="Of llama-server, as on its command line: --mlock --cache-type-k q8_0",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )

    class Meta:
        model = ServedModel
        fields = (
            "name",
            "slug",
            "description",
            "desired_replicas",
            "context_tokens",
            "slots",
            "answer_tokens",
            "threads",
            "gpu_layers",
            "batch_tokens",
            "ubatch_tokens",
            "teams",
        )
        labels = {
            "slug": "Short name",
            "desired_replicas": "Replicas",
            "context_tokens": "Context per slot, tokens",
            "slots": "Slots",
            "answer_tokens": "Longest answer, tokens",
            "gpu_layers": "Layers on the GPU",
            "batch_tokens": "Batch, tokens",
            "ubatch_tokens": "Physical batch, tokens",
        }
        help_texts = {
            "slug": "What programs send as “model”.",
            "desired_replicas": "How many processes should run; 0 means stopped.",
            "context_tokens": "Each slot's own; memory grows with context times slots.",
            "slots": "How many answers are written at the same time.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"label_suffix": ""} | kwargs)
        if "description" in self.fields:
            self.fields["description"].widget.attrs["rows"] = 2
        if self.instance.pk:
            # Programs hold on to it.
            self.fields["slug"].disabled = True
            self.fields["flags"].initial = shlex.join(self.instance.extra_flags)
        for name in self.errors if self.is_bound else ():
            if name in self.fields:
                self.fields[name].widget.attrs["aria-invalid"] = "true"

    def clean_slug(self) -> str:
        """A name that no page has."""
        slug: str = self.cleaned_data["slug"]
        if slug in RESERVED:
            raise forms.ValidationError("This short name is the portal's own.")
        return slug

    def clean_flags(self) -> list[str]:
        """The line as a list of allowed flags."""
        try:
            flags = shlex.split(self.cleaned_data["flags"])
            launch.check_extra_flags(flags)
        except (ValueError, InvalidInput) as error:
            raise forms.ValidationError(str(error)) from None
        return flags

    def values(self) -> dict[str, Any]:
        """What the actions take, without the teams: those are set on their own."""
        data = {name: value for name, value in self.cleaned_data.items() if name not in {"teams", "flags"}}
        return data | {"extra_flags": self.cleaned_data["flags"]}
