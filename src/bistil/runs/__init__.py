"""A run's folder: what is done, for which inputs."""
