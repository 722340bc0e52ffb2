"""Secrets at rest: encrypted with a key derived from SECRET_KEY."""

import base64
import hashlib

from cryptography.fernet import Fernet, InvalidToken
from django.conf import settings
from django.utils.crypto import salted_hmac


def seal(secret: str) -> bytes:
    """Encrypt and authenticate."""
    return _box().encrypt(secret.encode())


def unseal(sealed: bytes) -> str:
    """The secret, or the empty string where SECRET_KEY has changed since it was sealed."""
    try:
        return _box().decrypt(sealed).decode()
    except InvalidToken:
        return ""


def fingerprint() -> str:
    """What tells one SECRET_KEY from another without giving it away."""
    return salted_hmac("models_admin.secret_box.fingerprint", "", algorithm="sha256").hexdigest()


def _box() -> Fernet:
    # A hash is enough of a derivation: SECRET_KEY is long and random, not a password.
    digest = hashlib.sha256(b"models_admin.secret_box:" + settings.SECRET_KEY.encode()).digest()
    return Fernet(base64.urlsafe_b64encode(digest))
