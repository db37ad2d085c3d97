"""The sandbox simulates the outside world, so that users and tests need no services of their own.

Owns: nothing important. It stores what it receives in bounded memory and loses it when it stops.
Consumes: HTTP and SMTP. It receives webhooks below ``/hooks/{mailbox}``, mails, and SMS at
``/sms``, and it serves users, movies and reviews.
Publishes: events on the exchange ``events``, on request. It shows what it received as pages at
``/``, ``/mails`` and ``/sms``, and as JSON below ``/api/``.
Guarantees: it checks signatures as an outside receiver does, without the code that signs. It
follows the configured behaviour (fail, hang, drip, ...) exactly, and never shows a secret.
"""
