"""Mailings: expands postings and mailings into one rendered message per recipient.

Owns clients, mailings, postings and the status of each message. Consumes `postings` (Posting),
facts about messages, notifications on `mailings.starts` and `mailings.reports`, and requests on
`mailings.requests`. Publishes SendEmail and SendSms, and requests to the scheduler and delivery.
Guarantees that expansion continues after a crash and skips no recipient, that a mailing starts once
and that a pause is answered after delivery has stopped. Each message has one id, derived from
posting, channel and user, so a repeat is recognised. Each message ends with a status.
"""
