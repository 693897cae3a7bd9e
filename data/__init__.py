"""What a series is and where it comes from. Knows neither models nor torch."""
