"""Injures a job's stack on this machine, and judges exactly what it wrote."""
