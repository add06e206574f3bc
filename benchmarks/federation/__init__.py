"""What federation costs and what it withstands: strategies, poisoned fleets, privacy, scale; one module each."""
