"""Expansion: a posting becomes one message per recipient.

`worker` claims postings and runs an expansion `slice` of each. A slice fetches pages of the user
list from `sources`, composes the messages, adds them to the database, publishes them through the
`publisher`, and sets a checkpoint after each page. The publisher waits while `depth` reports full
queues.
"""
