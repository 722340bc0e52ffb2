"""What a model file says about itself."""

import re
from collections import Counter
from dataclasses import dataclass, field

# How llama.cpp calls the parts of a split model.
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.ASCII)
MAX_PARTS = 1000

Value = str | int | float | bool | None | list["Value"]


class GGUFError(ValueError):
    """The file can't be served; the message is a sentence that says why."""


class UnreadableError(GGUFError):
    """The system doesn't hand the file out; it may be in order."""


@dataclass(frozen=True)
class GGUFInfo:
    """A model file's own description of itself."""

    size_bytes: int
    metadata: dict[str, Value]
    parameters: int
    tensor_bytes: int
    quantization: str
    embedding_bytes: int
    tied_output: bool
    parts: int = 1
    tensor_types: Counter[str] = field(default_factory=Counter, compare=False)
    # The same for the same content, wherever it lies; see `gguf_header.read`.
    content_id: str = ""

    @property
    def architecture(self) -> str:
        """The family as llama.cpp names it, say `llama`."""
        return self.text("general.architecture")

    @property
    def is_projector(self) -> bool:
        """Whether it brings images or sound to a model, and is none."""
        return self.architecture == "clip" or self.text("general.type") == "mmproj"

    @property
    def is_adapter(self) -> bool:
        """Whether it changes a model (LoRA), and is none."""
        return self.text("general.type") == "adapter"

    @property
    def name(self) -> str:
        """The name its makers gave it; may be empty."""
        return self.text("general.name")

    @property
    def chat_template(self) -> str:
        """The Jinja template of a conversation; empty for a base model."""
        return self.text("tokenizer.chat_template")

    @property
    def context_tokens(self) -> int | None:
        """The context size the model was trained for."""
        return self.number("context_length")

    @property
    def width(self) -> int | None:
        """How many numbers a token is: in a model, or in what a projector hands over. They must be the same.

        Older projectors (of LLaVA's kind) name another layer's width under that key: they don't say.
        """
        if not self.is_projector:
            return self.number("embedding_length")
        if self.text("clip.projector_type") in {"", "mlp", "ldp", "ldpv2"}:
            return None
        widths = [self.metadata.get(f"clip.{kind}.projection_dim") for kind in ("vision", "audio")]
        return next((width for width in widths if isinstance(width, int) and 0 < width < 2**31), None)

    def text(self, key: str) -> str:
        """A metadata string, or the empty one."""
        value = self.metadata.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """A positive number among the architecture's own keys, or None. Of one a layer, the largest."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list):
            value = max((item for item in value if _is_number(item)), default=None)  # type: ignore[type-var]  # ints
        return value if isinstance(value, int) and _is_number(value) and 0 < value < 2**31 else None

    def per_layer(self, key: str, layers: int) -> list[int]:
        """A number for each layer, whether the file gives one for all or one each."""
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, list) and len(value) >= layers:
            return [item if isinstance(item, int) and 0 <= item < 2**31 else 0 for item in value[:layers]]
        return [self.number(key) or 0] * layers


def part_name(match: re.Match[str], number: int) -> str:
    """The name of another part, from a `PART` match in the name of one."""
    return f"{match.string[: match.start()]}-{number:05}-of-{match[2]}.gguf"


def _is_number(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
