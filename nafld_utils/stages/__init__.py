"""Units of work, a module a stage: the only code that opens artifacts and seals results."""
