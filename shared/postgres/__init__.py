"""PostgreSQL: a pool that never waits without a bound, named queries, migrations."""
