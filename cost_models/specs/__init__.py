"""What is priced: hardware, model, precision, workload and layout, as frozen documents."""
