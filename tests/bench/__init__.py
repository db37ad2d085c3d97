"""Speed against a hand-written sender, measured in one run: `make bench` and `make soak`."""
