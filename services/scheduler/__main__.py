"""`python -m services.scheduler` starts the scheduler, like `ringback run scheduler`."""

from services.scheduler.app import SERVICE
from shared.process.command import alone

if __name__ == "__main__":
    alone(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
