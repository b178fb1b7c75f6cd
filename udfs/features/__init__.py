"""The feature engine: declared windows over histories, exact at any lateness."""
