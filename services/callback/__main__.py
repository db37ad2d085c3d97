"""`python -m services.callback`: the callback sender alone, the same as `ringback run callback`."""

from services.callback.app import SERVICE
from shared.process.command import alone

if __name__ == "__main__":
    alone(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
