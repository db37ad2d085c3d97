"""The services, a package each, and `cli`, which starts them."""
