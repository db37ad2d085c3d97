"""A service that keeps orders in a database, and does what every such service does."""
