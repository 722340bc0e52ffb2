"""What accounts need done in the background."""

from celery import shared_task
from django.core.management import call_command


@shared_task
def clear_sessions() -> None:
    """Forget sessions that have run out."""
    call_command("clearsessions")


@shared_task
def clear_tokens() -> None:
    """Forget tokens that have run out."""
    call_command("flushexpiredtokens")
