"""Outgoing HTTP: which targets may be called, and the client that calls them."""
