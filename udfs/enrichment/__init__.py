"""Data beside the events: reference tables and look-ups in stores."""
