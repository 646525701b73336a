"""What tests stand on: a simulated clock and network, and later a disk and an oracle."""
