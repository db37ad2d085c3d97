"""The services, one package each, and `cli`, which starts them."""
