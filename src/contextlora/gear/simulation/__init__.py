"""What a plan does over time: schedule -> simulated time line. No torch."""
