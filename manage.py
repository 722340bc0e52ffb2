#!/usr/bin/env python
"""Django's command line, from a checkout."""

from llamaproj.cli import main

if __name__ == "__main__":
    main()
