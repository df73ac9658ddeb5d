"""What numbers and maps say: classification figures, relevance of groups, pictures and the report."""
