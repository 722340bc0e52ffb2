"""What a model file says about itself."""

from collections import Counter
from dataclasses import dataclass, field

Value = str | int | float | bool | None | list["Value"]


class GGUFError(ValueError):
    """The file can't be served; the message is a sentence that says why."""


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

    @property
    def architecture(self) -> str:
        """The family as llama.cpp names it, say `llama`."""
        return self.text("general.architecture")

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


def _is_number(value: Value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
