"""`python -m services.delivery`: run only delivery, like `ringback run delivery`."""

from services.delivery.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
