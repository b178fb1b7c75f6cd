"""Model kinds that can be served or embedded; none imports gRPC."""
