"""`python -m services.ingestion` runs only ingestion, like `ringback run ingestion`."""

from services.ingestion.app import SERVICE
from shared.process.command import alone

if __name__ == "__main__":
    alone(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
