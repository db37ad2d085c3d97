from shared.process.command import alone
from tests.fakes.shop.app import SERVICE

if __name__ == "__main__":
    alone(SERVICE)(prog_name=f"python -m {SERVICE.spec.module}")
