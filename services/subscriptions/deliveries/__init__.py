"""Deliveries: one message or user event to one endpoint, and the callbacks that users register."""
