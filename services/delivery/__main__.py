"""`python -m services.delivery`: delivery alone, the same as `ringback run delivery`."""

from services.delivery.app import SERVICE
from shared.process.command import alone

if __name__ == "__main__":
    alone(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
