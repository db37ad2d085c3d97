"""`python -m services.sandbox` runs only the sandbox, like `ringback run sandbox`."""

from services.sandbox.app import SERVICE
from shared.process.command import alone

if __name__ == "__main__":
    alone(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
