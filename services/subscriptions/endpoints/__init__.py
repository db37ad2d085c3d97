"""Endpoints of customers and their messages.

A message is stored with a delivery for each endpoint that selects its event type. The engine in
`deliveries` sends them. After a change of the status, a sweep updates the unfinished deliveries.
"""
