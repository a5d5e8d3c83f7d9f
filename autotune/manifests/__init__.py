"""Files that start engines (Kubernetes, Dynamo, KServe, Slurm, compose, recipes) as the commands that they run."""
