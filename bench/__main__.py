"""`python -m bench`: the suite; see `README.md`."""

from __future__ import annotations

import sys

from bench.suite.command import main

if __name__ == "__main__":
    sys.exit(main())
