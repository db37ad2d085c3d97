"""The models of all messages, one file per domain. They are frozen and reject unknown fields."""
