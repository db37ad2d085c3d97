"""`python -m services.ingestion`: ingestion alone, the same as `ringback run ingestion`."""

from services.ingestion.app import SERVICE
from shared.process.command import alone

if __name__ == "__main__":
    alone(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
