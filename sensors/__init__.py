"""Live streams in, robot commands out. Empty until the gesture bridge is built."""
