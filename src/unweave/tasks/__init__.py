"""What contributions are good for: each task is a function that returns data, with a figure and a verb."""
