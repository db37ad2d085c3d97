"""The sandbox plays the outside world, so that newcomers and tests need none of their own.

Owns: nothing that matters; what came lives in memory, bounded, and goes with the process.
Consumes: HTTP and SMTP. Webhooks below ``/hooks/{mailbox}``, mails, SMS at ``/sms``, questions for
users, movies and reviews; orders at ``/api/mailboxes``, ``/api/mails/order``, ``/api/sms/order``.
Publishes: what its producers are told to, events on the exchange ``events``. It shows what came:
pages at ``/``, ``/mails``, ``/sms``, JSON at ``/api/deliveries``, ``/api/mails``, ``/api/sms``.
Guarantees: a signature is judged as an outside receiver would judge it, independently of the code
that signs; an order (fail, hang, drip, ...) is carried out exactly as given; no secret is shown.
"""
