"""The dashboards of Grafana, as Python. `python -m deploy.grafana` writes their JSON."""
