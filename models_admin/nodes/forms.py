"""What administrators type about a node."""

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from django import forms
from django.core.exceptions import ValidationError

from models_admin.models import Node
from models_admin.models.node import check_texts

_GIB = 2**30


class NodeForm(forms.Form):
    """A node's settings. Labels are one line, the limit is in GiB."""

    labels = forms.CharField(
        required=False,
        max_length=1000,
        help_text="Separated by commas. A model that asks for labels runs only where all of them are.",
        widget=forms.TextInput(attrs={"autocomplete": "off", "spellcheck": "false"}),
    )
    memory_limit_gib = forms.DecimalField(
        required=False,
        min_value=0,
        max_value=1_048_576,
        decimal_places=2,
        label="Memory for replicas, GiB",
        help_text="What all replicas together may take; empty: all of it, less the reserve.",
    )
    accepts_replicas = forms.BooleanField(
        required=False,
        label="Takes new replicas",
        help_text="Off: what runs goes on, nothing new is placed here.",
    )

    def __init__(self, node: Node, data: Mapping[str, Any] | None = None) -> None:
        limit = node.memory_limit_bytes
        initial = {
            "labels": ", ".join(node.labels),
            "memory_limit_gib": None if limit is None else Decimal(str(round(limit / _GIB, 2))),
            "accepts_replicas": node.accepts_replicas,
        }
        super().__init__(data, initial=initial, label_suffix="")
        for name in self.errors if self.is_bound else ():
            if name in self.fields:
                self.fields[name].widget.attrs["aria-invalid"] = "true"

    def clean_labels(self) -> list[str]:
        """The line as a list of short words, each once."""
        words = (word.strip() for word in self.cleaned_data["labels"].split(","))
        labels = list(dict.fromkeys(word for word in words if word))
        try:
            check_texts(labels)
        except ValidationError:
            raise forms.ValidationError("A label has at most 60 signs.") from None
        return labels

    def values(self) -> dict[str, Any]:
        """What `node_actions.change` takes: what was changed, as a limit of so many bytes isn't shown whole."""
        values = {name: self.cleaned_data[name] for name in self.changed_data}
        if "memory_limit_gib" in values:
            limit = values.pop("memory_limit_gib")
            values["memory_limit_bytes"] = None if limit is None else int(limit * _GIB)
        return values
