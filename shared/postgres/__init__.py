"""PostgreSQL: a connection pool with bounded waits, named queries, migrations."""
