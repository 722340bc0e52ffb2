"""A conversation as a file to keep."""

from collections.abc import Iterable

from chat.models import Conversation, Message


def markdown(conversation: Conversation, messages: Iterable[Message]) -> str:
    """Title and messages, each under the name of who said it; answers keep their own markdown."""
    parts = [f"# {_line(str(conversation))}", f"*{conversation.created_at:%Y-%m-%d %H:%M} UTC*"]
    for message in messages:
        who = "You" if message.role == Message.Role.USER else _line(message.model_slug or "Model")
        parts += [f"## {who}", message.text]
        if message.error:
            parts.append(f"> {_line(message.error)}")
    return "\n\n".join(part for part in parts if part) + "\n"


def file_name(conversation: Conversation, ending: str) -> str:
    """The title, as far as every file system takes it."""
    safe = "".join(one if one.isalnum() or one in " -_" else " " for one in str(conversation))
    return f"{' '.join(safe.split())[:80] or 'conversation'}.{ending}"


def _line(text: str) -> str:
    return " ".join(text.split())
