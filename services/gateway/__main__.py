"""`python -m services.gateway`: run only the gateway, like `ringback run gateway`."""

from services.gateway.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
