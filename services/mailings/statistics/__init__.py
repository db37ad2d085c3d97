"""Statistics of mailings: counts that a trigger of the table of messages keeps."""
