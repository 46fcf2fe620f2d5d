"""The wire format: messages, frames, the rules of the handshake. No sockets."""
