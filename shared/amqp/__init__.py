"""RabbitMQ: connections, topology, publishing with confirms, consuming, RPC."""
