"""`python -m services.mailings`: mailings alone, the same as `ringback run mailings`."""

from services.mailings.app import SERVICE
from shared.process.command import alone

if __name__ == "__main__":
    alone(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
