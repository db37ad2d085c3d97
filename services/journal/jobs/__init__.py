"""Jobs: bulk work in the background."""
