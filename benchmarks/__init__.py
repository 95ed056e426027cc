"""The measurements that the README quotes, each one command; results are kept as JSON in ``results/``."""
