"""What keeps `up` from starting."""


class StartError(Exception):
    """The portal can't start; the message is one sentence for the person who typed the command."""
