"""RabbitMQ: connection, declaring, publishing with confirms, consuming."""
