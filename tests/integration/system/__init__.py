"""Tests of all services together. They are started once, so a test has a client of its own."""
