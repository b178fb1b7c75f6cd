"""What the tests that run the whole job share: broker, servers, traffic, and the oracle."""
