"""From a template and a posting's context to what each user gets: pure, but for reading files.

`library` finds and reads templates, `program` takes their Jinja apart, `markdown` and `places` make
HTML and text of what it puts out, and `edition` renders, user by user.
"""
