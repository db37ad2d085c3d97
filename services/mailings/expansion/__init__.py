"""Expansion: a posting becomes one message per recipient, page by page, with checkpoints."""
