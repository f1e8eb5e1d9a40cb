"""What is known of an activation before any code is read, from which token stands there and which stood before it."""
