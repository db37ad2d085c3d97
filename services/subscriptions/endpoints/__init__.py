"""Endpoints of customers and their messages."""
