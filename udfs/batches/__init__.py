"""Micro-batches: from raw records to columns, between the operators, and to records again."""
