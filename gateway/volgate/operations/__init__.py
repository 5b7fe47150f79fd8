"""What the gateway does: one file per group of use cases, ordinary blocking code, no gRPC."""
