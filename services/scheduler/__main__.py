"""`python -m services.scheduler`: run only the scheduler, like `ringback run scheduler`."""

from services.scheduler.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
