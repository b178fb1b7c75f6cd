"""The demo of machine anomalies: its data, its replay and its report."""
