"""What makes a service a process: lifecycle, logs, metrics, health."""
