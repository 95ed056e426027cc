"""What pipelines run on: the networks, where their weights come from, and the manager that shares them."""
