"""Endpoints of customers and their messages.

A message is stored with a delivery for each endpoint that selects its event type. The engine in
`deliveries` sends them. A sweep lets unfinished deliveries follow a change of the status.
"""
