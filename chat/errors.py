"""What can go wrong in a chat.

LlamaProjError
├── InvalidInput
│   ├── EmptyMessage
│   └── MessageTooLong
└── Conflict
    └── AnswerUnfinished     one answer a conversation at a time
"""

from llamaproj.errors import Conflict, InvalidInput


class EmptyMessage(InvalidInput):
    """Write something first."""

    code = "empty_message"


class MessageTooLong(InvalidInput):
    """This message is too long."""

    code = "message_too_long"


class AnswerUnfinished(Conflict):
    """The answer before is still being written. Stop it, or wait for its end."""

    code = "answer_unfinished"
