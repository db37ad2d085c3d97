"""Rendering: from a template and the context of a posting to a message for each recipient.

`loader` finds and parses templates, and `compiler` compiles their Jinja. `bound_template` renders
them: Jinja runs for each recipient and writes a `placeholder` for each value, and `markdown`
converts each different result once. Only `loader` reads files.
"""
