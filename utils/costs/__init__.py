"""What a configuration takes before anyone pays for it: FLOPs and memory."""
