"""`make bench`: every benchmark, one after the other."""

import sys

from benchmarks import relay

if __name__ == "__main__":
    sys.exit(relay.main())
