"""Delivery: sends rendered messages as e-mail or SMS.

Owns no data. Consumes the queue of each channel: `messages.email` (SendEmail), `messages.sms`
(SendSms). Publishes to the mail server, to the SMS gateway, and facts on `outcomes`. Guarantees
that each message is sent at least once under the same id, or is dead-lettered with the reason. No
message is sent at or after its `expires_at`. A slow channel does not affect the others.
"""
