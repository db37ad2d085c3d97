"""Open polls and streams of the messenger, and what wakes them."""
