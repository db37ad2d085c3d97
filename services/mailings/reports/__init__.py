"""The daily report about mailings, which the scheduler triggers and delivery sends."""
