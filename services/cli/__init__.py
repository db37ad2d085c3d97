"""The commands of `ringback`, one module each. The CLI imports the services and starts them."""
