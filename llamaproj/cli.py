"""The `llamaproj` command: every management command, and `up`."""

import os
import sys


def main() -> None:
    """Run the management command that `sys.argv` names."""
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "llamaproj.settings")
    try:
        from llamaproj import env
    except ValueError as error:  # a variable of the environment can't be used; the message says which
        sys.exit(f"llamaproj: {error}")
    if sys.argv[1:] == ["up"]:
        # `up` checks folders and ports before anything reads the settings.
        from llamaproj.up import launcher

        sys.exit(launcher.main())
    try:
        env.DATA_DIR.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        sys.exit(f"llamaproj: DATA_DIR={env.DATA_DIR} can't be used: {error.strerror}.")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
