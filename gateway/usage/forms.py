"""What administrators type about usage."""

from typing import TYPE_CHECKING, Any

from django import forms

from gateway.models import Price, UsageConfig

if TYPE_CHECKING:
    _ConfigForm = forms.ModelForm[UsageConfig]
else:
    # Django's own class takes no parameter while it runs.
    _ConfigForm = forms.ModelForm


class ConfigForm(_ConfigForm):
    """How long records are kept, and the currency of prices."""

    class Meta:
        model = UsageConfig
        fields = ("retention_days", "currency")
        labels = {"retention_days": "Days to keep single requests"}
        help_texts = {
            "retention_days": "Their sums stay for ever.",
            "currency": "As it stands behind prices.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"label_suffix": ""} | kwargs)


class PriceForm(forms.Form):
    """What a model's tokens cost; both empty: nothing is said."""

    prompt_per_million = forms.DecimalField(
        required=False, min_value=0, max_digits=12, decimal_places=4, label="A million prompt tokens"
    )
    completion_per_million = forms.DecimalField(
        required=False, min_value=0, max_digits=12, decimal_places=4, label="A million completion tokens"
    )

    def __init__(self, data: Any, *, prefix: str, price: Price | None) -> None:
        initial = {name: _plain(price, name) for name in self.base_fields} if price else {}
        super().__init__(data, prefix=prefix, initial=initial, label_suffix="")
        for field in self.fields.values():
            field.widget.attrs |= {"class": "input", "placeholder": "–", "inputmode": "decimal"}

    def values(self) -> dict[str, Any] | None:
        """What the action takes; None where nothing is said."""
        said = {name: self.cleaned_data[name] for name in self.fields}
        if all(value is None for value in said.values()):
            return None
        return {name: value or 0 for name, value in said.items()}


def _plain(price: Price, name: str) -> str:
    """`2.5` instead of `2.5000`."""
    return f"{getattr(price, name):f}".rstrip("0").rstrip(".")
