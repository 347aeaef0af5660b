"""Tables and time lines of plans."""
