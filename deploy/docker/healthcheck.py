#!/usr/local/bin/python
"""`healthcheck PORT PATH`: exit code 0 if this container responds 200, otherwise 1.

Prints the response, which `docker inspect` shows. `/readyz` says which part is not ready, and why.
"""

import http.client
import sys

TIMEOUT = 3  # seconds

# Not urllib, which would use a proxy from the environment.
connection = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=TIMEOUT)
try:
    connection.request("GET", sys.argv[2])
    response = connection.getresponse()
    print(response.read().decode())  # noqa: T201 - for docker inspect
except OSError as error:
    sys.exit(str(error))
sys.exit(response.status != http.client.OK)
