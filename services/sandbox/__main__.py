"""`python -m services.sandbox`: run only the sandbox, like `ringback run sandbox`."""

from services.sandbox.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
