"""Service tickets and encryption at rest."""
