"""Models, files, replicas, machines and the configuration, as REST has them."""

from dataclasses import asdict
from functools import cached_property
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiExample, extend_schema_field, extend_schema_serializer
from rest_framework import serializers

from accounts.models import Team
from llamaproj.errors import Conflict
from llamaproj.rest import Strict
from models_admin import overview, replacement
from models_admin.engine import launch_config, launch_rules
from models_admin.models import Instance, InstanceChange, ModelFile, Node, PortalConfig, ServedModel
from models_admin.overview import Overview
from models_admin.remedies import Trouble

LAUNCH = launch_config.NAMES
_OWN = ("idle_timeout_s", "pinned", "preload", "node_labels", "min_replicas", "max_replicas", "answer_tokens")


class Texts(serializers.ListField):
    """A list of texts."""

    child = serializers.CharField(max_length=1024)


class Replaceable(Strict):
    """What PUT sets as a whole."""

    def replacing(self) -> dict[str, Any]:
        """Parameters that aren't given go back to saying nothing."""
        model = self.Meta.model  # type: ignore[attr-defined]  # a ModelSerializer's
        unsaid: dict[str, Any] = {
            name: model._meta.get_field(name).get_default()
            for name, field in self.fields.items()
            if not field.read_only and name not in {"slug", "name", "file", "teams"}
        }
        if "teams" in self.fields:
            unsaid["teams"] = []
        return {**unsaid, **self.validated_data}


class PublicModelSerializer(serializers.ModelSerializer[ServedModel]):
    """A model for those who may use it: nothing of machines, paths and logs."""

    state = serializers.SerializerMethodField(help_text="The best replica's.")
    reason = serializers.SerializerMethodField()
    context_tokens = serializers.SerializerMethodField(help_text="Of each slot; what holds in the end.")
    slots = serializers.SerializerMethodField()
    embeddings = serializers.SerializerMethodField()
    reranking = serializers.SerializerMethodField()
    ready_replicas = serializers.SerializerMethodField()
    tokens_per_second = serializers.SerializerMethodField()

    class Meta:
        model = ServedModel
        fields = (
            "slug", "name", "description", "state", "reason", "context_tokens", "slots", "embeddings", "reranking",
            "answer_tokens", "on_demand", "ready_replicas", "tokens_per_second",
        )  # fmt: skip
        read_only_fields = fields

    def seen(self, served: ServedModel) -> Overview:
        """The model with its figures, looked up once."""
        if served.pk not in self._overviews:
            self._overviews[served.pk] = overview.of(served, self.portal)
        return self._overviews[served.pk]

    @cached_property
    def portal(self) -> PortalConfig:
        """The portal's row, read once for a whole list."""
        return PortalConfig.current()

    @cached_property
    def _overviews(self) -> dict[int, Overview]:
        return {}

    def get_state(self, served: ServedModel) -> str:
        """Its word in the API."""
        return str(self.seen(served).state)

    def get_reason(self, served: ServedModel) -> str:
        """Why it doesn't answer, in words for everybody."""
        seen = self.seen(served)
        return seen.public_reason if seen.needs_reason else ""

    def get_context_tokens(self, served: ServedModel) -> int:
        """Of each slot."""
        return launch_config.of(served, self.portal).context_tokens

    def get_slots(self, served: ServedModel) -> int:
        """Answers at the same time, of each replica."""
        return launch_config.of(served, self.portal).slots

    def get_embeddings(self, served: ServedModel) -> bool:
        """Whether it makes embeddings."""
        return launch_config.of(served, self.portal).embeddings

    def get_reranking(self, served: ServedModel) -> bool:
        """Whether it ranks texts."""
        return launch_config.of(served, self.portal).reranking

    def get_ready_replicas(self, served: ServedModel) -> int:
        """How many answer."""
        return sum(one.instance.state == "ready" for one in self.seen(served).replicas)

    def get_tokens_per_second(self, served: ServedModel) -> float | None:
        """Written lately by all replicas together."""
        return self.seen(served).tokens_per_second


@extend_schema_serializer(
    examples=[
        OpenApiExample(
            "A file, served to one team",
            {"file": 1, "slug": "qwen3-8b", "name": "Qwen3 8B", "slots": 4, "teams": ["Research"]},
            request_only=True,
        )
    ]
)
class ServedModelSerializer(Replaceable, PublicModelSerializer):
    """A model for those who manage it. A launch parameter that is null or empty leaves it to the portal's."""

    teams = serializers.SlugRelatedField(
        slug_field="name",
        many=True,
        required=False,
        queryset=Team.objects.all(),
        help_text="None: for everybody.",
    )
    file = serializers.PrimaryKeyRelatedField(
        queryset=ModelFile.objects.select_related("node"),
        required=False,
        allow_null=True,
        help_text="Chosen once, when the model is added; null for one on a server elsewhere.",
    )
    external = serializers.StringRelatedField[Any](
        allow_null=True, help_text="The server it runs on, where it isn't ours."
    )
    lora = Texts(required=False, help_text="Paths of LoRA adapters.")
    extra_flags = Texts(required=False, help_text="Further flags of llama-server.")
    node_labels = Texts(required=False, help_text="Labels a node must have to run it.")
    context_tokens = serializers.IntegerField(required=False, allow_null=True)  # type: ignore[assignment]
    slots = serializers.IntegerField(required=False, allow_null=True)  # type: ignore[assignment]
    embeddings = serializers.BooleanField(required=False, allow_null=True)  # type: ignore[assignment]
    reranking = serializers.BooleanField(required=False, allow_null=True)  # type: ignore[assignment]
    effective = serializers.SerializerMethodField(help_text="Every launch parameter as it holds in the end.")
    outdated_replicas = serializers.SerializerMethodField(
        help_text="Running ones with other settings; they are replaced one after the other."
    )
    warnings = serializers.SerializerMethodField()
    memory_bytes = serializers.SerializerMethodField(help_text="What its replicas take together.")
    estimated_bytes = serializers.SerializerMethodField(help_text="What one replica will take.")
    instances = serializers.SerializerMethodField(help_text="The replicas that are not history.")

    class Meta:
        model = ServedModel
        fields = (
            *PublicModelSerializer.Meta.fields, "enabled", "desired_replicas", *_OWN[:-1], "teams", "file", "external",
            "external_name", *(name for name in LAUNCH if name not in PublicModelSerializer.Meta.fields),
            "effective", "outdated_replicas", "warnings", "memory_bytes", "estimated_bytes", "instances",
            "created_at", "last_used_at",
        )  # fmt: skip
        read_only_fields = (
            "enabled",
            "desired_replicas",
            "external_name",
            "on_demand",
            "created_at",
            "last_used_at",
        )
        extra_kwargs = {"slug": {"required": False, "validators": []}, "name": {"required": False}}

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Name and file stay what they are. Raises `Conflict`."""
        if isinstance(self.instance, ServedModel):
            for name in ("slug", "file"):
                if name in attrs and attrs.pop(name) != getattr(self.instance, name):
                    raise Conflict(f"A model keeps its {name}: add another one instead.", param=name)
        elif attrs.get("file") is None:
            raise serializers.ValidationError({"file": "Say which file: its id among the model files."})
        return attrs

    def get_reason(self, served: ServedModel) -> str:
        """Why it is in that state, whole."""
        return self.seen(served).reason

    @extend_schema_field(OpenApiTypes.OBJECT)
    def get_effective(self, served: ServedModel) -> dict[str, Any]:
        """Its own parameters, over the portal's, over those in the program."""
        return asdict(launch_config.of(served, self.portal))

    def get_outdated_replicas(self, served: ServedModel) -> int:
        """Those that are about to be replaced."""
        return replacement.count(served, self.portal)

    def get_warnings(self, served: ServedModel) -> list[str]:
        """What is perhaps not meant."""
        return launch_rules.doubts(served, self.portal)

    def get_memory_bytes(self, served: ServedModel) -> int | None:
        """As measured."""
        return self.seen(served).memory_bytes

    def get_estimated_bytes(self, served: ServedModel) -> int | None:
        """By the file's header."""
        return self.seen(served).estimated_bytes

    def get_instances(self, served: ServedModel) -> list[str]:
        """Their ids."""
        return [str(one.instance.pk) for one in self.seen(served).replicas]


@extend_schema_serializer(
    examples=[
        OpenApiExample("Always two", {"replicas": 2}, request_only=True),
        OpenApiExample("On demand", {"min_replicas": 0, "max_replicas": 3}, request_only=True),
    ]
)
class ScaleSerializer(Strict):
    """How many replicas: a fixed number, or from … to …."""

    replicas = serializers.IntegerField(required=False, min_value=0, max_value=16)
    min_replicas = serializers.IntegerField(required=False, min_value=0, max_value=16)
    max_replicas = serializers.IntegerField(required=False, min_value=1, max_value=16)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """One way or the other."""
        if ("replicas" in attrs) == ("min_replicas" in attrs):
            raise serializers.ValidationError(
                {"replicas": "Say either replicas, or min_replicas and max_replicas."}
            )
        if "replicas" in attrs and "max_replicas" in attrs:
            raise serializers.ValidationError(
                {"max_replicas": "This goes with min_replicas, not with replicas."}
            )
        return attrs


class RemedySerializer(serializers.Serializer[Any]):
    """One way out."""

    code = serializers.CharField(help_text="By which it is applied.")
    label = serializers.CharField()  # type: ignore[assignment]  # a field of that name, not the field's own
    effect = serializers.CharField()
    changes = serializers.DictField(help_text="Launch parameters it sets.")


class TroubleSerializer(serializers.Serializer[Any]):
    """One cause for which replicas of a model don't run, and what may help."""

    cause = serializers.CharField(source="diagnosis.cause")
    summary = serializers.CharField(source="diagnosis.summary")
    instances = serializers.SerializerMethodField(help_text="The replicas that have it.")
    remedies = RemedySerializer(many=True)

    def get_instances(self, trouble: Trouble) -> list[str]:
        """Their ids."""
        return [str(one.pk) for one in trouble.instances]


class RemedyChoiceSerializer(Strict):
    """Which remedy to apply."""

    code = serializers.CharField(max_length=60, help_text="One that is offered.")


class ModelFileSerializer(serializers.ModelSerializer[ModelFile]):
    """A file that a scan found."""

    node = serializers.SlugRelatedField[Node](slug_field="name", read_only=True)
    served_as = serializers.SerializerMethodField()

    class Meta:
        model = ModelFile
        fields = (
            "id", "node", "path", "kind", "content_id", "projector", "size_bytes", "modified_at", "changed_at", "name",
            "architecture", "parameters", "quantization", "context_tokens", "error", "missing", "scanned_at",
            "served_as",
        )  # fmt: skip
        read_only_fields = fields

    def get_served_as(self, file: ModelFile) -> list[str]:
        """The short names of the models made of it."""
        return [served.slug for served in file.served.all()]


class InstanceSerializer(serializers.ModelSerializer[Instance]):
    """A replica."""

    model = serializers.SlugRelatedField[ServedModel](slug_field="slug", source="served", read_only=True)
    node = serializers.SlugRelatedField[Node](slug_field="name", read_only=True, allow_null=True)

    class Meta:
        model = Instance
        fields = (
            "id", "model", "node", "file", "state", "reason", "cause", "crashes", "port", "pid", "progress",
            "expected_bytes", "memory_bytes", "launched", "created_at", "started_at", "ready_at", "state_since",
            "last_used_at",
        )  # fmt: skip
        read_only_fields = fields
        extra_kwargs = {"launched": {"help_text": "What it was launched with."}}


class ChangeSerializer(serializers.ModelSerializer[InstanceChange]):
    """One move of a replica."""

    class Meta:
        model = InstanceChange
        fields = ("at", "old", "new", "reason")


class LogSerializer(serializers.Serializer[Any]):
    """The end of a replica's log."""

    lines = serializers.ListField(child=serializers.CharField())


class SlotSerializer(serializers.Serializer[Any]):
    """One slot of a replica."""

    id = serializers.IntegerField()
    is_busy = serializers.BooleanField()
    context_tokens = serializers.IntegerField()
    used_tokens = serializers.IntegerField()
    written_tokens = serializers.IntegerField(help_text="Of its present answer.")


class LoadSerializer(serializers.Serializer[Any]):
    """What a ready replica was last doing."""

    busy = serializers.IntegerField(help_text="Slots at work.")
    queued = serializers.IntegerField(help_text="Requests that wait for a slot.")
    slots = SlotSerializer(many=True)


class NodeSerializer(Strict, serializers.ModelSerializer[Node]):
    """A machine. Address, memory and engine are what its worker says."""

    labels = Texts(required=False)
    alive = serializers.BooleanField(read_only=True, help_text="Whether its worker announces itself.")
    replicas = serializers.IntegerField(
        source="replica_count", read_only=True, help_text="Those placed here."
    )

    class Meta:
        model = Node
        fields = (
            "name", "address", "labels", "accepts_replicas", "memory_limit_bytes", "cpu_count", "memory_bytes",
            "memory_free_bytes", "gpus", "engine", "last_seen", "alive", "replicas",
        )  # fmt: skip
        read_only_fields = (
            "name", "address", "cpu_count", "memory_bytes", "memory_free_bytes", "gpus", "engine", "last_seen",
        )  # fmt: skip
        extra_kwargs = {"memory_limit_bytes": {"min_value": 0}}


class ReplacementSerializer(serializers.Serializer[Any]):
    """Replicas of one model that are replaced one after the other."""

    model = serializers.CharField(source="served.slug")
    replicas = serializers.IntegerField()


class ConfigSerializer(Replaceable, serializers.ModelSerializer[PortalConfig]):
    """The portal's configuration. A launch parameter that is null or empty leaves it to what is in the program."""

    lora = Texts(required=False, help_text="Paths of LoRA adapters.")
    extra_flags = Texts(required=False, help_text="Further flags of llama-server.")
    changed_at = serializers.DateTimeField(
        read_only=True, allow_null=True, help_text="Null while nobody has changed anything."
    )
    effective = serializers.SerializerMethodField(
        help_text="What holds for a model that says nothing itself."
    )
    outdated = serializers.SerializerMethodField(
        help_text="Running replicas with other settings than theirs now."
    )

    class Meta:
        model = PortalConfig
        fields = ("memory_reserve_mib", "idle_timeout_s", *LAUNCH, "changed_at", "effective", "outdated")

    @extend_schema_field(OpenApiTypes.OBJECT)
    def get_effective(self, portal: PortalConfig) -> dict[str, Any]:
        """Every launch parameter."""
        return asdict(launch_config.of_portal(portal))

    @extend_schema_field(ReplacementSerializer(many=True))
    def get_outdated(self, portal: PortalConfig) -> Any:
        """Those about to be replaced."""
        return ReplacementSerializer(replacement.by_portal(portal), many=True).data
