"""`python -m services.journal`: run only the journal, like `ringback run journal`."""

from services.journal.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
