"""Campaigns: the life of a mailing.

`domain` says what each action does in each status, `windows` when clients may get messages. The
rows of a mailing's cohorts are in the table of postings, and the engine of postings expands them.
"""
