"""What each command does: its options, its checks, what it prints. May import everything but `cli`."""
