"""What people write and read: problems, deployments, predictions, plans."""
