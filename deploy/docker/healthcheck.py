#!/usr/local/bin/python
"""`healthcheck PORT PATH`: exit code 0 if this container answers 200 there, else 1.

Prints the answer, which `docker inspect` shows: `/readyz` says what is not ready, and why.
"""

import http.client
import sys

SECONDS = 3

# Not urllib, which would ask a proxy that Docker put into the environment.
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=SECONDS)
try:
    connection.request("GET", sys.argv[2])
    answer = connection.getresponse()
    print(answer.read().decode())  # noqa: T201 - for docker inspect
except OSError as error:
    sys.exit(str(error))
sys.exit(answer.status != http.client.OK)
