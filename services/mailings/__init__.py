"""Mailings: a posting becomes one rendered message for each receiver who wants it.

Owns postings and the status of each of their messages. Consumes `postings` (Posting), facts about
messages, requests on `mailings.requests`. Publishes SendEmail and SendSms. Guarantees that every
receiver of a posting is gone through, across crashes; that each message has one id, made of
posting, receiver and way, by which a repeat is recognised; and that each ends with a status.
"""
