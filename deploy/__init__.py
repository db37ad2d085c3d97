"""How Ringback is run: on this machine (local), in containers (docker)."""
