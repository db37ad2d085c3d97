"""The sandbox simulates the outside world, so that users and tests need no services of their own.

Owns no lasting data: it stores what it receives in bounded memory. Consumes HTTP and SMTP: webhooks
under `/hooks/{mailbox}`, mails, and SMS at `/sms`. It serves users, movies and reviews, and shows
what it received as pages at `/`, `/mails` and `/sms`, and as JSON under `/api/`. At `/oidc` it is
an OpenID provider for the console. Publishes events on the exchange `events`, on request.
Guarantees that it checks signatures as an outside receiver does, without the code that signs. It
follows the configured behaviour (fail, hang, drip, …) exactly, and never shows a secret.
"""
