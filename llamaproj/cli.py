"""The `llamaproj` command: every management command, and `up` and `node`, which start before Django does."""

import argparse
import os
import sys


def main() -> None:
    """Run the management command that `sys.argv` names."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "llamaproj.settings")
    as_node = sys.argv[1:2] == ["node"]
    if as_node:
        _take_node_options(sys.argv[2:])
    try:
        from llamaproj import env
    except ValueError as error:  # a variable of the environment can't be used; the message says which
        sys.exit(f"llamaproj: {error}")
    if sys.argv[1:] == ["up"]:
        # `up` checks folders and ports before anything reads the settings.
        from llamaproj.up import launcher

        sys.exit(launcher.main())
    if as_node:
        from llamaproj.up import node

        sys.exit(node.main())
    try:
        env.DATA_DIR.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"llamaproj: DATA_DIR={env.DATA_DIR} can't be used: {error.strerror}.")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


def _take_node_options(arguments: list[str]) -> None:
    """Options of `node` are variables of the environment by another name, for this process and those it starts."""
    parser = argparse.ArgumentParser(
        prog="llamaproj node",
        description="Run a node worker on this machine for a portal elsewhere. It needs the portal's DATABASE_URL,"
        " REDIS_URL and SECRET_KEY; Ctrl-C stops it and its llama-servers.",
    )
    parser.add_argument(
        "--name", help="this machine's name in the catalog (NODE_NAME; default: the host name)"
    )
    parser.add_argument("--address", help="where its llama-servers listen (NODE_ADDRESS)")
    options = parser.parse_args(arguments)
    for variable, value in (("NODE_NAME", options.name), ("NODE_ADDRESS", options.address)):
        if value:
            os.environ[variable] = value


if __name__ == "__main__":
    main()
