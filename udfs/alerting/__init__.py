"""Episodes of alerts: from scores to one alert with an opening and a closing record."""
