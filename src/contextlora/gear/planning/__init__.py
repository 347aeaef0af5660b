"""Which devices do what in a stage: devices and work -> cost -> plan -> roles. No torch."""
