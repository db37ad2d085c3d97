"""The commands of `ringback`, a module each. It stands above the services and starts them."""
