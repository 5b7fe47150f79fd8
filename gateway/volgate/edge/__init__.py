"""gRPC: messages in, typed requests to the gateway, messages and rich statuses out. Nothing else imports this package."""
