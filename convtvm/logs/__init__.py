"""What was measured, and what that says of what was not."""
