"""What reads a job's topics and hands them on: alerts to people, predictions to a store."""
