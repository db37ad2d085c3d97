"""Delivery: a rendered message becomes an e-mail or an SMS.

Owns nothing. Consumes `messages.email` (SendEmail) and `messages.sms` (SendSms). Publishes to the
mail server, to the SMS gateway, and facts on `outcomes`. Guarantees that each message is handed
over at least once under the same id, or lies in its dead queue with the reason; that nothing is
handed over at or after its `expires_at`; and that trouble with one way costs the other nothing.
"""
