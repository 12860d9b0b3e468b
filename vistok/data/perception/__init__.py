"""Training and test records of perception tokens: depth and counting, in LLaVA's format, from any source of truth."""
