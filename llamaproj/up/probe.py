"""`python -m llamaproj.up.probe`: status 0 when the portal on this machine serves. A container's health check."""

import sys

import httpx

from llamaproj.up import address

_PATIENCE_S = 3


def main() -> int:
    """Ask /healthz; 0 for yes."""
    try:
        answer = httpx.get(
            f"{address.base_url()}/healthz", headers={"host": address.known_name()}, timeout=_PATIENCE_S
        )
    except httpx.HTTPError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0 if answer.status_code == httpx.codes.OK else 1


if __name__ == "__main__":
    sys.exit(main())
