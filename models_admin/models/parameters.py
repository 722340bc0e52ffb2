"""How llama-servers are launched: one set of parameters, for the portal's defaults and for each model's own."""

from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

from models_admin.models.node import check_paths


class LaunchParameters(models.Model):
    """Everything that may be said of a llama-server's launch. Empty everywhere means: not said here.

    What nobody says is decided in `models_admin.engine.launch_config`. Names are llama-server's where it has one.
    """

    class CacheType(models.TextChoices):
        """Types of the KV cache's elements."""

        F32 = "f32", "f32"
        F16 = "f16", "f16"
        BF16 = "bf16", "bf16"
        Q8_0 = "q8_0", "q8_0"
        Q5_1 = "q5_1", "q5_1"
        Q5_0 = "q5_0", "q5_0"
        Q4_1 = "q4_1", "q4_1"
        Q4_0 = "q4_0", "q4_0"
        IQ4_NL = "iq4_nl", "iq4_nl"

    class FlashAttention(models.TextChoices):
        """Whether attention is computed in one fused step."""

        AUTO = "auto", "the engine decides"
        ON = "on", "on"
        OFF = "off", "off"

    class SplitMode(models.TextChoices):
        """How a model is divided among several GPUs."""

        NONE = "none", "one GPU only"
        LAYER = "layer", "by layers"
        ROW = "row", "by rows"

    class Pooling(models.TextChoices):
        """How token vectors become one embedding."""

        NONE = "none", "none"
        MEAN = "mean", "mean"
        CLS = "cls", "cls"
        LAST = "last", "last"
        RANK = "rank", "rank"

    class Isolation(models.TextChoices):
        """Whether prompts of different people may share what was computed of them."""

        SHARED = "shared", "shared: fast"
        STRICT = "strict", "strict: nothing of a prompt is kept for the next one"

    binary = models.CharField(
        max_length=500,
        blank=True,
        help_text="Path of llama-server, one of those in the node's LLAMA_SERVER_BINS; empty: the one it finds.",
    )
    host = models.CharField(
        max_length=255,
        blank=True,
        validators=[RegexValidator(r"^[A-Za-z0-9.:-]+$", "This is a host name or an address.")],
        help_text="Where it listens; empty: the node's own address.",
    )
    first_port = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1024), MaxValueValidator(65535)]
    )
    last_port = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1024), MaxValueValidator(65535)]
    )

    context_tokens = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(256), MaxValueValidator(16_777_216)],
        help_text="Context size of each slot; memory grows with context times slots.",
    )
    slots = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(64)],
        help_text="How many answers are written at the same time.",
    )
    batch_tokens = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(32), MaxValueValidator(65536)]
    )
    ubatch_tokens = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(32), MaxValueValidator(65536)]
    )
    threads = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(1024)]
    )
    threads_batch = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(1024)]
    )

    gpu_layers = models.PositiveSmallIntegerField(null=True, blank=True)
    split_mode = models.CharField(max_length=8, blank=True, choices=SplitMode)
    tensor_split = models.CharField(
        max_length=200,
        blank=True,
        validators=[RegexValidator(r"^\d+(\.\d+)?(,\d+(\.\d+)?)*$", "Shares of the GPUs, such as 3,1.")],
        help_text="Shares of the GPUs, such as 3,1.",
    )
    main_gpu = models.PositiveSmallIntegerField(null=True, blank=True)

    flash_attention = models.CharField(max_length=4, blank=True, choices=FlashAttention)
    cache_type_k = models.CharField(max_length=8, blank=True, choices=CacheType)
    cache_type_v = models.CharField(max_length=8, blank=True, choices=CacheType)
    prompt_cache_mib = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MaxValueValidator(1_048_576)],
        help_text="Memory for prompts of conversations that are in no slot.",
    )
    isolation = models.CharField(max_length=8, blank=True, choices=Isolation)

    embeddings = models.BooleanField(null=True, blank=True)
    pooling = models.CharField(max_length=8, blank=True, choices=Pooling)
    reranking = models.BooleanField(null=True, blank=True)
    vision = models.BooleanField(
        null=True, blank=True, help_text="Load the projector that lies beside the model."
    )
    lora = models.JSONField(
        default=list,
        blank=True,
        validators=[check_paths],
        help_text="Paths of LoRA adapters below a model folder of the node.",
    )
    draft_model = models.CharField(
        max_length=1024,
        blank=True,
        help_text="Path of a small model below a model folder of the node, to draft tokens for this one.",
    )
    chat_template = models.TextField(
        blank=True,
        max_length=65536,
        help_text="The name of a built-in template or a template; empty: the file's.",
    )
    extra_flags = models.JSONField(
        default=list, blank=True, help_text='Further flags of llama-server, as a list: ["--mlock"].'
    )

    start_timeout_s = models.PositiveIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(86_400)]
    )
    health_timeout_s = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(3600)],
        help_text="How long it may be silent before it is replaced.",
    )
    drain_timeout_s = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MaxValueValidator(3600)],
        help_text="How long its last answers may take before it is ended.",
    )

    class Meta:
        abstract = True


class PortalConfig(LaunchParameters):
    """The portal's own settings: one row. Its launch parameters hold for every model that says nothing else."""

    memory_reserve_mib = models.PositiveIntegerField(
        default=1024, help_text="Memory of each node that no replica may take."
    )
    idle_timeout_s = models.PositiveIntegerField(
        default=900,
        validators=[MinValueValidator(1)],
        help_text="When a model that is loaded on demand is unloaded again.",
    )
    # Of SECRET_KEY: a machine that joins must have the same.
    key_fingerprint = models.CharField(max_length=64, blank=True, editable=False)
    changed_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return "portal configuration"

    def save(self, *args: object, **kwargs: object) -> None:
        """There is one row."""
        self.pk = 1
        super().save(*args, **kwargs)  # type: ignore[arg-type]  # passed on as given

    @classmethod
    def current(cls) -> "PortalConfig":
        """The row, or what holds before anybody has written one."""
        return cls.objects.first() or cls(pk=1)
