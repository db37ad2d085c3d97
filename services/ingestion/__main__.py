"""`python -m services.ingestion`: run only ingestion, like `ringback run ingestion`."""

from services.ingestion.app import SERVICE
from shared.process.command import service_command

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
