"""Windows of readings that go on as events of their own when they close."""
