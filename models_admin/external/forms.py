"""What administrators type about external servers."""

from typing import TYPE_CHECKING, Any

from django import forms

from llamaproj.errors import InvalidInput
from models_admin.external import address as external_address
from models_admin.models import ExternalServer, ServedModel

if TYPE_CHECKING:
    _ServerForm = forms.ModelForm[ExternalServer]
    _ModelForm = forms.ModelForm[ServedModel]
else:
    # Django's own class takes no parameter while it runs.
    _ServerForm = _ModelForm = forms.ModelForm


class ExternalServerForm(_ServerForm):
    """A server's name, address and key. A key that is kept is never shown."""

    api_key = forms.CharField(
        required=False,
        max_length=500,
        label="Key",
        widget=forms.PasswordInput(attrs={"autocomplete": "new-password", "spellcheck": "false"}),
    )
    forget_key = forms.BooleanField(required=False, label="Forget the key")

    class Meta:
        model = ExternalServer
        fields = ("name", "base_url")
        labels = {"base_url": "Address"}
        help_texts = {
            "name": "What you call it.",
            "base_url": "Where OpenAI's paths begin, mostly ending in /v1. Without it the usual places are tried.",
        }

    field_order = ("name", "base_url", "api_key", "forget_key")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"label_suffix": ""} | kwargs)
        self.fields["base_url"].widget.attrs |= {
            "inputmode": "url",
            "spellcheck": "false",
            "placeholder": "http://host:12434/engines/v1",
        }
        if self.instance.has_key:
            self.fields["api_key"].help_text = "One is kept. Leave this empty to keep it."
        else:
            self.fields[
                "api_key"
            ].help_text = "Only if the server wants one. It is kept encrypted and never shown."
            del self.fields["forget_key"]

    def clean_base_url(self) -> str:
        """The address as it is kept."""
        try:
            return external_address.cleaned(self.cleaned_data["base_url"])
        except InvalidInput as error:
            raise forms.ValidationError(error.message) from None

    def clean_api_key(self) -> str:
        """A key that can be sent."""
        key: str = self.cleaned_data["api_key"]
        try:
            external_address.check_key(key)
        except InvalidInput as error:
            raise forms.ValidationError(error.message) from None
        return key

    def values(self) -> dict[str, Any]:
        """What the actions take: no key means that the one kept stays."""
        key: str | None = self.cleaned_data["api_key"]
        if not key:
            forget = self.cleaned_data.get("forget_key") or not self.instance.has_key
            key = "" if forget else None
        return {"name": self.cleaned_data["name"], "base_url": self.cleaned_data["base_url"], "api_key": key}


class ServeForm(_ModelForm):
    """How a server's model is called here, and for whom it is."""

    class Meta:
        model = ServedModel
        fields = ("name", "slug", "teams")
        labels = {"slug": "Short name"}
        help_texts = {"slug": "What programs send as “model”."}
        widgets = {"teams": forms.CheckboxSelectMultiple}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"label_suffix": ""} | kwargs)

    def values(self) -> dict[str, Any]:
        """What the action takes."""
        return {name: self.cleaned_data[name] for name in ("name", "slug", "teams")}
