"""`streamscore gateway`: HTTP before a ranking job, which is reached over Kafka."""
