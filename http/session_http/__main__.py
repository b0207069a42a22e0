"""`python -m session_http` is the command `session-supervisor`."""

import sys

from session_http.cli import main

sys.exit(main())
