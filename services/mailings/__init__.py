"""Mailings: expands a posting into one rendered message per recipient.

Owns postings and the status of each of their messages. Consumes `postings` (Posting), facts about
messages, and requests on `mailings.requests`. Publishes SendEmail and SendSms. Guarantees that
expansion continues after a crash and skips no recipient. Each message has one id, derived from
posting, channel and user, so a repeat is recognised. Each message ends with a status.
"""
