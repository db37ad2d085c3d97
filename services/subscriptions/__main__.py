"""`python -m services.subscriptions`: run only subscriptions, like `ringback run subscriptions`."""

from services.subscriptions.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
