#!/usr/bin/env -S python3 -IS
"""Tell a container engine whether the server answers: status 0 if it does.

Any answer will do but a failure of the server's own: a server without a credential, at its limits
or with keys for everything is healthy. Whether it can do work is what `/ready` says. Only the
standard library is imported, for this runs every few seconds.
"""

import http.client
import os
import ssl
import sys

PORT = int(os.environ.get("SESSION_SUPERVISOR_PORT") or os.environ.get("PORT") or 3000)
TIMEOUT_S = 4.0


def main() -> int:
    """Ask once; return the exit status."""
    if os.environ.get("SESSION_SUPERVISOR_TLS_CERT"):
        # The certificate is for the server's public name; whose it is plays no part here.
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            "127.0.0.1", PORT, timeout=TIMEOUT_S, context=context
        )
    else:
        connection = http.client.HTTPConnection("127.0.0.1", PORT, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/health", headers={"Host": "localhost"})
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        sys.stdout.write(f"no answer on port {PORT}: {error}\n")
        return 1
    finally:
        connection.close()
    sys.stdout.write(f"/health: {status}\n")
    return int(status >= 500)


if __name__ == "__main__":
    sys.exit(main())
