"""The client directory: the people whom the mailings of a calling service reach."""
