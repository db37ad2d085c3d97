"""`python -m services.mailings`: run only mailings, like `ringback run mailings`."""

from services.mailings.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
