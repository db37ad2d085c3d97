"""Expansion: a posting becomes one message per recipient.

`worker` claims postings and runs an expansion `slice` of each. A slice gets pages of `recipients`,
composes the messages, adds them to the database, publishes them through the `publisher`, and sets
a checkpoint after each page. Recipients are a user list, fetched by `sources`, or the clients of a
mailing in the directory. The publisher waits while `depth` reports full queues. `timing` decides
when messages may be published: until the posting expires, in local hours, at the rate of a mailing.
"""
