"""What administrators type about models and about the portal's configuration."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from django import forms
from django.db import models

from accounts.models import Team
from llamaproj.errors import InvalidInput
from models_admin import replacement
from models_admin.engine import launch_config, launch_rules
from models_admin.models import PortalConfig, ServedModel
from models_admin.replacement import Replacement

# Groups of fields, as pages and the admin site show them: title, names.
MODEL_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Name and access", ("name", "slug", "description", "answer_tokens", "teams")),
    (
        "Replicas and loading",
        ("min_replicas", "max_replicas", "idle_timeout_s", "node_labels", "pinned", "preload"),
    ),
)
LAUNCH_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Context and slots", ("context_tokens", "slots")),
    ("Batches and threads", ("batch_tokens", "ubatch_tokens", "threads", "threads_batch")),
    ("GPU", ("gpu_layers", "main_gpu", "split_mode", "tensor_split")),
    (
        "Cache and isolation",
        ("flash_attention", "prompt_cache_mib", "cache_type_k", "cache_type_v", "isolation"),
    ),
    ("Embeddings and reranking", ("embeddings", "reranking", "pooling")),
    ("Adapters, draft model, vision, template", ("lora", "draft_model", "vision", "chat_template")),
    ("Process", ("binary", "host", "first_port", "last_port")),
    ("Time-outs", ("start_timeout_s", "health_timeout_s", "drain_timeout_s")),
    ("Further flags", ("extra_flags",)),
)
PORTAL_GROUPS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Memory and loading", ("memory_reserve_mib", "idle_timeout_s")),
    *LAUNCH_GROUPS,
)
# What people change often stands open.
OPEN_GROUPS = frozenset(
    {"Name and access", "Replicas and loading", "Memory and loading", "Context and slots"}
)

_LABELS = {
    "slug": "Short name",
    "answer_tokens": "Longest answer, tokens",
    "min_replicas": "Replicas at least",
    "max_replicas": "Replicas at most",
    "idle_timeout_s": "Unload when idle for, seconds",
    "node_labels": "Only on machines labelled",
    "pinned": "Never unload it to make room for another",
    "preload": "Load it when the portal starts",
    "context_tokens": "Context per slot, tokens",
    "batch_tokens": "Batch, tokens",
    "ubatch_tokens": "Physical batch, tokens",
    "threads": "Threads for writing",
    "threads_batch": "Threads for reading prompts",
    "gpu_layers": "Layers on the GPU",
    "main_gpu": "Main GPU, its number",
    "split_mode": "Divide among GPUs",
    "tensor_split": "Shares of the GPUs",
    "flash_attention": "Flash attention",
    "prompt_cache_mib": "Cache of prompts, MiB",
    "cache_type_k": "Keys of the KV cache",
    "cache_type_v": "Values of the KV cache",
    "isolation": "Between people",
    "lora": "LoRA adapters",
    "draft_model": "Draft model",
    "vision": "Images",
    "chat_template": "Chat template",
    "binary": "llama-server",
    "host": "Address",
    "first_port": "First port",
    "last_port": "Last port",
    "start_timeout_s": "To become ready, seconds",
    "health_timeout_s": "Without a sign of life, seconds",
    "drain_timeout_s": "For last answers, seconds",
    "extra_flags": "Further flags",
    "memory_reserve_mib": "Memory left alone on each machine, MiB",
}
_HELP = {
    "slug": "What programs send as “model”.",
    "node_labels": "Labels with commas between them; a machine must have all. Empty: on any.",
    "lora": "One path a line, inside a model folder of the machine that runs it.",
    "extra_flags": "Of llama-server, as on its command line: --mlock --temp 0.7",
    "host": "Where it listens. Empty: the machine's own address.",
    "answer_tokens": "Where an answer in a chat is cut off.",
    "pinned": "",
    "preload": "",
    "tensor_split": "One number for each, such as 3,1.",
}
# What is said where nobody says anything and llama-server itself decides.
_UNSAID = {
    "answer_tokens": "until the context is full",
    "binary": "the one each machine finds",
    "host": "the machine's own",
    "chat_template": "the file's",
    "draft_model": "none",
    "pooling": "the model's own",
}

_MOST_SHOWN = 40


class LinesField(forms.Field):
    """A list of texts, one a line."""

    widget: type[forms.Widget] = forms.Textarea

    def __init__(self, *, encoder: object = None, decoder: object = None, **kwargs: Any) -> None:
        # Given to every field of JSON.
        super().__init__(**kwargs)

    def prepare_value(self, value: Any) -> Any:
        """The list as lines; what was typed stays as it is."""
        return "\n".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[str]:
        """Lines without those that are empty."""
        return [line.strip() for line in str(value or "").splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        """Compared as lists."""
        return bool((initial or []) != self.to_python(data))


class WordsField(LinesField):
    """A list of short texts in one line, commas between them."""

    widget = forms.TextInput

    def prepare_value(self, value: Any) -> Any:
        """The list as one line."""
        return ", ".join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[str]:
        """Words without those that are empty."""
        return [word.strip() for word in str(value or "").split(",") if word.strip()]


class FlagsField(LinesField):
    """Flags as one types them on a command line."""

    widget = forms.TextInput

    def prepare_value(self, value: Any) -> Any:
        """The list as one types it."""
        return shlex.join(value) if isinstance(value, list) else value

    def to_python(self, value: Any) -> list[str]:
        """The words of the line; `launch_rules` says which are allowed."""
        try:
            return shlex.split(str(value or ""))
        except ValueError:
            raise forms.ValidationError("A quotation mark is missing.") from None


LIST_FIELDS: dict[str, type[LinesField]] = {
    "lora": LinesField,
    "node_labels": WordsField,
    "labels": WordsField,
    "extra_flags": FlagsField,
}


@dataclass(frozen=True)
class Group:
    """Fields that stand together on a page."""

    title: str
    fields: list[forms.BoundField]
    is_open: bool
    said: int


if TYPE_CHECKING:
    _Form = forms.ModelForm[models.Model]
else:
    # Django's own class takes no parameter while it runs.
    _Form = forms.ModelForm


class LaunchForm(_Form):
    """Launch parameters in groups; what is left empty shows what holds then."""

    layout: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"label_suffix": ""} | kwargs)
        for name, field in self.fields.items():
            field.label = _LABELS.get(name, field.label)
            field.help_text = _HELP.get(name, field.help_text)
            if isinstance(field, forms.ModelMultipleChoiceField) and not Team.objects.exists():
                field.help_text = "There are no teams yet, so it is open to everybody."
            if isinstance(field.widget, forms.Textarea):
                field.widget.attrs["rows"] = 4 if name == "chat_template" else 2
        self._show_what_holds()

    def defaults(self) -> tuple[dict[str, object], str]:
        """What holds where a field stays empty, and whose word that is."""
        raise NotImplementedError

    def groups(self) -> Iterator[Group]:
        """The fields in their groups; one with a mistake stands open."""
        for title, names in self.layout:
            fields = [self[name] for name in names if name in self.fields]
            said = sum(field.value() not in (None, "", [], "unknown") for field in fields)
            wrong = any(field.errors for field in fields)
            if fields:
                yield Group(title, fields, is_open=title in OPEN_GROUPS or wrong, said=said)

    def values(self) -> dict[str, Any]:
        """What the actions take, without the teams: those are set on their own."""
        return {name: value for name, value in self.cleaned_data.items() if name != "teams"}

    def replacements(self) -> list[Replacement]:
        """The replicas that saving makes outdated. Call it on a valid form."""
        raise NotImplementedError

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]  # Django's own, though no stub knows it
        if self.errors:
            return
        assert isinstance(self.instance, ServedModel | PortalConfig)
        try:
            launch_rules.check(self.instance)
        except InvalidInput as error:
            self.add_error(error.param if error.param in self.fields else None, error.message)

    def _show_what_holds(self) -> None:
        """In an empty field as its placeholder, in a choice as its first entry."""
        values, whose = self.defaults()
        for name, field in self.fields.items():
            if name not in values:
                continue
            column = self._meta.model._meta.get_field(name)
            assert isinstance(column, models.Field)
            choices = column.flatchoices
            value = dict(choices).get(values[name], values[name])
            said = _in_words(value, _UNSAID.get(name, "the engine decides"), whose)
            if isinstance(field, forms.NullBooleanField):
                _set_choices(field, [("unknown", said), ("true", "on"), ("false", "off")])
            elif isinstance(field, forms.ChoiceField):
                _set_choices(field, [("", said), *choices])
            else:
                field.widget.attrs["placeholder"] = said


class ServedModelForm(LaunchForm):
    """A served model's settings."""

    layout = MODEL_GROUPS + LAUNCH_GROUPS

    class Meta:
        model = ServedModel
        fields = [name for _, names in MODEL_GROUPS + LAUNCH_GROUPS for name in names]
        field_classes = LIST_FIELDS
        widgets: ClassVar = {"teams": forms.CheckboxSelectMultiple}

    instance: ServedModel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.instance.pk:
            # Programs hold on to it.
            self.fields["slug"].disabled = True
        if self.instance.external_id:
            # Nothing of it is launched by us.
            for name in (
                "min_replicas",
                "max_replicas",
                "idle_timeout_s",
                "node_labels",
                "pinned",
                "preload",
            ):
                self.fields.pop(name, None)
            for name in launch_config.NAMES:
                if name not in {"context_tokens", "slots"}:
                    self.fields.pop(name, None)

    def defaults(self) -> tuple[dict[str, object], str]:
        """What the portal's configuration says."""
        portal = PortalConfig.current()
        own = {"idle_timeout_s": portal.idle_timeout_s, "answer_tokens": None}
        return vars(launch_config.of_portal(portal)) | own, "the portal's default"

    def replacements(self) -> list[Replacement]:
        """Of this model."""
        if not self.instance.pk or self.instance.file_id is None:
            return []
        found = Replacement(self.instance, replacement.count(self.instance))
        return [found] if found.replicas else []


class NewModelForm(ServedModelForm):
    """A served model that doesn't exist yet."""

    start_now = forms.BooleanField(required=False, initial=True, label="Start it now")
    layout = (("Name and access", (*MODEL_GROUPS[0][1], "start_now")), *MODEL_GROUPS[1:], *LAUNCH_GROUPS)

    def values(self) -> dict[str, Any]:
        """Starting is an action of its own."""
        return {name: value for name, value in super().values().items() if name != "start_now"}


class PortalConfigForm(LaunchForm):
    """The portal's own settings and what holds for models that say nothing else."""

    layout = PORTAL_GROUPS

    class Meta:
        model = PortalConfig
        fields = [name for _, names in PORTAL_GROUPS for name in names]
        field_classes = LIST_FIELDS

    instance: PortalConfig

    def defaults(self) -> tuple[dict[str, object], str]:
        """What is written in the program."""
        return vars(launch_config.LaunchConfig()), "unless said here"

    def replacements(self) -> list[Replacement]:
        """Of every model that doesn't say otherwise."""
        return replacement.by_portal(self.instance)


def _in_words(value: object, unsaid: str, whose: str) -> str:
    """A value and whose it is."""
    if value is None or value == "":
        return unsaid
    if isinstance(value, bool):
        value = "on" if value else "off"
    if isinstance(value, list | tuple):
        value = shlex.join(value) or "none"
    text = str(value)
    return f"{text if len(text) <= _MOST_SHOWN else text[:_MOST_SHOWN] + '…'}, {whose}"


def _set_choices(field: forms.Field, choices: list[tuple[str, str]]) -> None:
    if isinstance(field, forms.ChoiceField):
        field.choices = choices
    assert isinstance(field.widget, forms.Select)
    field.widget.choices = choices
