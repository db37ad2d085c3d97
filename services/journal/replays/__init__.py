"""Kept requests and replays."""
