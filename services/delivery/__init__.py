"""Delivery: sends rendered messages as e-mail or SMS.

Owns the ids of sent messages and the rates of providers. Consumes two queues of each channel:
`messages.email` and `messages.sms` for bulk messages, and the same names with `.urgent`. Publishes
to the mail server, to the SMS gateway, and facts on `outcomes`. Guarantees that each message is
sent at least once under the same id, or is dead-lettered with the reason. A message that was sent
is not sent again, not even by another process. No message is sent at or after its `expires_at`. A
slow channel does not affect the others, and bulk messages do not delay urgent ones.
"""
