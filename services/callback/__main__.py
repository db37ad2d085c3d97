"""`python -m services.callback`: run only the callback service, like `ringback run callback`."""

from services.callback.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
