from shared.process.command import service_command
from tests.fakes.shop.app import SERVICE

if __name__ == "__main__":
    service_command(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
