"""`python -m services.console`: run only the console, like `ringback run console`."""

from services.console.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
