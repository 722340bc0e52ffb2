"""How programs prove to the REST API who they are; people's sessions do as well."""

from rest_framework.authentication import BaseAuthentication
from rest_framework.request import Request

from accounts import keys
from accounts.models import ApiKey, User


class ApiKeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer sk-…`. Without the header the next way of authentication is tried."""

    def authenticate(self, request: Request) -> tuple[User, ApiKey] | None:
        """The key's owner and the key. Raises `NotAuthenticated`."""
        authorization = request.headers.get("authorization", "")
        if not authorization:
            return None
        key = keys.authenticate(authorization)
        return key.user, key

    def authenticate_header(self, request: Request) -> str:
        """What the answer 401 asks for."""
        return "Bearer"
