"""The REST door to tokens: whoever comes here has none yet, or one that has just run out."""

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers, status
from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts.tokens import tokens
from accounts.tokens.tokens import Tokens
from llamaproj.rest import Strict, valid


class SignInSerializer(Strict):
    """Who signs in."""

    username = serializers.CharField(max_length=150)
    password = serializers.CharField(max_length=4096, trim_whitespace=False, style={"input_type": "password"})
    code = serializers.CharField(
        max_length=20, required=False, help_text="Of the person's second factor, where there is one."
    )


class RefreshSerializer(Strict):
    """The token that renews."""

    refresh = serializers.CharField(max_length=4096)


class TokensSerializer(serializers.Serializer[Any]):
    """What to send from now on."""

    access = serializers.CharField(help_text="Authorization: Bearer … of every request.")
    refresh = serializers.CharField(help_text="For new ones, once.")
    expires_in = serializers.IntegerField(help_text="After so many seconds `access` ends.")


class _Open(APIView):
    authentication_classes = ()
    permission_classes = (AllowAny,)

    def asked(self, serializer: type[Strict]) -> dict[str, Any]:
        """What the body says. Raises `ValidationError`."""
        return valid(serializer(data=self.request.data))

    def get_authenticate_header(self, request: Request) -> str:
        """What the answer 401 asks for."""
        return "Bearer"


class SignInView(_Open):
    """Tokens for a password."""

    @extend_schema(
        summary="Sign in for tokens", request=SignInSerializer, responses=TokensSerializer, auth=[]
    )
    def post(self, request: Request) -> Response:
        """Failures count together with those of the login page; too many are answered 429.

        Without the code of a second factor that there is, the answer is 401 with the code second_factor_needed.
        """
        return _shown(tokens.sign_in(request._request, **self.asked(SignInSerializer)))


class RefreshView(_Open):
    """New tokens for a refresh token."""

    @extend_schema(summary="Renew tokens", request=RefreshSerializer, responses=TokensSerializer, auth=[])
    def post(self, request: Request) -> Response:
        """The refresh token that is sent ends with this."""
        return _shown(tokens.renew(self.asked(RefreshSerializer)["refresh"]))


class RevokeView(_Open):
    """The end of a refresh token."""

    @extend_schema(summary="End a refresh token", request=RefreshSerializer, responses={204: None}, auth=[])
    def post(self, request: Request) -> Response:
        """An access token made with it goes on for the minutes that it has left."""
        tokens.revoke(self.asked(RefreshSerializer)["refresh"])
        return Response(status=status.HTTP_204_NO_CONTENT)


def _shown(given: Tokens) -> Response:
    return Response(TokensSerializer(given).data, headers={"cache-control": "no-store"})
