"""The sandbox plays the outside world, so that newcomers and tests need no receiver of their own.

Owns: nothing that matters; what came lives in memory, bounded, and goes with the process.
Consumes: HTTP. Webhooks at any path below ``/hooks/{mailbox}``, orders at ``/api/mailboxes``.
Publishes: nothing. It shows what came: a page at ``/``, JSON at ``/api/deliveries``.
Guarantees: a signature is judged as an outside receiver would judge it, independently of the code
that signs; an order (fail, hang, drip, ...) is carried out exactly as given; no secret is shown.
"""
