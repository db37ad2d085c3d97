"""Delivery: sends rendered messages as e-mail or SMS.

Owns the ids of sent messages, the rates of providers and the stops of mailings. Consumes two queues
of each channel: `messages.email` and `messages.sms` for bulk messages, and the same names with
`.urgent`. Also consumes requests on `delivery.requests`. Publishes to the mail server, to the SMS
gateway, and facts on `outcomes`. Guarantees that each message is sent at least once under the same
id, is dead-lettered with the reason, or is returned to its mailing. A message that was sent is not
sent again, not even by another process. No message is sent at or after its `expires_at`, or a
second after the stop of its mailing. A slow channel does not affect the others, and bulk messages
do not delay urgent ones.
"""
