"""The private RabbitMQ and PostgreSQL of `ringback up` and of the tests, in one directory."""
