"""What is measured before the first step: the fastest configuration, time, memory."""
