"""The steps: each has `run(device, results)`."""
